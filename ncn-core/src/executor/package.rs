//! Model packages on disk.

use std::{fmt::Display, fs::File, io::Read, path::PathBuf, sync::Arc};

use sha2::{Digest as _, Sha256};

use super::ExecutorError;
use crate::{
    Model,
    model::{MAX_MANIFEST_BYTES, ModelFile},
};

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
    /// The name of the manifest in a package's directory.
    pub const MANIFEST: &str = "manifest.json";

    /// The package in this directory, which has its manifest in `manifest.json`. Its files are not looked at: executors verify what they load.
    /// Blocks.
    ///
    /// # Errors
    /// [`ExecutorError::InvalidModel`] when there is no manifest, or one that is refused.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, ExecutorError> {
        let directory = directory.into();
        let path = directory.join(Self::MANIFEST);
        let refuse = |problem: String| ExecutorError::InvalidModel(format!("{}: {problem}", path.display()));
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(|error| refuse(error.to_string()))?;
        file.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| refuse(error.to_string()))?;
        let model = Model::parse(bytes).map_err(|error| refuse(error.to_string()))?;
        Ok(Self { model: Arc::new(model), directory })
    }
}

impl ModelFile {
    /// Reads the file's content and verifies it; returns it when it is to be kept: the very bytes that were verified. `length` is how many
    /// bytes there are to be read, found out before memory is set aside for what is not there. Blocks.
    pub fn verify(&self, mut content: impl Read, length: u64, keep: bool) -> Result<Option<Vec<u8>>, ExecutorError> {
        if keep && self.bytes > MAX_FILE_BYTES {
            return Err(self.invalid(format_args!("has {} bytes, at most {MAX_FILE_BYTES} are read", self.bytes)));
        }
        let wrong_size = || self.invalid(format_args!("is not of the {} bytes that the manifest says: fetch it again", self.bytes));
        if length != self.bytes {
            return Err(wrong_size());
        }
        let mut kept = Vec::new();
        if keep {
            let size = usize::try_from(length).map_err(|_| self.invalid("is larger than this machine's memory"))?;
            kept.try_reserve_exact(size).map_err(|error| self.invalid(error))?;
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        let mut left = self.bytes;
        loop {
            let read = content.read(&mut buffer).map_err(|error| self.invalid(error))?;
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
        if hasher.finalize().as_slice() != self.sha256.as_slice() {
            return Err(self.invalid("does not have the manifest's SHA-256: fetch it again"));
        }
        Ok(keep.then_some(kept))
    }

    /// Why the file is not the package's.
    pub fn invalid(&self, problem: impl Display) -> ExecutorError {
        ExecutorError::InvalidModel(format!("{}: {problem}", self.path))
    }
}
