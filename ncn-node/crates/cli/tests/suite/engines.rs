//! Engines that packages ship, where `cargo xtask setup` has put them.

use std::path::PathBuf;

use crate::scene::repository;

/// A Python interpreter that has ONNX Runtime and llama.cpp.
pub(crate) fn python() -> PathBuf {
    let python = repository("target/engines/bin/python");
    assert!(python.exists(), "{} is not there: run `cargo xtask setup` first", python.display());
    python
}
