//! Reading model packages from disk.

use std::{collections::HashMap, fs::File, path::PathBuf, sync::Arc};

use ncn_core::{ExecutorError, Model, executor::ModelPackage};

/// A model package of which every file is what the manifest says.
pub struct Verified {
    /// What it is.
    pub model: Arc<Model>,
    /// Where its files are.
    pub directory: PathBuf,
    /// The entry's bytes: the very bytes that were verified, so that nothing can change between the check and the use.
    pub entry: Vec<u8>,
    /// The bytes of the tokenizer's file, when the manifest names one.
    pub tokenizer: Option<Vec<u8>>,
}

impl Verified {
    /// Reads and verifies a package.
    pub fn read(package: &ModelPackage) -> Result<Self, ExecutorError> {
        let manifest = package.model.manifest();
        let tokenizer = manifest.tokenizer.as_ref();
        let mut kept = HashMap::new();
        for file in &manifest.files {
            let keep = file.path == manifest.entry || tokenizer.is_some_and(|spec| spec.file == file.path);
            // Paths were checked when the manifest was parsed: relative, without `..`.
            let opened = File::open(package.directory.join(&file.path)).map_err(|error| file.invalid(error))?;
            let length = opened.metadata().map_err(|error| file.invalid(error))?.len();
            if let Some(bytes) = file.verify(opened, length, keep)? {
                kept.insert(file.path.as_str(), bytes);
            }
        }
        let tokenizer = tokenizer.map(|spec| kept.get(spec.file.as_str()).cloned().unwrap_or_default());
        let entry = kept.remove(manifest.entry.as_str());
        let entry = entry.ok_or_else(|| invalid(&manifest.entry, "is not among the package's files"))?;
        Ok(Self { model: package.model.clone(), directory: package.directory.clone(), entry, tokenizer })
    }
}

fn invalid(path: &str, problem: impl std::fmt::Display) -> ExecutorError {
    ExecutorError::InvalidModel(format!("{path}: {problem}"))
}
