use ncn_core::{
    DataType, Execution, Value,
    model::{InputSpec, Manifest, OutputSpec},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// How much is generated when a request does not say.
const DEFAULT_MAX_TOKENS: u32 = 256;
/// The most stop sequences that the interface knows.
const MAX_STOPS: usize = 4;

/// What a model gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// Text, streamed.
    Text,
    /// A vector.
    Embedding,
}

/// What a request may choose.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(default = "default_max_tokens")]
    max_tokens: u32,
    /// The most likely token every time, by default.
    #[serde(default)]
    temperature: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stop: Vec<String>,
}

const fn default_max_tokens() -> u32 {
    DEFAULT_MAX_TOKENS
}

/// A turn of a conversation. Text only: an engine would fetch what links in other content point to.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: Role,
    content: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    User,
    Assistant,
}

/// What is asked for text.
#[derive(Serialize)]
struct Generate<'a> {
    model: &'a str,
    #[serde(flatten)]
    prompt: Prompt<'a>,
    #[serde(flatten)]
    parameters: Parameters,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Prompt<'a> {
    Prompt(&'a str),
    Messages(Vec<Message>),
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl Interface {
    /// What a manifest asks for, or what is wrong with it.
    pub(super) fn of(manifest: &Manifest) -> Result<Self, &'static str> {
        if !manifest.files.is_empty() {
            return Err("files: the engine has them: list none");
        }
        let is_text =
            |input: &InputSpec, names: &[&str]| matches!(input, InputSpec::Text(text) if names.contains(&text.name.as_str()));
        let inputs = |names: &[&str]| manifest.inputs.iter().all(|input| is_text(input, names));
        let generates =
            |output: &OutputSpec| matches!(output, OutputSpec::Text(text) if text.name == "text" || text.name == "finish_reason");
        match manifest.outputs.as_slice() {
            [OutputSpec::Tensor(tensor)] if tensor.name == "embedding" && tensor.dtype == DataType::F32 && tensor.to.is_none() => {
                if inputs(&["text"]) {
                    Ok(Self::Embedding)
                } else {
                    Err("inputs: an embedding is made of the text `text` alone")
                }
            }
            outputs if outputs.iter().all(generates) && outputs.iter().any(|output| output.name() == "text") => {
                let both = manifest.inputs.len() == 2;
                let optional = manifest.inputs.iter().all(|input| matches!(input, InputSpec::Text(text) if text.optional == both));
                if inputs(&["prompt", "messages"]) && optional {
                    Ok(Self::Text)
                } else {
                    Err("inputs: text is generated from the text `prompt` or `messages`; with both, each is optional")
                }
            }
            _ => Err("outputs: list the texts `text` and `finish_reason`, or the f32 tensor `embedding`"),
        }
    }

    /// Where a request goes below the base URL, and its body; or what is wrong with it. The inputs are what the manifest says.
    pub(super) fn request(self, manifest: &Manifest, execution: &Execution) -> Result<(&'static str, String), String> {
        let text = |name| execution.inputs.get(name).and_then(Value::as_text);
        let model = &manifest.entry;
        if self == Self::Embedding {
            if !matches!(serde_json::from_str(&execution.parameters), Ok(serde_json::Value::Object(fields)) if fields.is_empty()) {
                return Err("parameters: the model takes none: send `{}`".into());
            }
            let text = text("text").ok_or("`text`: missing")?;
            let body = json!({ "model": model, "input": text, "encoding_format": "float" });
            return Ok(("embeddings", body.to_string()));
        }
        let parameters: Parameters = serde_json::from_str(&execution.parameters).map_err(|error| format!("parameters: {error}"))?;
        parameters.check()?;
        let (path, prompt) = match (text("prompt"), text("messages")) {
            (Some(prompt), None) => ("completions", Prompt::Prompt(prompt)),
            (None, Some(messages)) => {
                let messages: Vec<Message> = serde_json::from_str(messages).map_err(|error| format!("`messages`: {error}"))?;
                if messages.is_empty() {
                    return Err("`messages`: send at least one".into());
                }
                ("chat/completions", Prompt::Messages(messages))
            }
            _ => return Err("`prompt`: send either it or `messages`".into()),
        };
        let stream_options = StreamOptions { include_usage: true };
        let request = Generate { model, prompt, parameters, stream: true, stream_options };
        Ok((path, serde_json::to_string(&request).map_err(|error| error.to_string())?))
    }
}

impl Parameters {
    fn check(&self) -> Result<(), String> {
        let wrong = |problem: &str| Err(format!("parameters.{problem}"));
        if self.max_tokens == 0 {
            return wrong("max_tokens: at least 1");
        }
        if !(0.0..=2.0).contains(&self.temperature) {
            return wrong("temperature: 0 to 2");
        }
        if self.top_p.is_some_and(|top_p| !(top_p > 0.0 && top_p <= 1.0)) {
            return wrong("top_p: above 0, at most 1");
        }
        if self.stop.len() > MAX_STOPS || self.stop.iter().any(String::is_empty) {
            return wrong("stop: at most 4 texts, none empty");
        }
        Ok(())
    }
}
