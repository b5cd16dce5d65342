use serde::Deserialize;

/// A chunk of a streamed answer.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    /// In place of everything else.
    pub(super) error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    index: Option<u32>,
    /// Of a completion.
    text: Option<String>,
    /// Of a chat completion.
    delta: Option<Delta>,
    /// The same, of an engine that does not stream.
    message: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<String>,
}

/// How many tokens the engine says that it counted; some say it in each chunk, and know nothing until the last.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

/// How many tokens the engine counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

impl Usage {
    fn counted(self) -> Option<Counted> {
        Some(Counted { prompt_tokens: self.prompt_tokens?, completion_tokens: self.completion_tokens.unwrap_or(0) })
    }
}

/// Why an engine does not do what it was asked to. Engines differ in where they put it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Refusal {
    /// With details.
    Detailed {
        /// What is wrong.
        message: String,
        /// The status, when it is a number.
        code: Option<serde_json::Value>,
    },
    /// What is wrong.
    Plain(String),
}

/// A refusal as the body of a response.
#[derive(Debug, Deserialize)]
pub(super) struct Refused {
    pub(super) error: Refusal,
}

/// The models that an engine has.
#[derive(Debug, Deserialize)]
pub(super) struct Models {
    pub(super) data: Vec<ModelEntry>,
}

/// One of them.
#[derive(Debug, Deserialize)]
pub(super) struct ModelEntry {
    pub(super) id: String,
}

/// Vectors, with what they took.
#[derive(Debug, Deserialize)]
pub(super) struct Embeddings {
    data: Vec<Embedded>,
    usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
struct Embedded {
    embedding: Vec<f32>,
}

const NOT_COUNTED: &str = "it counted no tokens (`usage`), and payment follows the count";

impl Embeddings {
    /// The one vector, and how many tokens went into it.
    pub(super) fn first(self) -> Result<(Vec<f32>, Counted), &'static str> {
        let counted = self.usage.and_then(Usage::counted).filter(|counted| counted.prompt_tokens > 0).ok_or(NOT_COUNTED)?;
        match <[Embedded; 1]>::try_from(self.data) {
            Ok([Embedded { embedding }]) => Ok((embedding, counted)),
            Err(_) => Err("for one text it gave another number of vectors"),
        }
    }
}

/// What is known of an answer so far.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The text's length.
    pub(super) bytes: usize,
    reason: Option<String>,
    counted: Option<Counted>,
    /// How many chunks had text: each has a token at least.
    chunks: u64,
}

impl Answer {
    /// What was counted so far. Most engines count at the end only: until then, each chunk is one token, and the prompt is none.
    pub(super) fn counted(&self) -> Counted {
        self.counted.unwrap_or(Counted { prompt_tokens: 0, completion_tokens: self.chunks })
    }

    /// Takes a chunk in and returns its text.
    pub(super) fn add(&mut self, chunk: Chunk) -> String {
        self.counted = chunk.usage.and_then(Usage::counted).or(self.counted);
        let mut text = String::new();
        for choice in chunk.choices.into_iter().flatten().filter(|choice| choice.index.is_none_or(|index| index == 0)) {
            text.extend(choice.text);
            text.extend(choice.delta.or(choice.message).and_then(|delta| delta.content));
            self.reason = choice.finish_reason.or(self.reason.take());
        }
        self.bytes += text.len();
        self.chunks += u64::from(!text.is_empty());
        text
    }

    /// Whether the engine has said that the text ends.
    pub(super) const fn has_end(&self) -> bool {
        self.reason.is_some()
    }

    /// Why the text ends, and what it took; or what is missing.
    pub(super) fn end(&self) -> Result<(&str, Counted), &'static str> {
        let reason = self.reason.as_deref().ok_or("it did not say why the text ends (`finish_reason`)")?;
        let plausible = |counted: &Counted| counted.prompt_tokens > 0 && (counted.completion_tokens > 0 || self.bytes == 0);
        let counted = self.counted.filter(plausible).ok_or(NOT_COUNTED)?;
        // A text may be at its end at once, which is one token.
        if self.bytes == 0 && counted.completion_tokens > 1 {
            return Err("it counted tokens and gave no text");
        }
        Ok((reason, counted))
    }
}
