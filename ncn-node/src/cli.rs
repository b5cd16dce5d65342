//! The command line: parses, composes, prints.

mod demo;
mod verify;

use std::{
    fmt,
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use ncn_client::ClientError;
use tracing_subscriber::EnvFilter;

/// Paid, validated, receipted AI inference.
#[derive(Parser)]
#[command(name = "ncn", version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a whole network on this machine and run one paid inference through it
    Demo(demo::Arguments),
    /// Check a receipt, offline
    Verify(verify::Arguments),
}

/// Why a command failed: printed on one line, and the exit status.
#[derive(Debug)]
enum Failure {
    /// The caller has to change something. Status 2.
    Input(String),
    /// It did not work. Status 1.
    Failed(String),
    /// Whoever read the output has seen enough. Status 0.
    Unread,
}

impl Failure {
    fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
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

#[allow(clippy::print_stderr, reason = "the program's own voice")]
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let filter = EnvFilter::try_from_env("NCN_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).init();
    let done = match arguments.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
    };
    let (problem, status) = match done {
        Ok(()) | Err(Failure::Unread) => return ExitCode::SUCCESS,
        Err(Failure::Input(problem)) => (problem, 2),
        Err(Failure::Failed(problem)) => (problem, 1),
    };
    eprintln!("error: {}", problem.replace('\n', " "));
    ExitCode::from(status)
}
