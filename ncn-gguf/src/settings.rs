use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

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
    /// Reads a JSON object with any of the fields; `stop` may be a text or a list of texts. Refuses what it does not know.
    pub fn parse(json: &str) -> Result<Self, GenerateError> {
        let object: Result<Map<String, Value>, _> = serde_json::from_str(json);
        let mut object = object.map_err(|error| GenerateError::setting("", format!("are no JSON object: {error}")))?;
        let default = Self::default();
        let settings = Self {
            max_tokens: take(&mut object, "max_tokens", "takes a number of tokens")?.unwrap_or(default.max_tokens),
            temperature: take(&mut object, "temperature", "takes a number from 0 to 2")?.unwrap_or(default.temperature),
            top_p: take(&mut object, "top_p", "takes a number above 0, up to 1")?.unwrap_or(default.top_p),
            seed: take(&mut object, "seed", "takes an integer from 0 to 18446744073709551615")?.unwrap_or(default.seed),
            stop: take(&mut object, "stop", "takes a text or a list of texts")?.map_or(default.stop, Stop::into_list),
        };
        if let Some(name) = object.keys().next() {
            return Err(GenerateError::setting(name, "is unknown: there are max_tokens, temperature, top_p, seed and stop"));
        }
        settings.check()?;
        Ok(settings)
    }

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

/// The field's value, when it is there.
fn take<T: DeserializeOwned>(object: &mut Map<String, Value>, name: &str, remedy: &str) -> Result<Option<T>, GenerateError> {
    let value = object.remove(name).map(serde_json::from_value).transpose();
    value.map_err(|_| GenerateError::setting(name, remedy))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        assert_eq!(Settings::parse("{}").unwrap(), Settings::default());
        let settings = Settings::parse(r#"{"max_tokens":3,"temperature":1,"top_p":0.5,"seed":18446744073709551615,"stop":"x"}"#);
        let expected = Settings { max_tokens: 3, temperature: 1.0, top_p: 0.5, seed: u64::MAX, stop: vec!["x".into()] };
        assert_eq!(settings.unwrap(), expected);
        assert_eq!(Settings::parse(r#"{"stop":["a","b"]}"#).unwrap().stop, ["a", "b"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let long = format!(r#"{{"stop":"{}"}}"#, "x".repeat(257));
        let many = format!(r#"{{"stop":[{}"x"]}}"#, r#""x","#.repeat(16));
        let refused = [
            ("max_tokens", r#"{"max_tokens":0}"#),
            ("max_tokens", r#"{"max_tokens":-1}"#),
            ("max_tokens", r#"{"max_tokens":"many"}"#),
            ("temperature", r#"{"temperature":2.1}"#),
            ("temperature", r#"{"temperature":-0.1}"#),
            ("temperature", r#"{"temperature":null}"#),
            ("top_p", r#"{"top_p":0}"#),
            ("top_p", r#"{"top_p":1.5}"#),
            ("seed", r#"{"seed":-1}"#),
            ("seed", r#"{"seed":1.5}"#),
            ("stop", r#"{"stop":""}"#),
            ("stop", r#"{"stop":[1]}"#),
            ("stop", &long),
            ("stop", &many),
            ("top_k", r#"{"top_k":40}"#),
        ];
        for (name, json) in refused {
            let error = Settings::parse(json).unwrap_err();
            assert!(error.to_string().starts_with(&format!("`parameters.{name}` ")), "{json}: {error}");
        }
        assert!(Settings::parse("[]").unwrap_err().to_string().starts_with("`parameters` are no JSON object"));
        assert!(Settings::parse(r#"{"temperature":1e40}"#).is_err());
    }
}
