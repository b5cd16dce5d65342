//! The project's task runner: `cargo xtask <task>`.

mod bindings;
mod busy;
mod codegen;
mod document;
mod features;
mod gas;
mod manifest;
mod models;
mod setup;
mod suite;
mod test;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use watch::run;

#[derive(Parser)]
#[command(about = "The project's tasks", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check and test everything: formats, lints, Rust, doc and contract tests, drift of generated files. Installs what it needs.
    /// A step that fails hides none after it: all failures are told at the end
    Test {
        /// While one process per core spins, as on a machine that has something else to do
        #[arg(long)]
        busy: bool,
    },
    /// Keep one core busy until standard input ends: what `test --busy` starts
    #[command(hide = true)]
    Spin,
    /// Install what the tests need besides Rust, pinned: contracts' tools, Python packages, models
    Setup,
    /// Generate the Rust code of proto/ into ncn-client/crates/wire/src/proto/
    Codegen {
        /// Only compare: fail when the committed code is not what would be generated
        #[arg(long)]
        check: bool,
    },
    /// Check that each library builds without features and with each alone, and write how many crates that takes into CONTRIBUTING.md
    Features {
        /// Only compare: fail when the committed table is not what cargo resolves
        #[arg(long)]
        check: bool,
    },
    /// Kill processes at random points under load, and check that nothing is lost
    Chaos {
        #[command(subcommand)]
        what: Chaos,
    },
    /// Measure
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Compile the contracts and write contracts/artifacts/
    Artifacts {
        /// Only compare: fail when a committed file is not what the sources compile to
        #[arg(long)]
        check: bool,
    },
    /// Fetch the models that the tests run, into NCN_TEST_MODELS or the user's cache directory
    Models,
    /// Measure what the network's transactions cost, print it, and write docs/gas.md
    Gas,
}

#[derive(Subcommand)]
enum Bench {
    /// What checking and keeping a voucher takes
    Money,
    /// What confinement, workers and engines cost
    Compute,
    /// What clients in other languages add to Rust: a streamed part, a verified receipt, a dropped request
    Bindings,
    /// What a request costs over each wire, and what becomes of more than can be served
    Wires,
    /// How fast news travel among 200 registry nodes in one process
    Registry,
}

#[derive(Subcommand)]
enum Chaos {
    /// The gateway, which settles: every request ends settled or refunded, once
    Money,
}

#[allow(clippy::print_stderr, reason = "the program's own voice")]
fn main() -> ExitCode {
    match perform() {
        Ok(true) => ExitCode::SUCCESS,
        // What failed has been told.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether all that was checked is good.
fn perform() -> Result<bool> {
    match Arguments::parse().task {
        Task::Test { busy } => return test::run(busy),
        Task::Spin => busy::spin(),
        Task::Setup => {
            setup::contracts()?;
            setup::python()?;
            setup::object_server()?;
            setup::engines()?;
            setup::verifier()?;
            setup::schemathesis()?;
            setup::browser()?;
            bindings::python()?;
            bindings::kotlin()?;
            bindings::typescript()?;
            models::run()
        }
        Task::Codegen { check } => codegen::run(check).and_then(|()| manifest::run(check)).and_then(|()| bindings::swift(check)),
        Task::Features { check } => features::run(check),
        Task::Chaos { what: Chaos::Money } => long_test("chaos::money", &[]),
        Task::Bench { what: Bench::Money } => long_test("channels::latency", &["--release"]),
        Task::Bench { what: Bench::Bindings } => {
            bindings::release()?;
            bindings::typescript()?;
            long_test("bindings::measured", &["--release"])
        }
        Task::Bench { what: Bench::Wires } => long_test("wires::measured", &["--release"]),
        Task::Bench { what: Bench::Registry } => long_test("peers::measured", &["--release"]),
        Task::Bench { what: Bench::Compute } => {
            models::run()?;
            setup::engines()?;
            setup::python()?;
            long_test("bench_", &["--release"])
        }
        Task::Artifacts { check } => {
            setup::contracts()?;
            npm(if check { &["run", "--silent", "artifacts", "--", "--check"] } else { &["run", "--silent", "artifacts"] })
        }
        Task::Models => models::run(),
        Task::Gas => gas::run(),
    }?;
    Ok(true)
}

/// One of the tests that the suite leaves out.
fn long_test(name: &str, options: &[&str]) -> Result<()> {
    let test = ["test", "-p", "ncn", "--test", "suite"];
    // One by one: measurements would disturb each other.
    let arguments = [&test, options, &["--", "--ignored", "--nocapture", "--test-threads=1", name]].concat();
    run("cargo", &arguments, &root())
}

/// The workspace's directory, wherever the task was called from.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs npm in contracts/.
pub(crate) fn npm(arguments: &[&str]) -> Result<()> {
    run("npm", arguments, &root().join("contracts"))
}
