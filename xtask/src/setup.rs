//! Installs what the tests need, pinned, and only when it is not there yet.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{root, watch::run};

/// The contracts' compiler and libraries, as their lock file has them.
pub(crate) fn contracts() -> Result<()> {
    npm_ci(&root().join("contracts"))
}

/// The packages of a directory, as its lock file has them.
pub(crate) fn npm_ci(directory: &Path) -> Result<()> {
    once(&directory.join("node_modules/.installed"), &directory.join("package-lock.json"), || {
        run("npm", &["ci", "--no-audit", "--no-fund", "--ignore-scripts"], directory)
    })
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

/// A browser without a window, and what drives it: Debian's, whose packages are signed and whose releases have one version of them each.
pub(crate) fn browser() -> Result<()> {
    if answers("chromium") && answers("chromedriver") {
        return Ok(());
    }
    apt(&["chromium", "chromium-driver"])
}

pub(crate) fn answers(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Installs Debian's packages.
pub(crate) fn apt(packages: &[&str]) -> Result<()> {
    let install = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    let installed = run("apt-get", &["update"], &root()).and_then(|()| run("apt-get", &install, &root()));
    installed.with_context(|| format!("install these, which tests need: {}", packages.join(", ")))
}

/// How an interpreter installs packages.
pub(crate) const INSTALL: [&str; 5] = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];

/// A virtual environment in target/ with these packages; returns its interpreter.
pub(crate) fn environment(name: &str, requirements: &str, options: &[&str]) -> Result<PathBuf> {
    environment_of(Path::new("python3"), name, requirements, options)
}

/// The same, of this interpreter.
pub(crate) fn environment_of(base: &Path, name: &str, requirements: &str, options: &[&str]) -> Result<PathBuf> {
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
pub(crate) fn once(marker: &Path, list: &Path, install: impl FnOnce() -> Result<()>) -> Result<()> {
    let wanted = fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    if fs::read_to_string(marker).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    install()?;
    fs::write(marker, wanted).with_context(|| format!("cannot write {}", marker.display()))
}
