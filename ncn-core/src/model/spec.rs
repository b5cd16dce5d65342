//! What a manifest says of a model's inputs and outputs.

use serde::{Deserialize, Serialize};

use crate::{DataType, tensor::MAX_RANK};

/// Something that the model takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum InputSpec {
    /// Numbers.
    Tensor(TensorInput),
    /// Text.
    Text(TextInput),
    /// A file.
    File(FileInput),
}

impl Eq for InputSpec {}

impl InputSpec {
    /// The input's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Tensor(input) => &input.name,
            Self::Text(input) => &input.name,
            Self::File(input) => &input.name,
        }
    }
}

/// A tensor that the model takes, and in what other form a user may send it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorInput {
    /// The tensor's name.
    pub name: String,
    /// Its elements.
    pub dtype: DataType,
    /// Its dimensions.
    #[serde(deserialize_with = "crate::serial::at_most::<_, _, MAX_RANK>")]
    pub shape: Vec<Dimension>,
    /// What may be sent in the tensor's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Preprocessing>,
}

/// A text that the model takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextInput {
    /// Its name.
    pub name: String,
    /// True when it may be left out.
    #[serde(default, skip_serializing_if = "is_false")]
    pub optional: bool,
}

/// A file that the model takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileInput {
    /// Its name.
    pub name: String,
    /// The media types that are taken, such as `image/png`; none means any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub media_types: Vec<String>,
    /// True when it may be left out.
    #[serde(default, skip_serializing_if = "is_false")]
    pub optional: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Something that the model gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum OutputSpec {
    /// Numbers.
    Tensor(TensorOutput),
    /// Text. A model that streams gives it in parts, each following the one before.
    Text(NamedOutput),
    /// A file.
    File(NamedOutput),
}

impl OutputSpec {
    /// The output's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Tensor(output) => &output.name,
            Self::Text(output) | Self::File(output) => &output.name,
        }
    }
}

/// An output that is described by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedOutput {
    /// Its name.
    pub name: String,
}

/// A tensor that the model gives, and what is read off it for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorOutput {
    /// The tensor's name.
    pub name: String,
    /// Its elements.
    pub dtype: DataType,
    /// Its dimensions.
    #[serde(deserialize_with = "crate::serial::at_most::<_, _, MAX_RANK>")]
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
    /// A file of any type becomes one row of a batch: the first bytes of its beginning, then the last bytes of its end, where white
    /// space before the beginning and after the end does not count. What a short file lacks is padded, in the middle of the row.
    Bytes {
        /// How many bytes of the beginning.
        begin: usize,
        /// How many bytes of the end.
        end: usize,
        /// How many bytes of the file are looked at from either side.
        block: usize,
        /// What stands for a byte that is not there.
        padding: i32,
    },
    /// A text input becomes one row of a batch, by the package's tokenizer.
    Tokens {
        /// The text input's name.
        text: String,
        /// Which part of the tokenizer's answer.
        part: TokenPart,
    },
}

/// A part of what a tokenizer makes of a text: numbers, one for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TokenPart {
    /// Which tokens.
    Ids,
    /// 1 for each token.
    Mask,
    /// Which of several texts a token belongs to: 0.
    Types,
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
    /// The tensor `[batch, tokens, size]` is averaged over the tokens that a mask counts; the average `[batch, size]` is given in its
    /// place.
    Mean {
        /// What the average is called.
        name: String,
        /// The input tensor that counts: i64 `[batch, tokens]`, 1 for a token and 0 for padding.
        mask: String,
        /// True when each row is scaled to length 1.
        normalize: bool,
    },
}

/// How texts become tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerSpec {
    /// The package's file that describes it, in the format of Hugging Face's `tokenizer.json`.
    pub file: String,
    /// The most tokens that the model takes, special ones included.
    pub max_tokens: usize,
    /// True when a longer text is cut there; otherwise it is refused.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncate: bool,
}
