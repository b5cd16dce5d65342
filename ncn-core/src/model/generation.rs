//! What a request for generated text may choose, and how a conversation is sent.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::InputError;

/// How many tokens are generated when nothing is said.
const DEFAULT_MAX_TOKENS: u32 = 256;
/// How many stop sequences there may be, which is what OpenAI's interface knows.
const MAX_STOPS: usize = 4;
/// How long a stop sequence may be.
const MAX_STOP_BYTES: usize = 256;
/// How many messages a conversation may have.
const MAX_MESSAGES: usize = 1_024;

/// How a text is generated: the parameters of every model that generates text, whatever runs it. They are spelt as OpenAI's interface
/// spells them, and serialise to what it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationParameters {
    /// How many tokens are generated at most; 256 by default. Prompt and text together never exceed the model's context.
    pub max_tokens: u32,
    /// 0, the default, always takes the likeliest token. Up to 2: the higher, the more often less likely ones are taken.
    pub temperature: f32,
    /// Tokens are taken from the likeliest ones that together have this probability: above 0, up to 1, the default.
    pub top_p: f32,
    /// Which text it is, of all those that the temperature allows; the engine decides by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// The text ends before the first of these; none by default. At most 4, each of 1 to 256 bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

impl Default for GenerationParameters {
    fn default() -> Self {
        Self { max_tokens: DEFAULT_MAX_TOKENS, temperature: 0.0, top_p: 1.0, seed: None, stop: Vec::new() }
    }
}

impl GenerationParameters {
    /// What the fields are called in JSON.
    pub const NAMES: [&str; 5] = ["max_tokens", "temperature", "top_p", "seed", "stop"];

    /// Reads a JSON object with any of the fields; `stop` may be a text or a list of texts. Refuses what it does not know.
    pub fn parse(json: &str) -> Result<Self, InputError> {
        let mut object = object(json)?;
        let default = Self::default();
        let parameters = Self {
            max_tokens: take(&mut object, "max_tokens", "takes a number of tokens")?.unwrap_or(default.max_tokens),
            temperature: take(&mut object, "temperature", "takes a number from 0 to 2")?.unwrap_or(default.temperature),
            top_p: take(&mut object, "top_p", "takes a number above 0, up to 1")?.unwrap_or(default.top_p),
            seed: take(&mut object, "seed", "takes an integer from 0 to 4294967295")?,
            stop: take(&mut object, "stop", "takes a text or a list of texts")?.map_or(default.stop, Stop::into_list),
        };
        if let Some(name) = object.keys().next() {
            return Err(refused(name, "is unknown: there are max_tokens, temperature, top_p, seed and stop"));
        }
        parameters.check()?;
        Ok(parameters)
    }

    fn check(&self) -> Result<(), InputError> {
        if self.max_tokens == 0 {
            return Err(refused("max_tokens", "ask for at least 1 token"));
        }
        if !(0.0..=2.0).contains(&self.temperature) {
            return Err(refused("temperature", "takes a number from 0 to 2"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(refused("top_p", "takes a number above 0, up to 1"));
        }
        if self.stop.len() > MAX_STOPS || self.stop.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            return Err(refused("stop", "takes at most 4 texts, each of 1 to 256 bytes"));
        }
        Ok(())
    }
}

/// Parameters of any model: a JSON object.
pub(super) fn object(json: &str) -> Result<Map<String, Value>, InputError> {
    serde_json::from_str(json).map_err(|error| refused("", &format!("is no JSON object, write {{}} for none: {error}")))
}

fn refused(name: &str, problem: &str) -> InputError {
    let dot = if name.is_empty() { "" } else { "." };
    InputError { name: format!("parameters{dot}{name}"), problem: problem.into() }
}

/// The field's value, when it is there.
fn take<T: DeserializeOwned>(object: &mut Map<String, Value>, name: &str, remedy: &str) -> Result<Option<T>, InputError> {
    object.remove(name).map(serde_json::from_value).transpose().map_err(|_| refused(name, remedy))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    More(Vec<String>),
}

impl Stop {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::One(stop) => vec![stop],
            Self::More(stops) => stops,
        }
    }
}

/// Something said in a conversation. Text only: an engine would fetch what links in other content point to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// Who says it.
    pub role: ChatRole,
    /// What is said.
    pub content: String,
}

/// Who says something in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatRole {
    /// Whoever sets the conversation up.
    System,
    /// Whoever asks.
    User,
    /// The model.
    Assistant,
}

impl ChatRole {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Reads a conversation, which is what the text input `messages` of a model that generates text holds: a JSON list of 1 to 1024
/// objects with `role` and `content`.
pub fn conversation(json: &str) -> Result<Vec<ChatMessage>, InputError> {
    let refused = |problem| InputError { name: "messages".into(), problem };
    let messages: Vec<ChatMessage> = serde_json::from_str(json)
        .map_err(|error| refused(format!("takes a JSON list of objects with the texts `role` and `content`: {error}")))?;
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        return Err(refused(format!("has {} messages: send 1 to {MAX_MESSAGES}", messages.len())));
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        assert_eq!(GenerationParameters::parse("{}").unwrap(), GenerationParameters::default());
        let all = GenerationParameters::parse(r#"{"max_tokens":3,"temperature":1,"top_p":0.5,"seed":4294967295,"stop":"x"}"#);
        let expected =
            GenerationParameters { max_tokens: 3, temperature: 1.0, top_p: 0.5, seed: Some(u32::MAX), stop: vec!["x".into()] };
        assert_eq!(all.unwrap(), expected);
        assert_eq!(GenerationParameters::parse(r#"{"stop":["a","b"]}"#).unwrap().stop, ["a", "b"]);
    }

    #[test]
    fn what_is_sent_on_reads_the_same() {
        for json in ["{}", r#"{"max_tokens":7,"temperature":0.25,"top_p":0.9,"seed":1,"stop":["a"]}"#] {
            let parameters = GenerationParameters::parse(json).unwrap();
            let sent = serde_json::to_string(&parameters).unwrap();
            assert_eq!(GenerationParameters::parse(&sent).unwrap(), parameters, "{sent}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let long = format!(r#"{{"stop":"{}"}}"#, "x".repeat(257));
        let refused = [
            ("max_tokens", r#"{"max_tokens":0}"#),
            ("max_tokens", r#"{"max_tokens":-1}"#),
            ("max_tokens", r#"{"max_tokens":"many"}"#),
            ("temperature", r#"{"temperature":2.1}"#),
            ("temperature", r#"{"temperature":-0.1}"#),
            ("temperature", r#"{"temperature":null}"#),
            ("temperature", r#"{"temperature":1e40}"#),
            ("top_p", r#"{"top_p":0}"#),
            ("top_p", r#"{"top_p":1.5}"#),
            ("seed", r#"{"seed":-1}"#),
            ("seed", r#"{"seed":1.5}"#),
            ("stop", r#"{"stop":""}"#),
            ("stop", r#"{"stop":[1]}"#),
            ("stop", r#"{"stop":["a","b","c","d","e"]}"#),
            ("stop", &long),
            ("top_k", r#"{"top_k":40}"#),
        ];
        for (name, json) in refused {
            let error = GenerationParameters::parse(json).unwrap_err();
            assert_eq!(error.name, format!("parameters.{name}"), "{json}: {error}");
        }
        assert_eq!(GenerationParameters::parse("[]").unwrap_err().name, "parameters");
    }

    #[test]
    fn a_conversation_is_a_list_of_messages() {
        let read = conversation(r#"[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}]"#).unwrap();
        assert_eq!(read.iter().map(|message| message.role.name()).collect::<Vec<_>>(), ["system", "user"]);
        let many = format!("[{}]", vec![r#"{"role":"user","content":""}"#; 1_025].join(","));
        for refused in ["", "{}", "[]", r#"[{"role":"nobody","content":""}]"#, r#"[{"role":"user"}]"#, &many] {
            assert_eq!(conversation(refused).unwrap_err().name, "messages", "{refused}");
        }
    }
}
