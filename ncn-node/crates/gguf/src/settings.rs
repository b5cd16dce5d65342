use crate::GenerateError;

/// How many tokens are generated when nothing is said.
const DEFAULT_MAX_TOKENS: usize = 256;
/// How many stop sequences there may be.
const MAX_STOPS: usize = 16;
/// How long a stop sequence may be.
const MAX_STOP_BYTES: usize = 256;

/// How a text is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How many tokens are generated at most; 256 by default. Prompt and text together never exceed the model's context.
    pub max_tokens: usize,
    /// 0, the default, always takes the likeliest token. Up to 2: the higher, the more often less likely ones are taken.
    pub temperature: f32,
    /// Tokens are taken from the likeliest ones that together have this probability: above 0, up to 1, the default.
    pub top_p: f32,
    /// Which text it is, of all those that the temperature allows; 0 by default.
    pub seed: u64,
    /// The text ends before the first of these; none by default. At most 16, each of 1 to 256 bytes.
    pub stop: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_tokens: DEFAULT_MAX_TOKENS, temperature: 0.0, top_p: 1.0, seed: 0, stop: Vec::new() }
    }
}

impl Settings {
    /// Refuses what makes no sense.
    pub(crate) fn check(&self) -> Result<(), GenerateError> {
        if self.max_tokens == 0 {
            return Err(GenerateError::setting("max_tokens", "is 0: ask for at least 1 token"));
        }
        if !(0.0..=2.0).contains(&self.temperature) {
            return Err(GenerateError::setting("temperature", "takes a number from 0 to 2"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(GenerateError::setting("top_p", "takes a number above 0, up to 1"));
        }
        if self.stop.len() > MAX_STOPS || self.stop.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            return Err(GenerateError::setting("stop", "takes at most 16 texts, each of 1 to 256 bytes"));
        }
        Ok(())
    }
}
