//! Model packages: a manifest that says what a model takes, gives and costs, and files that it names by their SHA-256.
//!
//! What turns an image or a text into tensors, or scores into a label, is part of the package. [`Manifest::check`] is run by the client
//! and the gateway to refuse bad input before money moves, [`Manifest::prepare`] by the worker to feed the model: the first is the
//! second without the package's files, so the two cannot disagree.

mod bytes;
mod delivered;
mod generation;
mod image;
mod io;
mod spec;
mod units;

use std::sync::Arc;

use ::bytes::Bytes;
use alloy_primitives::B256;
pub use generation::{ChatMessage, ChatRole, GenerationParameters, conversation};
pub use io::{ParameterSet, Tensors, Tokenize, Tokens};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
pub use spec::{
    Dimension, FileInput, ImageMode, InputSpec, NamedOutput, OutputSpec, Postprocessing, Preprocessing, TensorInput, TensorOutput,
    TextInput, TokenPart, TokenizerSpec,
};

pub use units::{ManifestPrice, PriceByUse};

use crate::{DataType, compute::MAX_OUTPUT_BYTES};

/// The most bytes that a manifest may have.
pub const MAX_MANIFEST_BYTES: usize = 1 << 20;
/// The most inputs, outputs or files that a manifest may list.
const MAX_ENTRIES: usize = 256;
/// The most requests that are run together.
const MAX_BATCH: u32 = 1_024;

/// A parsed manifest together with the exact bytes it was read from, whose SHA-256 is the model's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    digest: B256,
    bytes: Bytes,
    manifest: Arc<Manifest>,
}

/// As its manifest's own text: its digest is that text's.
impl Serialize for Model {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(str::from_utf8(&self.bytes).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
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
        Ok(Self { digest: B256::new(Sha256::digest(&bytes).into()), bytes, manifest: Arc::new(manifest) })
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
    pub fn manifest(&self) -> &Manifest {
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
    /// The file that the engine opens; for [`ModelFormat::OpenAi`], what the engine calls the model.
    pub entry: String,
    /// Every file of the package but the manifest.
    pub files: Vec<ModelFile>,
    /// What the model takes.
    pub inputs: Vec<InputSpec>,
    /// What the model gives.
    pub outputs: Vec<OutputSpec>,
    /// How texts become tokens, for tensors that are made of tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerSpec>,
    /// What it may use.
    pub limits: Limits,
    /// What a request costs: see [`Manifest::price`].
    pub price: ManifestPrice,
}

/// Which kind of engine runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ModelFormat {
    /// An ONNX graph.
    Onnx,
    /// A language model in GGUF, which generates text.
    Gguf,
    /// A Python module with `load(model_dir)` and `infer(inputs)`.
    Python,
    /// A model that an engine with OpenAI's HTTP interface runs elsewhere.
    OpenAi,
    /// No model at all: outputs are the inputs. For tests of everything around a model.
    Echo,
}

impl ModelFormat {
    /// Those of real models.
    pub const RUN: [Self; 4] = [Self::Onnx, Self::Gguf, Self::Python, Self::OpenAi];
}

/// As manifests have it.
impl std::fmt::Display for ModelFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Onnx => "onnx",
            Self::Gguf => "gguf",
            Self::Python => "python",
            Self::OpenAi => "openai",
            Self::Echo => "echo",
        })
    }
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

/// What a model may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The memory of a worker, which runs the model for many requests, beside at most 256 MiB for its program and 16 MiB of stacks for each
    /// processor.
    pub memory_bytes: u64,
    /// Wall-clock time of one request.
    pub deadline_ms: u64,
    /// Processor time of a worker, after which another one takes its place; unlimited by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<u64>,
    /// The most units of input that a request is charged for; by default as many as its inputs can have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input_units: Option<u64>,
    /// The most units of output that a request is charged for; by default as many as its parameters and inputs lead to. A price for units
    /// that nothing else bounds needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_units: Option<u64>,
    /// How many threads compute one request; the node decides by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// How many requests that arrive together may be run together, as rows of one batch; 1 by default. Then the first dimension of
    /// every tensor has to be one name, the batch's size. What a request gives may then differ in its last digits with its company.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub batch: u32,
}

const fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_one(batch: &u32) -> bool {
    *batch == 1
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

fn field(field: &str, problem: &str) -> Result<(), ManifestError> {
    Err(ManifestError::Field { field: field.into(), problem: problem.into() })
}

impl Manifest {
    fn validate(&self) -> Result<(), ManifestError> {
        let simple = |text: &str| {
            !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !simple(&self.name) {
            return field("name", "use 1 to 64 letters, digits, `-`, `_` and `.`");
        }
        if !simple(&self.version) {
            return field("version", "use 1 to 64 letters, digits, `-`, `_` and `.`");
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
        let opens_entry = !matches!(self.format, ModelFormat::Echo | ModelFormat::OpenAi);
        if opens_entry && !self.files.iter().any(|file| file.path == self.entry) {
            return field("entry", "name one of the files");
        }
        if let Some(tokenizer) = &self.tokenizer
            && (!self.files.iter().any(|file| file.path == tokenizer.file) || tokenizer.max_tokens == 0)
        {
            return field("tokenizer", "name one of the files, and a limit of at least 1 token");
        }
        let Limits { batch, threads, cpu_seconds, .. } = self.limits;
        if batch == 0 || batch > MAX_BATCH || threads == Some(0) || cpu_seconds == Some(0) {
            return field("limits", "batch is 1 to 1024, threads and cpu_seconds at least 1");
        }
        self.validate_names()?;
        self.validate_inputs()?;
        self.validate_outputs()?;
        self.validate_price()?;
        if batch > 1 && !self.is_batched() {
            return field("limits.batch", "needs tensors only, whose first dimension is one and the same name");
        }
        Ok(())
    }

    /// True when requests can be run together as rows of one batch.
    fn is_batched(&self) -> bool {
        let mut first = self.inputs.iter().filter_map(|input| match input {
            InputSpec::Tensor(tensor) => Some(tensor.shape.first()),
            // A text that tensors are made of is no tensor of the engine's.
            _ => None,
        });
        let Some(Some(Dimension::Named(batch))) = first.next() else { return false };
        let is_batch = |dimension: Option<&Dimension>| matches!(dimension, Some(Dimension::Named(name)) if name == batch);
        first.all(is_batch)
            && self.outputs.iter().all(|output| matches!(output, OutputSpec::Tensor(tensor) if is_batch(tensor.shape.first())))
    }

    /// Names that people are shown, and engines are asked for.
    fn validate_names(&self) -> Result<(), ManifestError> {
        let names = self.inputs.iter().map(InputSpec::name).chain(self.outputs.iter().map(OutputSpec::name));
        for name in names {
            if name.is_empty() || name.chars().any(char::is_control) {
                return field("inputs.name, outputs.name", "is some text, without control characters");
            }
        }
        Ok(())
    }

    fn validate_inputs(&self) -> Result<(), ManifestError> {
        let mut names: Vec<_> = self.inputs.iter().map(InputSpec::name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair.first() == pair.last()) {
            return field("inputs", "each name once");
        }
        for input in &self.inputs {
            let InputSpec::Tensor(input) = input else { continue };
            match (&input.from, input.shape.as_slice()) {
                (None, _) => {}
                (Some(Preprocessing::Image { width, height, .. }), shape) => {
                    let fits = match shape {
                        [_, Dimension::Fixed(1), Dimension::Fixed(h), Dimension::Fixed(w)] => {
                            usize::try_from(*width) == Ok(*w) && usize::try_from(*height) == Ok(*h)
                        }
                        _ => false,
                    };
                    if !fits || input.dtype != DataType::F32 || !image::is_size(*width, *height) {
                        return field(
                            "inputs.from.image",
                            "takes an f32 tensor [batch, 1, height, width] of up to 16777216 pixels",
                        );
                    }
                }
                (Some(Preprocessing::Bytes { begin, end, block, .. }), shape) => {
                    let most = [*begin, *end, *block].into_iter().max();
                    let fits =
                        most <= Some(bytes::MAX_BYTES) && matches!(shape, [_, Dimension::Fixed(size)] if *size == begin + end);
                    if !fits || input.dtype != DataType::I32 {
                        return field("inputs.from.bytes", "takes an i32 tensor [batch, begin + end], at most 1048576 bytes each");
                    }
                }
                (Some(Preprocessing::Tokens { text, .. }), shape) => {
                    let named = self.inputs.iter().any(|input| matches!(input, InputSpec::Text(input) if input.name == *text));
                    if !named || self.tokenizer.is_none() || shape.len() != 2 || input.dtype != DataType::I64 {
                        return field("inputs.from.tokens", "takes an i64 tensor [batch, tokens], a text input, and a `tokenizer`");
                    }
                }
            }
        }
        Ok(())
    }

    fn validate_outputs(&self) -> Result<(), ManifestError> {
        let given = |output: &OutputSpec| match output {
            OutputSpec::Tensor(TensorOutput { to: Some(Postprocessing::Mean { name, .. }), .. }) => name.clone(),
            output => output.name().to_owned(),
        };
        let mut names: Vec<_> = self.outputs.iter().map(given).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair.first() == pair.last()) {
            return field("outputs", "each name once");
        }
        for output in &self.outputs {
            let OutputSpec::Tensor(output) = output else { continue };
            // Found here, and not by each request that has paid. A mean takes the tensor's place.
            let is_given = !matches!(output.to, Some(Postprocessing::Mean { .. }));
            let least = least_bytes(&output.shape, output.dtype);
            if is_given && least.is_none_or(|least| least > MAX_OUTPUT_BYTES) {
                return field("outputs.shape", "leads to no more bytes than an output has at most, 8388608");
            }
            match &output.to {
                None => {}
                Some(Postprocessing::Labels(labels)) => {
                    if output.shape.last() != Some(&Dimension::Fixed(labels.len())) || output.dtype != DataType::F32 {
                        return field("outputs.to.labels", "takes an f32 tensor whose last dimension is the number of labels");
                    }
                    if names.iter().any(|name| name.starts_with("label")) {
                        return field("outputs", "no name that starts with `label`, which is what labels are given as");
                    }
                }
                Some(Postprocessing::Mean { mask, .. }) => {
                    let counted = self.inputs.iter().any(
                        |input| matches!(input, InputSpec::Tensor(input) if input.name == *mask && input.dtype == DataType::I64),
                    );
                    if !counted || output.shape.len() != 3 || output.dtype != DataType::F32 {
                        return field("outputs.to.mean", "takes an f32 tensor [batch, tokens, size] and an i64 input as its mask");
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a tensor of this shape takes at least; none when that is more than can be said.
fn least_bytes(shape: &[Dimension], dtype: DataType) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |bytes, dimension| match dimension {
        Dimension::Fixed(size) => bytes.checked_mul(*size),
        Dimension::Named(_) => Some(bytes),
    })
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
