//! Model packages: a manifest that says what a model takes, gives and costs, and files that it names by their SHA-256.
//!
//! What turns an image into a tensor, or scores into a label, is part of the package. [`Manifest::prepare`] is run by the client
//! and the gateway to refuse bad input before money moves, and by the worker to feed the model: one function, one meaning.

mod image;

use std::collections::BTreeMap;

use alloy_primitives::B256;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Amount, DataType, Tensor, Value, Values};

/// The most bytes that a manifest may have.
pub const MAX_MANIFEST_BYTES: usize = 1 << 20;
/// The most inputs, outputs or files that a manifest may list.
const MAX_ENTRIES: usize = 256;

/// A parsed manifest together with the exact bytes it was read from, whose SHA-256 is the model's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    digest: B256,
    bytes: Bytes,
    manifest: Manifest,
}

impl Model {
    /// Reads and checks a manifest.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, ManifestError> {
        let bytes = bytes.into();
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| ManifestError::Syntax(error.to_string()))?;
        manifest.validate()?;
        Ok(Self { digest: B256::new(Sha256::digest(&bytes).into()), bytes, manifest })
    }

    /// SHA-256 of the manifest: what requests, results and receipts call the model.
    pub const fn digest(&self) -> B256 {
        self.digest
    }

    /// The manifest as it was read.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What it says.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// What a model is, takes, gives, needs and costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What people call it.
    pub name: String,
    /// The package's version.
    pub version: String,
    /// What it is for, such as `image-classification`.
    pub task: String,
    /// One line about it.
    pub description: String,
    /// An SPDX expression.
    pub licence: String,
    /// Which kind of engine runs it.
    pub format: ModelFormat,
    /// The file that the engine opens.
    pub entry: String,
    /// Every file of the package but the manifest.
    pub files: Vec<ModelFile>,
    /// What the model takes.
    pub inputs: Vec<InputSpec>,
    /// What the model gives.
    pub outputs: Vec<OutputSpec>,
    /// What it may use.
    pub limits: Limits,
    /// What one request costs.
    pub price: Amount,
}

/// Which kind of engine runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ModelFormat {
    /// An ONNX graph.
    Onnx,
    /// No model at all: outputs are the inputs. For tests of everything around a model.
    Echo,
}

/// A file of a model package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Relative to the package, with `/` between its parts.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, 64 hexadecimal digits.
    #[serde(with = "plain_hex")]
    pub sha256: B256,
}

/// A tensor that the model takes, and in what other form a user may send it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    /// The tensor's name.
    pub name: String,
    /// Its elements.
    pub dtype: DataType,
    /// Its dimensions.
    pub shape: Vec<Dimension>,
    /// What may be sent in the tensor's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Preprocessing>,
}

impl Eq for InputSpec {}

/// A tensor that the model gives, and what is read off it for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// The tensor's name.
    pub name: String,
    /// Its elements.
    pub dtype: DataType,
    /// Its dimensions.
    pub shape: Vec<Dimension>,
    /// What is read off it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Postprocessing>,
}

/// The size of a dimension: a number, or a name for a size that the input decides. The same name is the same size everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dimension {
    /// Always this.
    Fixed(usize),
    /// As the input has it, at least 1.
    Named(String),
}

/// How something else becomes a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Preprocessing {
    /// A PNG of exactly this size becomes one row of a batch: each value is `pixel * scale + offset`, pixel in 0..=255.
    Image {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
        /// Which colours the tensor has.
        mode: ImageMode,
        /// See above.
        scale: f32,
        /// See above.
        offset: f32,
    },
}

/// Which colours an image tensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ImageMode {
    /// One channel of brightness; colours are weighted 299 : 587 : 114, transparency is ignored.
    Gray,
}

/// What is read off an output tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Postprocessing {
    /// The last dimension scores these labels. The best label of a batch of one is given as the text `label`; of a larger batch, as
    /// `label.0`, `label.1` and so on.
    Labels(Vec<String>),
}

/// What a model may use for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The worker's memory.
    pub memory_bytes: u64,
    /// Wall-clock time.
    pub deadline_ms: u64,
}

/// Why a manifest is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// More than [`MAX_MANIFEST_BYTES`].
    #[error("manifest: {0} bytes, at most {MAX_MANIFEST_BYTES} are read")]
    TooLarge(usize),
    /// No JSON, or not a manifest's.
    #[error("manifest: {0}")]
    Syntax(String),
    /// A field makes no sense.
    #[error("manifest: {field}: {problem}")]
    Field {
        /// Which.
        field: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// Why inputs (or a model's outputs) are refused. Says which and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}`: {problem}")]
pub struct InputError {
    /// The input's name.
    pub name: String,
    /// What is wrong and what to do.
    pub problem: String,
}

fn input_error(name: &str, problem: impl Into<String>) -> InputError {
    InputError { name: name.into(), problem: problem.into() }
}

impl Manifest {
    fn validate(&self) -> Result<(), ManifestError> {
        let field = |field: &str, problem: &str| Err(ManifestError::Field { field: field.into(), problem: problem.into() });
        let simple = |text: &str| {
            !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !simple(&self.name) {
            return field("name", "use 1 to 64 letters, digits, `-`, `_` and `.`");
        }
        if !simple(&self.version) {
            return field("version", "use 1 to 64 letters, digits, `-`, `_` and `.`");
        }
        if self.price.is_zero() {
            return field("price", "an escrow needs an amount above zero");
        }
        if self.limits.deadline_ms == 0 {
            return field("limits.deadline_ms", "a model needs time to run");
        }
        if self.inputs.is_empty() || self.inputs.len() > MAX_ENTRIES {
            return field("inputs", "list 1 to 256 inputs");
        }
        if self.outputs.is_empty() || self.outputs.len() > MAX_ENTRIES || self.files.len() > MAX_ENTRIES {
            return field("outputs", "list 1 to 256 outputs, and at most 256 files");
        }
        for file in &self.files {
            let inside = file.path.split('/').all(|part| simple(part) && !part.starts_with('.'));
            if !inside {
                return field("files.path", "use a relative path of plain names, without `..`");
            }
        }
        if self.format != ModelFormat::Echo && !self.files.iter().any(|file| file.path == self.entry) {
            return field("entry", "name one of the files");
        }
        let mut names: Vec<_> = self.inputs.iter().map(|input| &input.name).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() != self.inputs.len() {
            return field("inputs", "each name once");
        }
        for input in &self.inputs {
            if let Some(Preprocessing::Image { width, height, .. }) = &input.from {
                let fits = match input.shape.as_slice() {
                    [_, Dimension::Fixed(1), Dimension::Fixed(h), Dimension::Fixed(w)] => {
                        usize::try_from(*width) == Ok(*w) && usize::try_from(*height) == Ok(*h)
                    }
                    _ => false,
                };
                if !fits || input.dtype != DataType::F32 || *width > image::MAX_SIDE || *height > image::MAX_SIDE {
                    return field("inputs.from.image", "takes an f32 tensor [batch, 1, height, width], sides up to 16384");
                }
            }
        }
        let mut names: Vec<_> = self.outputs.iter().map(|output| output.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair.first() == pair.last()) || names.iter().any(|name| name.starts_with("label")) {
            return field("outputs", "each name once, and none that starts with `label`, which is what labels are given as");
        }
        for output in &self.outputs {
            if let Some(Postprocessing::Labels(labels)) = &output.to
                && (output.shape.last() != Some(&Dimension::Fixed(labels.len())) || output.dtype != DataType::F32)
            {
                return field("outputs.to.labels", "takes an f32 tensor whose last dimension is the number of labels");
            }
        }
        Ok(())
    }

    /// Turns a user's inputs into the model's tensors, or says which input is wrong and what to do.
    pub fn prepare(&self, inputs: &Values) -> Result<BTreeMap<String, Tensor>, InputError> {
        let known = || self.inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ");
        if let Some((name, _)) = inputs.iter().find(|(name, _)| !self.inputs.iter().any(|input| input.name == *name)) {
            return Err(input_error(name, format!("the model `{}` has no such input; it takes: {}", self.name, known())));
        }
        let mut named = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for spec in &self.inputs {
            let name = spec.name.as_str();
            let value =
                inputs.get(name).ok_or_else(|| input_error(name, format!("missing; the model `{}` needs it", self.name)))?;
            let tensor = match (value, &spec.from) {
                (Value::Tensor(tensor), _) => tensor.clone(),
                (Value::File { media_type, data }, Some(Preprocessing::Image { width, height, mode, scale, offset })) => {
                    if media_type != "image/png" {
                        return Err(input_error(name, format!("is `{media_type}`; send it as image/png")));
                    }
                    image::to_tensor(data, (*width, *height), *mode, *scale, *offset)
                        .map_err(|problem| input_error(name, problem))?
                }
                (_, Some(Preprocessing::Image { width, height, .. })) => {
                    return Err(input_error(name, format!("send a PNG of {width}x{height} pixels, or the tensor itself")));
                }
                (_, None) => return Err(input_error(name, format!("send a tensor of {}", spec.dtype))),
            };
            check(name, &tensor, spec.dtype, &spec.shape, &mut named)?;
            tensors.insert(spec.name.clone(), tensor);
        }
        Ok(tensors)
    }

    /// Checks what a model gave against what the manifest promises, and adds what is read off it.
    pub fn finish(&self, mut outputs: BTreeMap<String, Tensor>) -> Result<Values, InputError> {
        let mut named = BTreeMap::new();
        let mut values = Values::new();
        for spec in &self.outputs {
            let name = spec.name.as_str();
            let tensor = outputs.remove(name).ok_or_else(|| input_error(name, "the model did not give this output"))?;
            check(name, &tensor, spec.dtype, &spec.shape, &mut named)?;
            if let Some(Postprocessing::Labels(labels)) = &spec.to {
                let scores = tensor.to_f32().map_err(|error| input_error(name, error.to_string()))?;
                let rows: Vec<_> = scores.chunks_exact(labels.len().max(1)).collect();
                for (index, row) in rows.iter().enumerate() {
                    let best = row.iter().zip(labels).max_by(|(a, _), (b, _)| a.total_cmp(b));
                    let (_, label) = best.ok_or_else(|| input_error(name, "has no scores"))?;
                    let key = if rows.len() == 1 { "label".into() } else { format!("label.{index}") };
                    values.insert(key, label.as_str());
                }
            }
            values.insert(name, tensor);
        }
        Ok(values)
    }
}

fn check<'a>(
    name: &str,
    tensor: &Tensor,
    dtype: DataType,
    shape: &'a [Dimension],
    named: &mut BTreeMap<&'a str, usize>,
) -> Result<(), InputError> {
    if tensor.data_type() != dtype {
        return Err(input_error(name, format!("holds {}, it has to hold {dtype}", tensor.data_type())));
    }
    let fits = tensor.shape().len() == shape.len()
        && shape.iter().zip(tensor.shape()).all(|(expected, actual)| match expected {
            Dimension::Fixed(size) => size == actual,
            Dimension::Named(size) => *actual > 0 && named.entry(size).or_insert(*actual) == actual,
        });
    if fits {
        Ok(())
    } else {
        let wanted: Vec<_> = shape
            .iter()
            .map(|dimension| match dimension {
                Dimension::Fixed(size) => size.to_string(),
                Dimension::Named(size) => size.clone(),
            })
            .collect();
        Err(input_error(name, format!("has the shape {:?}, it has to be [{}]", tensor.shape(), wanted.join(", "))))
    }
}

mod plain_hex {
    use alloy_primitives::B256;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(hash: &B256, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(hash))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<B256, D::Error> {
        let mut hash = B256::ZERO;
        hex::decode_to_slice(String::deserialize(deserializer)?, hash.as_mut_slice()).map_err(D::Error::custom)?;
        Ok(hash)
    }
}

#[cfg(test)]
mod tests;
