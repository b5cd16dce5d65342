//! Making a package out of files and a draft of a manifest.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use ncn_core::{
    Model,
    executor::ModelPackage,
    model::{Manifest, ModelFile},
};
use serde_json::Value;

use super::{ModelStoreError, Result, layout};

/// The manifest's name in a package's directory.
pub const MANIFEST_FILE: &str = ModelPackage::MANIFEST;

/// Who made the package may have pointed it at what is not theirs to give away.
pub(super) const LINK: &str = "is a link: put the file itself there";

/// The most files that a manifest may list.
const MAX_FILES: usize = 256;

/// Completes the directory's `manifest.json`, or this draft of one: lists every other file with size and SHA-256, but for those
/// whose name begins with a dot, and writes the manifest into the directory when the whole is right. The same files and draft give the same digest, everywhere.
pub fn pack(directory: &Path, draft: Option<&Path>) -> Result<Model> {
    let target = directory.join(MANIFEST_FILE);
    let draft = draft.unwrap_or(&target);
    let refuse = |problem: String| ModelStoreError::package(draft, problem);
    let text = fs::read(draft).map_err(ModelStoreError::file(draft))?;
    let mut json: Value = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
    let fields = json.as_object_mut().ok_or_else(|| refuse("is no JSON object".into()))?;
    let mut paths = BTreeSet::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(inside) = directories.pop() {
        let path = directory.join(&inside);
        for entry in fs::read_dir(&path).map_err(ModelStoreError::file(&path))? {
            let entry = entry.map_err(ModelStoreError::file(&path))?;
            let (relative, path) = (inside.join(entry.file_name()), entry.path());
            let kind = entry.file_type().map_err(ModelStoreError::file(&path))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") || path == target {
                continue;
            }
            if kind.is_symlink() {
                return Err(ModelStoreError::package(path, LINK));
            }
            if kind.is_dir() {
                directories.push(relative);
            } else if kind.is_file() {
                paths.insert(relative);
            } else {
                return Err(ModelStoreError::package(path, "is no file: a package has files and directories"));
            }
            if paths.len() + directories.len() > MAX_FILES {
                return Err(ModelStoreError::package(
                    directory,
                    format!("has more than {MAX_FILES} files: name the package's own directory"),
                ));
            }
        }
    }
    let files = paths.iter().map(|path| listed(directory, path)).collect::<Result<Vec<_>>>()?;
    fields.insert("files".into(), serde_json::to_value(&files).map_err(|error| refuse(error.to_string()))?);
    // Through the type: its fields have an order, and what it does not know is refused.
    let manifest: Manifest = serde_json::from_value(json).map_err(|error| refuse(error.to_string()))?;
    let mut bytes = serde_json::to_vec_pretty(&manifest).map_err(|error| refuse(error.to_string()))?;
    bytes.push(b'\n');
    let model = Model::parse(bytes).map_err(|source| ModelStoreError::Manifest { path: draft.into(), source })?;
    if fs::read(&target).ok().as_deref() != Some(model.bytes()) {
        layout::write(&target, model.bytes(), 0o644)?;
    }
    Ok(model)
}

fn listed(directory: &Path, relative: &Path) -> Result<ModelFile> {
    let path = directory.join(relative);
    let plain = |part: &str| part.len() <= 64 && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let Some(name) = relative.to_str().filter(|name| name.split('/').all(plain)) else {
        return Err(ModelStoreError::package(path, "rename it: 1 to 64 letters, digits, `-`, `_` and `.`"));
    };
    let (bytes, sha256) = layout::hash(&path).map_err(ModelStoreError::file(path))?;
    Ok(ModelFile { path: name.into(), bytes, sha256 })
}
