//! Installs what the tests need, pinned, and only when it is not there yet.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{npm, root, watch::run};

/// The contracts' compiler and libraries, as their lock file has them.
pub(crate) fn contracts() -> Result<()> {
    let directory = root().join("contracts");
    let lock = directory.join("package-lock.json");
    once(&directory.join("node_modules/.installed"), &lock, || npm(&["ci", "--no-audit", "--no-fund", "--ignore-scripts"]))
}

/// The Python packages that models in Python and the quickstart model's check need, in a virtual environment; returns its
/// interpreter.
pub(crate) fn python() -> Result<PathBuf> {
    environment("venv", "ncn-node/models/digits/requirements.txt", &[])
}

/// The server of objects that the model store is tested against, in a virtual environment.
pub(crate) fn object_server() -> Result<()> {
    environment("s3", "ncn-node/crates/cli/tests/s3/requirements.txt", &[]).map(drop)
}

/// The engines that tests ask, in a virtual environment. They need none of the packages that they name.
pub(crate) fn engines() -> Result<()> {
    environment("engines", "ncn-node/crates/cli/tests/engines/requirements.txt", &["--no-deps"]).map(drop)
}

/// What the receipts' verifier in Python needs, in a virtual environment.
pub(crate) fn verifier() -> Result<()> {
    environment("verifier", "ncn-core/tests/verifier/requirements.txt", &["--no-deps"]).map(drop)
}

/// What calls a gateway over HTTP as its description allows, and as it does not, in a virtual environment.
pub(crate) fn schemathesis() -> Result<()> {
    environment("schemathesis", "ncn-node/crates/cli/tests/schemathesis/requirements.txt", &["--no-deps"]).map(drop)
}

/// The package for browsers and Node, built with what its lock file has.
pub(crate) fn typescript() -> Result<()> {
    let package = root().join("ncn-bindings/typescript");
    let npm = |arguments: &[&str]| run("npm", arguments, &package);
    once(&package.join("node_modules/.installed"), &package.join("package-lock.json"), || {
        npm(&["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
    })?;
    npm(&["run", "--silent", "build"])
}

/// The package for Python, built as one wheel, and installed in a virtual environment for the oldest CPython that it supports and for the newest one that
/// is here.
pub(crate) fn wheel() -> Result<()> {
    let maturin = environment("maturin", "ncn-bindings/python/requirements.txt", &["--no-deps"])?.with_file_name("maturin");
    let (root, wheels) = (root(), root().join("target/wheels"));
    let build = ["build", "--quiet", "--profile", "dev", "--out", "../../target/wheels"];
    if wheels.exists() {
        fs::remove_dir_all(&wheels)?;
    }
    run(&maturin, &build, &root.join("ncn-bindings/python"))?;
    let wheel = fs::read_dir(&wheels)?.next().context("target/wheels: maturin has built no wheel")??.path();
    let wheel = wheel.to_string_lossy().into_owned();
    for (version, python) in interpreters() {
        let (name, options) = (format!("bindings/{version}"), ["--only-binary", ":all:", "--no-warn-script-location"]);
        let own = environment_of(&python, &name, "ncn-bindings/python/tests/requirements.txt", &options)?;
        run(&own, &[&INSTALL[..], &["--force-reinstall", "--no-deps", &wheel]].concat(), &root)?;
    }
    Ok(())
}

/// CPython 3.9, where it is, and the newest one, by version: those that are found by name, and those of pyenv.
fn interpreters() -> Vec<(String, PathBuf)> {
    let pyenv = Command::new("pyenv").arg("root").output().ok().filter(|output| output.status.success());
    let pyenv = pyenv.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("versions"));
    let installed = pyenv.and_then(|versions| fs::read_dir(versions).ok()).into_iter().flatten().filter_map(Result::ok);
    let named = (9..30).map(|minor| PathBuf::from(format!("python3.{minor}"))).chain([PathBuf::from("python3")]);
    let candidates = installed.map(|version| version.path().join("bin/python")).chain(named);
    let version = "import sys, venv; print(sys.implementation.name == 'cpython' and sys.version_info >= (3, 9) and '3.%02d' % sys.version_info[1])";
    let mut found = std::collections::BTreeMap::new();
    for python in candidates {
        let Ok(output) = Command::new(&python).args(["-c", version]).output() else { continue };
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() && version.starts_with("3.") {
            found.entry(version).or_insert(python);
        }
    }
    let newest = found.last_key_value().map(|(version, python)| (version.clone(), python.clone()));
    let oldest = found.remove_entry("3.09");
    let mut both: Vec<_> = oldest.into_iter().chain(newest).collect();
    both.dedup_by(|one, other| one.0 == other.0);
    both
}

/// A browser without a window, and what drives it: Debian's, whose packages are signed and whose releases have one version of them each.
pub(crate) fn browser() -> Result<()> {
    let answers = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if answers("chromium") && answers("chromedriver") {
        return Ok(());
    }
    let packages = ["install", "--yes", "--no-install-recommends", "chromium", "chromium-driver"];
    let installed = run("apt-get", &["update"], &root()).and_then(|()| run("apt-get", &packages, &root()));
    installed.context("install chromium and chromium-driver: the tests open the gateway's page in them")
}

/// How an interpreter installs packages.
const INSTALL: [&str; 5] = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];

/// A virtual environment in target/ with these packages; returns its interpreter.
fn environment(name: &str, requirements: &str, options: &[&str]) -> Result<PathBuf> {
    environment_of(Path::new("python3"), name, requirements, options)
}

/// The same, of this interpreter.
fn environment_of(base: &Path, name: &str, requirements: &str, options: &[&str]) -> Result<PathBuf> {
    let requirements = root().join(requirements);
    let environment = root().join("target").join(name);
    let python = environment.join("bin/python");
    once(&environment.join("installed"), &requirements, || {
        run(base, &["-m", "venv", "--clear", &environment.to_string_lossy()], &root())?;
        let requirements = requirements.to_string_lossy().into_owned();
        run(&python, &[&INSTALL[..], &["-r", &requirements], options].concat(), &root())
    })?;
    Ok(python)
}

/// Installs unless `marker` says that exactly this `list` is installed already.
fn once(marker: &Path, list: &Path, install: impl FnOnce() -> Result<()>) -> Result<()> {
    let wanted = fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    if fs::read_to_string(marker).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    install()?;
    fs::write(marker, wanted).with_context(|| format!("cannot write {}", marker.display()))
}
