//! `ncn`: the network's one program. Its command line parses, composes, prints.

mod account;
mod channel;
mod compute;
mod config;
mod contracts;
mod demo;
mod devnet;
#[cfg(target_os = "linux")]
mod doctor;
mod engines;
mod fetch;
mod files;
mod gateway;
mod infer;
mod inputs;
mod log;
mod metrics;
mod model;
mod models;
mod network;
mod npy;
mod output;
mod price;
mod quote;
mod refund;
mod registry;
mod stream;
mod subnet;
mod unfinished;
mod validator;
mod verify;
mod wallet;

use std::{
    fmt,
    io::{self, Write as _},
    net::{SocketAddr, ToSocketAddrs as _},
    pin::pin,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use ncn_client::ClientError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Paid, validated, receipted AI inference.
#[derive(Parser)]
#[command(name = "ncn", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a whole network on this machine and run one paid inference through it
    Demo(demo::Arguments),
    /// Keep a whole network running on this machine, for development
    Devnet(devnet::Arguments),
    /// Show what this machine can confine models by, and run them with
    #[cfg(target_os = "linux")]
    Doctor(doctor::Arguments),
    /// List what a gateway offers: models, prices, inputs
    Models(models::Arguments),
    /// Show what a request would cost and who would run it, without paying
    Quote(quote::Arguments),
    /// Run one paid inference through a gateway
    Infer(Box<infer::Arguments>),
    /// Fetch the answer of a request whose `ncn infer` was cut off
    Fetch(Box<fetch::Arguments>),
    /// Take a payment back after its end, without the gateway
    Refund(refund::Arguments),
    /// Show the network that receipts are checked against, and what to pin
    Network(network::Arguments),
    /// Check a receipt, offline
    Verify(verify::Arguments),
    /// Keys and tokens
    #[command(subcommand)]
    Wallet(wallet::Command),
    /// A deposit at one gateway, for many requests
    #[command(subcommand)]
    Channel(channel::Command),
    /// Model packages, and the store of this machine
    #[command(subcommand)]
    Model(model::Command),
    /// The stake behind a validator's word
    #[command(subcommand)]
    Validator(validator::Command),
    /// A network's contracts
    #[command(subcommand)]
    Contracts(contracts::Command),
    /// Run a node of the peer-to-peer registry, or ask one what it knows
    Registry(Box<registry::Arguments>),
    /// What gateways offer, and who serves it
    #[command(subcommand)]
    Subnet(Box<subnet::Command>),
    /// Run a gateway
    Gateway(Box<gateway::Arguments>),
    /// Run a compute node
    Compute(Box<compute::Arguments>),
    /// Files with a node's options
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

/// Why a command failed: printed on one line, and the exit status.
#[derive(Debug)]
enum Failure {
    /// The caller has to change something. Status 2.
    Input(String),
    /// It did not work. Status 1.
    Failed(String),
    /// A signal ended it. The status is what a shell shows for that: 128 and the signal's number.
    Interrupted(String, u8),
    /// Whoever read the output has seen enough. Status 0.
    Unread,
}

impl Failure {
    fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// What went wrong.
    fn problem(self) -> String {
        match self {
            Self::Input(problem) | Self::Failed(problem) | Self::Interrupted(problem, _) => problem,
            Self::Unread => String::new(),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        if error.is_input() { Self::Input(error.to_string()) } else { Self::Failed(error.to_string()) }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Unread } else { Self::failed(error) }
    }
}

/// What a terminal would obey rather than show, written out.
fn escaped(c: char) -> String {
    // U+202A.. and U+2066.. turn the direction of what follows around.
    let disguise = c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if disguise { c.escape_default().to_string() } else { c.to_string() }
}

/// What may come from outside, as it can be shown on a terminal, on one line.
fn sanitize(text: &str) -> String {
    const LONGEST: usize = 1_000;
    let mut all: String = text.replace('\n', " ").chars().take(LONGEST).map(escaped).collect();
    if text.chars().nth(LONGEST).is_some() {
        all.push_str("...");
    }
    all
}

/// Where something listens: an address or a name, and a port.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let no_address = |problem: &str| format!("{problem}: write ADDRESS:PORT, such as 127.0.0.1:50051");
    let mut found = text.to_socket_addrs().map_err(|error| no_address(&error.to_string()))?;
    found.next().ok_or_else(|| no_address("the name has no address"))
}

/// A path as it can be typed into a shell.
fn typed(path: &std::path::Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Does something until it is done, or interrupted: what was started is then ended in order, and leaves nothing behind.
fn block_on(doing: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    run_until(doing, "interrupted")
}

/// The same, with something else to say when it is interrupted.
fn run_until(doing: impl Future<Output = Result<(), Failure>>, interruption: &str) -> Result<(), Failure> {
    let runtime = runtime()?;
    runtime.block_on(async {
        tokio::select! {
            done = doing => done,
            signal = interrupted(true) => Err(Failure::Interrupted(interruption.into(), 128_u8.saturating_add(signal))),
        }
    })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Some parents have it ignored: then nobody is told that a child has ended, and who waits for one waits for ever.
    runtime.block_on(async { signal(SignalKind::child()).map(drop) })?;
    Ok(runtime)
}

/// Starts what serves until it is interrupted, and then shuts it down; a second interruption ends it at once. `hangup` says whether the end
/// of its terminal is one, too.
fn serving<N, S: Future<Output = ()>>(
    start: impl Future<Output = Result<N, Failure>>,
    shutdown: impl FnOnce(N) -> S,
    hangup: bool,
) -> Result<(), Failure> {
    // Each connection takes a file, and the usual limit is a small one for what serves many.
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let runtime = runtime()?;
    runtime.block_on(async {
        // One for all of it: a signal that comes as soon as the node says where it listens counts.
        let mut stop = pin!(interrupted(hangup));
        let node = tokio::select! {
            started = start => started?,
            _ = &mut stop => return Ok(()),
        };
        stop.await;
        tokio::select! {
            () = shutdown(node) => {}
            _ = interrupted(hangup) => {}
        }
        Ok(())
    })
}

/// The number of the signal that is to end this program, once there is one.
async fn interrupted(hangup: bool) -> u8 {
    let heard = async |kind: SignalKind| match signal(kind) {
        Ok(mut signals) => drop(signals.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = heard(SignalKind::hangup()), if hangup => 1,
        () = heard(SignalKind::interrupt()) => 2,
        () = heard(SignalKind::terminate()) => 15,
    }
}

/// Says something on standard error, if anybody listens.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Devnet(arguments) => devnet::run(&arguments),
        #[cfg(target_os = "linux")]
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Models(arguments) => models::run(&arguments),
        Command::Quote(arguments) => quote::run(&arguments),
        Command::Infer(arguments) => infer::run(&arguments),
        Command::Fetch(arguments) => fetch::run(&arguments),
        Command::Refund(arguments) => refund::run(&arguments),
        Command::Network(arguments) => network::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Wallet(command) => wallet::run(&command),
        Command::Channel(command) => channel::run(&command),
        Command::Model(command) => model::run(&command),
        Command::Validator(command) => validator::run(&command),
        Command::Contracts(command) => contracts::run(&command),
        Command::Registry(arguments) => registry::run(&arguments),
        Command::Subnet(command) => subnet::run(&command),
        Command::Gateway(arguments) => gateway::run(&arguments),
        Command::Compute(arguments) => compute::run(&arguments),
        Command::Config(command) => config::run(&command),
    }
}

fn main() -> ExitCode {
    // Models run in worker processes of this same program.
    ncn_executor::worker::init();
    let arguments = config::parse();
    let _log = log::init();
    let done = match arguments.map(|arguments| arguments.command) {
        Err(failure) => Err(failure),
        Ok(command) => run(command),
    };
    let (problem, status) = match done {
        Ok(()) | Err(Failure::Unread) => return ExitCode::SUCCESS,
        Err(Failure::Input(problem)) => (problem, 2),
        Err(Failure::Failed(problem)) => (problem, 1),
        Err(Failure::Interrupted(problem, status)) => (problem, status),
    };
    say(&format!("error: {}", sanitize(&problem)));
    ExitCode::from(status)
}
