//! Reading model packages from disk.

use std::{fs::File, io::Read as _};

use ncn_core::{ExecutorError, executor::ModelPackage, model::ModelFile};
use sha2::{Digest as _, Sha256};

/// The largest file of a model package that is read into memory.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// Verifies every file of the package against its manifest, and returns the entry's bytes: the very bytes that were verified, so
/// that nothing can change between the check and the use.
pub(super) fn verified_entry(package: &ModelPackage) -> Result<Vec<u8>, ExecutorError> {
    let manifest = package.model.manifest();
    let mut entry = None;
    for file in &manifest.files {
        let bytes = verified(package, file)?;
        if file.path == manifest.entry {
            entry = Some(bytes);
        }
    }
    entry.ok_or_else(|| ExecutorError::InvalidModel(format!("{}: is not among the package's files", manifest.entry)))
}

fn verified(package: &ModelPackage, file: &ModelFile) -> Result<Vec<u8>, ExecutorError> {
    let invalid = |problem: String| ExecutorError::InvalidModel(format!("{}: {problem}", file.path));
    if file.bytes > MAX_FILE_BYTES {
        return Err(invalid(format!("has {} bytes, at most {MAX_FILE_BYTES} are read", file.bytes)));
    }
    // Paths were checked when the manifest was parsed: relative, without `..`.
    let opened = File::open(package.directory.join(&file.path)).map_err(|error| invalid(error.to_string()))?;
    let mut bytes = Vec::new();
    // One byte more than promised is enough to see that there is more.
    opened.take(file.bytes + 1).read_to_end(&mut bytes).map_err(|error| invalid(error.to_string()))?;
    if bytes.len() as u64 != file.bytes {
        return Err(invalid(format!("is not of the {} bytes that the manifest says: fetch it again", file.bytes)));
    }
    if Sha256::digest(&bytes).as_slice() != file.sha256.as_slice() {
        return Err(invalid("does not have the manifest's SHA-256: fetch it again".into()));
    }
    Ok(bytes)
}
