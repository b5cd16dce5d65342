use ncn_core::{
    DataType, Execution, Value, Values,
    model::{ChatMessage, GenerationParameters, InputSpec, Manifest, OutputSpec, conversation},
};
use serde::Serialize;
use serde_json::json;

/// What a model gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// Text, streamed.
    Text,
    /// A vector.
    Embedding,
}

/// What is asked for text.
#[derive(Serialize)]
struct Generate<'a> {
    model: &'a str,
    #[serde(flatten)]
    prompt: Prompt<'a>,
    #[serde(flatten)]
    parameters: GenerationParameters,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Prompt<'a> {
    Prompt(&'a str),
    Messages(Vec<ChatMessage>),
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// What is asked for the rest of a text, of which `prefix` is there and took so many tokens.
pub(super) fn continue_from(manifest: &Manifest, execution: &Execution, prefix: &Values, units: u64) -> Option<Execution> {
    let mut parameters = GenerationParameters::parse(&execution.parameters).ok()?;
    let left = u64::from(parameters.max_tokens).checked_sub(units).filter(|left| *left > 0)?;
    parameters.max_tokens = u32::try_from(left).ok()?;
    let prompt = execution.inputs.get("prompt").and_then(Value::as_text)?;
    let mut inputs = execution.inputs.clone();
    // What else an output has belongs to its end.
    let there = prefix.text("text").filter(|_| prefix.len() == 1)?;
    inputs.insert("prompt", Value::Text([prompt, there].concat()));
    // A prompt has a longest, too.
    manifest.check(&inputs).ok()?;
    Some(Execution { inputs, parameters: serde_json::to_string(&parameters).ok()?, ..execution.clone() })
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
            manifest.check_parameters(&execution.parameters).map_err(|error| error.to_string())?;
            let text = text("text").ok_or("`text`: missing")?;
            let body = json!({ "model": model, "input": text, "encoding_format": "float" });
            return Ok(("embeddings", body.to_string()));
        }
        let parameters = GenerationParameters::parse(&execution.parameters).map_err(|error| error.to_string())?;
        let (path, prompt) = match (text("prompt"), text("messages")) {
            (Some(prompt), None) => ("completions", Prompt::Prompt(prompt)),
            (None, Some(messages)) => {
                ("chat/completions", Prompt::Messages(conversation(messages).map_err(|error| error.to_string())?))
            }
            _ => return Err("`prompt`: send either it or `messages`".into()),
        };
        let stream_options = StreamOptions { include_usage: true };
        let request = Generate { model, prompt, parameters, stream: true, stream_options };
        Ok((path, serde_json::to_string(&request).map_err(|error| error.to_string())?))
    }
}
