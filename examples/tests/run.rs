//! Every example runs, and the README shows the one that it claims to show.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What an example prints; cargo has built it beside this test.
fn run(example: &str) -> String {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().parent().unwrap().join("examples").join(example);
    let output = Command::new(program).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn quickstart() {
    assert_eq!(run("quickstart"), "7 (paid 0.01 NCN, receipt verified)\n");
}

#[test]
fn channel() {
    assert_eq!(run("channel"), "1\n2\n3\nspent 0.03 NCN of 1 NCN\n");
}

#[test]
fn relayed() {
    assert_eq!(run("relayed"), "7 (paid 0.01 NCN)\n");
}

#[test]
fn executor() {
    assert_eq!(run("executor"), "PAY! FOR! WHAT! IS! SAID! (stop, 0.02 NCN)\n");
}

#[test]
fn payer() {
    assert_eq!(run("payer"), "paid 0.01 NCN\npaid 0.01 NCN\npayment: the budget of 0.025 NCN does not bear 0.01 NCN more\n");
}

#[test]
fn directory() {
    assert_eq!(run("directory"), "1 of 2 nodes are listed\n");
}

#[test]
fn gateway() {
    assert_eq!(run("gateway"), "7 by my node: true\n");
}

#[test]
fn the_readme_shows_the_quickstart() {
    let program = std::fs::read_to_string(root().join("examples/examples/quickstart.rs")).unwrap();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, block) = readme.split_once("```rust\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    assert_eq!(block, program);
    assert!(program.lines().count() <= 20);
}

#[test]
fn every_example_is_short_and_tested() {
    for entry in std::fs::read_dir(root().join("examples/examples")).unwrap() {
        let path = entry.unwrap().path();
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 80, "{} has {lines} lines", path.display());
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(include_str!("run.rs").contains(&format!("run(\"{name}\")")), "{name} is not run");
    }
}
