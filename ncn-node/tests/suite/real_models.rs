//! Real models, as `cargo xtask models` fetched them.

use std::{env, path::PathBuf};

/// The directory of a fetched package.
pub(crate) fn directory(name: &str) -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").unwrap_or_else(|| env::home_dir().unwrap().join(".cache")).join("ncn/test-models");
    let package = set("NCN_TEST_MODELS").unwrap_or_else(cache).join(name);
    assert!(package.join("manifest.json").exists(), "{} is not there: run `cargo xtask models` first", package.display());
    package
}
