//! Reading model packages from disk.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use ncn_core::{ExecutorError, Model, executor::ModelPackage, model::Tokenize};

use super::tokenizer::Tokenizer;

/// A model package of which every file is what the manifest says.
pub struct Verified {
    /// What it is.
    pub model: Arc<Model>,
    /// Where its files are.
    pub directory: PathBuf,
    /// The entry's bytes: the very bytes that were verified, so that nothing can change between the check and the use.
    pub entry: Vec<u8>,
    /// The package's tokenizer, when the manifest names one.
    pub tokenizer: Option<Box<dyn Tokenize>>,
}

impl Verified {
    /// Reads and verifies a package.
    pub fn read(package: &ModelPackage) -> Result<Self, ExecutorError> {
        let manifest = package.model.manifest();
        let tokenizer = manifest.tokenizer.as_ref();
        let mut kept = HashMap::new();
        for file in &manifest.files {
            let keep = file.path == manifest.entry || tokenizer.is_some_and(|spec| spec.file == file.path);
            if let Some(bytes) = package.verify(file, keep)? {
                kept.insert(file.path.as_str(), bytes);
            }
        }
        let tokenizer = match tokenizer {
            Some(spec) => {
                let bytes = kept.get(spec.file.as_str()).map(Vec::as_slice).unwrap_or_default();
                Some(Box::new(Tokenizer::new(bytes, spec)?) as Box<dyn Tokenize>)
            }
            None => None,
        };
        let entry = kept.remove(manifest.entry.as_str());
        let entry = entry.ok_or_else(|| invalid(&manifest.entry, "is not among the package's files"))?;
        Ok(Self { model: package.model.clone(), directory: package.directory.clone(), entry, tokenizer })
    }
}

fn invalid(path: &str, problem: impl std::fmt::Display) -> ExecutorError {
    ExecutorError::InvalidModel(format!("{path}: {problem}"))
}
