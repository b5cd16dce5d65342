mod functions;

use std::io;

use minijinja::{Environment, context};
use serde::Serialize;

use crate::{GgufError, header::Header};

/// The longest that a short conversation may become.
const MAX_TRIAL_BYTES: usize = 1 << 20;
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
    /// The file's template, when it has one; the inner error is why it cannot be used. It is tried on a conversation, so that this is known
    /// before somebody wants to have one.
    pub(crate) fn load(header: &Header<'_>) -> Result<Option<Result<Self, String>>, GgufError> {
        let Some(source) = header.optional(TEMPLATE, Header::text)? else { return Ok(None) };
        let token = |name: &str| -> Result<String, GgufError> {
            let id = header.optional(name, Header::count)?;
            let tokens = header.texts("tokenizer.ggml.tokens")?;
            Ok(id.and_then(|id| tokens.get(id)).map(ToString::to_string).unwrap_or_default())
        };
        let (begin, end) = (token("tokenizer.ggml.bos_token_id")?, token("tokenizer.ggml.eos_token_id")?);
        let mut environment = functions::environment();
        let added = environment.add_template_owned(TEMPLATE, functions::without_marks(source));
        let template = Self { environment, begin, end };
        Ok(Some(added.map_err(|error| format!("cannot be read: {error}")).and_then(|()| template.try_out().map(|()| template))))
    }

    /// Not every template takes a system's message, nor more than one question; one question each of them takes.
    fn try_out(&self) -> Result<(), String> {
        let said = |roles: &[&str]| -> Vec<_> {
            roles.iter().map(|role| Message { role: (*role).into(), content: "Say hello.".into() }).collect()
        };
        let render = |roles: &[&str]| self.render(&said(roles), MAX_TRIAL_BYTES);
        let rendered = render(&["system", "user", "assistant", "user"]).or_else(|_| render(&["user", "assistant", "user"]));
        rendered.or_else(|_| render(&["user"])).map(drop)
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
