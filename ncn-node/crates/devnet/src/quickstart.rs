//! The quickstart model, built in: it tells handwritten digits apart.

use std::{fs, io, path::Path, sync::Arc};

use bytes::Bytes;
use ncn_core::{ManifestError, Model, executor::ModelPackage};

/// What it is called.
pub const NAME: &str = "digits";
/// Its manifest.
pub const MANIFEST: &[u8] = include_bytes!("../../../models/digits/manifest.json");
/// Its only file.
const ONNX: &[u8] = include_bytes!("../../../models/digits/model.onnx");
/// An image of a seven, as someone wrote it.
pub const SAMPLE: &[u8] = include_bytes!("../../../../examples/data/7.png");

/// The model.
pub fn model() -> Result<Model, ManifestError> {
    Model::parse(Bytes::from_static(MANIFEST))
}

/// Puts the model's files into a directory.
pub fn unpack(directory: &Path) -> io::Result<ModelPackage> {
    let model = model().map_err(io::Error::other)?;
    fs::write(directory.join(&model.manifest().entry), ONNX)?;
    Ok(ModelPackage { model: Arc::new(model), directory: directory.to_path_buf() })
}
