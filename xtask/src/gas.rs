//! Measures what the network's transactions cost, and writes docs/gas.md. The test that measures is the one that later compares.

use std::{fs, io::Write as _, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::root;

const TABLE: &str = "docs/gas.md";

pub(crate) fn run() -> Result<()> {
    let arguments = ["test", "--locked", "--quiet", "--package", "ncn", "--test", "suite", "gas::no_transaction_grows"];
    let output = Command::new("cargo")
        .args(arguments)
        .env("NCN_GAS_WRITE", "1")
        .current_dir(root())
        .output()
        .context("cargo does not start: is it installed?")?;
    if !output.status.success() {
        std::io::stderr().write_all(&[output.stdout, output.stderr].concat())?;
        bail!("cargo {} failed ({})", arguments.join(" "), output.status);
    }
    let document = fs::read_to_string(root().join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
    // The first table of the document is what was measured.
    for row in document.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')) {
        writeln!(std::io::stdout(), "{row}")?;
    }
    Ok(())
}
