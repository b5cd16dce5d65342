//! Text generation from GGUF files, on the processor.
//!
//! A [`Generator`] is a file, opened: a model of the `llama` architecture, its tokenizer and its chat template. Whatever number of
//! threads it works with, the same prompt and [`Settings`] give the same text on one machine, bit for bit.
//!
//! A file is not trusted: one that lies about itself is refused with a [`GgufError`] before memory is taken for what it claims.
//!
//! This is a crate of its own because its loops have to be optimised in debug builds too, which cargo decides crate by crate.

mod cache;
mod floats;
mod generate;
mod header;
mod kernel;
#[cfg(test)]
#[allow(dead_code, reason = "the tests of the whole use more of it")]
#[path = "../tests/suite/made.rs"]
#[allow(clippy::cast_possible_truncation, reason = "a small file")]
mod made;
mod matrix;
mod model;
mod prompt;
mod sampler;
mod settings;
mod text;
mod tokenizer;

pub use generate::{Finish, Generated, Generator};
pub use prompt::{Message, Prompt};
pub use settings::Settings;

/// Why a GGUF file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// It is no GGUF file, or not a whole one.
    #[error("{0}")]
    Header(String),
    /// A field is missing or makes no sense.
    #[error("field `{name}` {problem}")]
    Field {
        /// Which.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A tensor is missing or makes no sense.
    #[error("tensor `{name}` {problem}")]
    Tensor {
        /// Which.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A kind of model that this engine does not run.
    #[error("the architecture `{0}` is not run here, only `llama`: serve the model with another engine over HTTP")]
    Architecture(String),
    /// The threads could not be started.
    #[error("no threads to compute with: {0}")]
    Threads(String),
}

impl GgufError {
    fn field(name: &str, problem: impl Into<String>) -> Self {
        Self::Field { name: name.into(), problem: problem.into() }
    }

    fn tensor(name: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), problem: problem.into() }
    }
}

/// Why nothing was generated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The prompt, the messages or a setting is refused.
    #[error("`{name}` {problem}")]
    Refused {
        /// Which.
        name: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The model gave scores that are no numbers: its weights are broken.
    #[error("the model's scores are no numbers")]
    NotNumbers,
}

impl GenerateError {
    fn refused(name: &str, problem: impl Into<String>) -> Self {
        Self::Refused { name: name.into(), problem: problem.into() }
    }

    fn setting(name: &str, problem: impl Into<String>) -> Self {
        Self::refused(&format!("parameters.{name}"), problem)
    }
}
