use std::io;

use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};
use serde::Serialize;

use crate::{GgufError, header::Header};

/// How many steps a chat template may take.
const MAX_STEPS: u64 = 1_000_000;
const TEMPLATE: &str = "tokenizer.chat_template";

/// What a text is generated from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text to go on with.
    Text(String),
    /// A conversation to answer, put into words by the model's chat template.
    Messages(Vec<Message>),
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who says it: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A model's chat template.
pub(crate) struct Template {
    environment: Environment<'static>,
    begin: String,
    end: String,
}

impl Template {
    /// The file's template, when it has one.
    pub(crate) fn load(header: &Header<'_>) -> Result<Option<Self>, GgufError> {
        let Some(source) = header.optional(TEMPLATE, Header::text)? else { return Ok(None) };
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(MAX_STEPS));
        // Templates are written for Python, whose texts and lists have methods.
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
        });
        let refused = |error: minijinja::Error| GgufError::field(TEMPLATE, format!("cannot be read: {error}"));
        environment.add_template_owned(TEMPLATE, source.to_owned()).map_err(refused)?;
        let token = |name: &str| -> Result<String, GgufError> {
            let id = header.optional(name, Header::count)?;
            let tokens = header.texts("tokenizer.ggml.tokens")?;
            Ok(id.and_then(|id| tokens.get(id)).map(ToString::to_string).unwrap_or_default())
        };
        let (begin, end) = (token("tokenizer.ggml.bos_token_id")?, token("tokenizer.ggml.eos_token_id")?);
        Ok(Some(Self { environment, begin, end }))
    }

    /// The conversation as a text of at most so many bytes, up to where the answer begins.
    pub(crate) fn render(&self, messages: &[Message], most: usize) -> Result<String, String> {
        let template = self.environment.get_template(TEMPLATE).map_err(|error| error.to_string())?;
        let mut text = Limited { bytes: Vec::new(), most, exceeded: false };
        let values = context! { messages, add_generation_prompt => true, bos_token => self.begin, eos_token => self.end };
        let rendered = template.render_captured_to(values, &mut text).map(drop);
        if text.exceeded {
            return Err("are more than the model's context holds: shorten them".into());
        }
        rendered.map_err(|error| format!("are refused by the model's chat template: {error}"))?;
        String::from_utf8(text.bytes).map_err(|error| error.to_string())
    }
}

/// A text that does not grow beyond a number of bytes.
struct Limited {
    bytes: Vec<u8>,
    most: usize,
    exceeded: bool,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most.saturating_sub(self.bytes.len()) {
            self.exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
