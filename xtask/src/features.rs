//! Checks that each library builds without features, and with each of them alone, and counts the crates that each of these builds pulls.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{document, root, watch::watch};

const DOCUMENT: &str = "CONTRIBUTING.md";
/// What nobody depends on and has no features.
const NO_LIBRARIES: [&str; 4] = ["examples", "ncn-bindgen", "ncn-bindings", "xtask"];
/// The program. It is checked together with the libraries: checked alone, most dependencies would be compiled again with other features.
const PROGRAM: &str = "ncn";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    rust_version: String,
    features: serde_json::Map<String, serde_json::Value>,
}

/// A package's features that are chosen, instead of the default.
struct Build<'a> {
    package: &'a str,
    features: Option<&'a str>,
}

impl Build<'_> {
    /// What cargo is called with, after its command.
    fn arguments(&self) -> Vec<String> {
        let features = self.features.map(|features| format!("--features={features}"));
        [format!("--package={}", self.package)].into_iter().chain(without_default(features)).collect()
    }

    /// What has cargo check it.
    fn lints(&self) -> Vec<String> {
        let build = if self.package == PROGRAM {
            let features = self.features.map(|features| format!("--features={PROGRAM}/{features}"));
            ["--workspace", "--exclude=examples", "--exclude=xtask"]
                .map(str::to_owned)
                .into_iter()
                .chain(without_default(features))
                .collect()
        } else {
            self.arguments()
        };
        ["clippy".into(), "--quiet".into()].into_iter().chain(build).chain(["--", "-D", "warnings"].map(str::to_owned)).collect()
    }

    /// How many crates it is made of, itself included, beside what runs only while it is built.
    fn crates(&self) -> Result<usize> {
        let build = self.arguments();
        let tree = ["tree", "--edges=normal", "--prefix=none", "--format={p}"].into_iter().chain(build.iter().map(String::as_str));
        let listed = read("cargo", &tree.collect::<Vec<_>>())?;
        Ok(listed.lines().map(|line| line.trim_end_matches(" (*)")).collect::<BTreeSet<_>>().len())
    }
}

fn without_default(features: Option<String>) -> impl Iterator<Item = String> {
    ["--locked".into(), "--no-default-features".into()].into_iter().chain(features)
}

/// Checks every build, with the oldest compiler that is promised where it is installed; then writes the table, or compares it.
pub(crate) fn run(check: bool) -> Result<()> {
    let metadata = read("cargo", &["metadata", "--no-deps", "--format-version", "1", "--locked"])?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata says something else than expected")?;
    let packages: Vec<_> = metadata.packages.iter().filter(|package| !NO_LIBRARIES.contains(&&*package.name)).collect();
    let oldest = packages.first().context("there are no packages")?.rust_version.clone();
    let cargo = cargo(&oldest)?;
    let (program, options) = cargo.split_first().context("there is no cargo")?;
    let mut table = String::from("| crate | features | crates |\n| --- | --- | --- |\n");
    for package in packages {
        let alone = package.features.keys().map(|feature| Some(&**feature));
        for features in [None].into_iter().chain(alone) {
            let build = Build { package: &package.name, features };
            let shown = features.map_or_else(|| "none".to_owned(), |features| format!("`{features}`"));
            writeln!(table, "| `{}` | {shown} | {} |", package.name, build.crates()?)?;
            // What others build with.
            if features == Some("default") {
                continue;
            }
            writeln!(std::io::stdout(), "{} with {}", package.name, features.unwrap_or("no features"))?;
            let mut lints = Command::new(program);
            // Nobody builds one of these again and again: what that would take is more than all else that a build leaves behind.
            lints.args(options).args(build.lints()).env("CARGO_INCREMENTAL", "0").current_dir(root());
            watch(lints, |_| ())?;
        }
    }
    document::write(DOCUMENT, "<!-- counted by `cargo xtask features` -->\n", &table, "features", check)
}

/// How cargo is called with the oldest compiler that is promised, or with the one in use where that is it or the only one.
fn cargo(oldest: &str) -> Result<Vec<&str>> {
    if read("rustc", &["--version"])?.split(' ').nth(1).is_some_and(|version| version.starts_with(oldest)) {
        return Ok(vec!["cargo"]);
    }
    let installed = Command::new("rustup").args(["run", oldest, "rustc", "--version"]).output();
    // There may be no rustup.
    if installed.is_ok_and(|output| output.status.success()) {
        return Ok(vec!["rustup", "run", oldest, "cargo"]);
    }
    writeln!(std::io::stdout(), "Rust {oldest}, the oldest that is promised, is not installed: checked with the one in use")?;
    Ok(vec!["cargo"])
}

fn read(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(root()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("{program} does not start: is it installed?"))?;
    if !output.status.success() {
        bail!("`{program} {}` failed ({})", arguments.join(" "), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} says what is no text"))
}
