//! Model packages on disk.

use std::{
    fmt::Display,
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::ExecutorError;
use crate::{Model, model::ModelFile};

/// The largest file of a model package that is read into memory.
const MAX_FILE_BYTES: u64 = 16 << 30;
/// How much of a file is hashed at a time.
const BUFFER: usize = 1 << 18;

/// A model package on disk: its manifest and the directory that holds the manifest's files.
#[derive(Clone, Debug)]
pub struct ModelPackage {
    /// What it is.
    pub model: Arc<Model>,
    /// Where its files are.
    pub directory: PathBuf,
}

impl ModelPackage {
    /// Verifies one of the manifest's files, and returns its bytes when they are to be kept: the very bytes that were verified.
    pub fn verify(&self, file: &ModelFile, keep: bool) -> Result<Option<Vec<u8>>, ExecutorError> {
        let broken = |error: io::Error| invalid(&file.path, error);
        if keep && file.bytes > MAX_FILE_BYTES {
            return Err(invalid(&file.path, format_args!("has {} bytes, at most {MAX_FILE_BYTES} are read", file.bytes)));
        }
        // Paths were checked when the manifest was parsed: relative, without `..`.
        let mut opened = File::open(self.directory.join(&file.path)).map_err(broken)?;
        // Found out before memory is set aside for what is not there.
        let length = opened.metadata().map_err(broken)?.len();
        let wrong_size =
            || invalid(&file.path, format_args!("is not of the {} bytes that the manifest says: fetch it again", file.bytes));
        if length != file.bytes {
            return Err(wrong_size());
        }
        let mut kept = Vec::new();
        if keep {
            let size = usize::try_from(length).map_err(|_| invalid(&file.path, "is larger than this machine's memory"))?;
            kept.try_reserve_exact(size).map_err(|error| invalid(&file.path, error))?;
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        let mut left = file.bytes;
        loop {
            let read = opened.read(&mut buffer).map_err(broken)?;
            let part = buffer.get(..read).unwrap_or_default();
            if part.is_empty() {
                break;
            }
            left = left.checked_sub(read as u64).ok_or_else(wrong_size)?;
            hasher.update(part);
            if keep {
                kept.extend_from_slice(part);
            }
        }
        if left > 0 {
            return Err(wrong_size());
        }
        if hasher.finalize().as_slice() != file.sha256.as_slice() {
            return Err(invalid(&file.path, "does not have the manifest's SHA-256: fetch it again"));
        }
        Ok(keep.then_some(kept))
    }
}

fn invalid(path: &str, problem: impl Display) -> ExecutorError {
    ExecutorError::InvalidModel(format!("{path}: {problem}"))
}
