//! `cargo xtask test`: everything that has to hold.

use std::{process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};

use crate::{
    bindings,
    busy::Busy,
    codegen, features, manifest, models, npm, root, setup,
    suite::{Count, Suite, say},
    watch::{is_failed_test, run as run_program, watch},
};

/// Does every step and says whether all were good; `busy`: while something else keeps every core busy.
pub(crate) fn run(busy: bool) -> Result<bool> {
    let started = Instant::now();
    let mut busy = if busy { Some(Busy::start()?) } else { None };
    let conditions =
        busy.as_ref().map_or_else(String::new, |busy| format!(", with {} processes that spin, one per core", busy.count()));
    if busy.is_some() {
        say(&format!("busy: everything is done{}", conditions.trim_start_matches(',')))?;
    }
    let mut suite = Suite::default();
    let cargo = |arguments: &[&str]| run_program("cargo", arguments, &root());

    suite.step("formats", |_| cargo(&["fmt", "--all", "--check"]))?;
    suite.step("generated code", |_| codegen::run(true).and_then(|()| manifest::run(true)))?;
    suite.step("lints", |_| cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"]))?;
    // The Rust tests start a chain that comes with the contracts' tools, models in a Python that has what they need, and engines that
    // packages ship. Where one of these cannot be set up, the tests that need it fail and name it; all the others still count.
    suite.step("contracts: set up", |_| setup::contracts())?;
    suite.step("models: fetch", |_| models::run())?;
    suite.step("object server: set up", |_| setup::object_server())?;
    suite.step("engines: set up", |_| setup::engines())?;
    suite.step("verifier: set up", |_| setup::verifier())?;
    suite.step("schemathesis: set up", |_| setup::schemathesis())?;
    suite.step("browser: set up", |_| setup::browser())?;
    suite.step("python: set up", |_| setup::python().map(drop))?;
    suite.step("bindings: Python", |_| bindings::python())?;
    suite.step("bindings: Kotlin", |_| bindings::kotlin())?;
    suite.step("bindings: Swift", |_| bindings::swift(true))?;
    suite.step("bindings: TypeScript", |_| bindings::typescript())?;
    // Most of them wait most of the time; those that do not would be late with more.
    let threads = std::thread::available_parallelism()?.get().saturating_mul(2).to_string();
    // What sends traces is no part of the program by default, and is tested.
    let tests = ["test", "--workspace", "--features", "ncn/otlp", "--locked", "--no-fail-fast", "--", "--test-threads", &threads];
    suite.step("Rust tests", |count| counted(count, "cargo", &tests, "."))?;
    suite.step("features", |_| features::run(true))?;
    suite.step("documentation", |_| {
        let mut command = Command::new("cargo");
        command
            .args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .current_dir(root());
        watch(command, |_| ())
    })?;

    let contracts = "contracts: set up";
    suite.step_after(contracts, "contracts: formats", |_| npm(&["run", "--silent", "fmt:check"]))?;
    suite.step_after(contracts, "contracts: artifacts", |_| npm(&["run", "--silent", "artifacts", "--", "--check"]))?;
    suite
        .step_after(contracts, "contracts: tests", |count| counted(count, "npm", &["run", "--silent", "test:only"], "contracts"))?;
    for (name, script) in [("models: digits", "ncn-node/models/digits/train.py"), ("models: examples", "examples/models/make.py")] {
        suite.step_after("python: set up", name, |_| run_program(setup::python()?, &[script, "--check"], &root()))?;
    }
    if let Some(busy) = &mut busy {
        suite.step("busy to the end", |_| match (busy.left(), busy.count()) {
            (left, count) if left == count => Ok(()),
            (left, count) => bail!("{left} of {count} processes spin: the others have ended too early"),
        })?;
    }
    drop(busy);
    say(&suite.report(started.elapsed(), &conditions))?;
    Ok(suite.is_good())
}

/// Runs a test program and counts its tests; fails with the names of those that failed.
fn counted(count: &mut Count, program: &str, arguments: &[&str], directory: &str) -> Result<()> {
    let before = count.passed + count.failed;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root().join(directory));
    let mut failed = Vec::new();
    let ended = watch(command, |line| {
        count.add(line);
        if is_failed_test(line) {
            failed.push(format!("\n    {}", line.trim()));
        }
    });
    if failed.is_empty() {
        ended?;
    } else {
        ended.with_context(|| format!("{} tests failed:{}\n   ", failed.len(), failed.concat()))?;
    }
    count.moved_on(before)
}
