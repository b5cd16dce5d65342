//! What a node's refusal is.

use alloy_primitives::{Bytes, hex};
use reqwest::{
    StatusCode,
    header::{HeaderMap, RETRY_AFTER},
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::{
    evm::EvmError,
    foreign::{self, Meaning, Question},
};

/// How much of a node's own words is repeated.
const MAX_WORDS: usize = 300;

/// Why an endpoint has no answer, and what to do about it.
pub(super) struct Refusal {
    pub(super) error: EvmError,
    pub(super) meaning: Meaning,
    /// Whether the endpoint certainly did nothing.
    pub(super) is_unheard: bool,
}

impl Refusal {
    pub(super) const fn elsewhere(error: EvmError) -> Self {
        Self { error, meaning: Meaning::Elsewhere, is_unheard: false }
    }

    const fn is_final(error: EvmError) -> Self {
        Self { error, meaning: Meaning::Final, is_unheard: true }
    }
}

/// An answer of JSON-RPC. Some nodes send null in the place of the one that is not there.
#[derive(Deserialize)]
pub(super) struct Said {
    #[serde(default, deserialize_with = "there")]
    pub(super) result: Option<Value>,
    #[serde(default)]
    pub(super) error: Option<RpcError>,
}

/// Null is an answer, too.
fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// An error of JSON-RPC.
#[derive(Deserialize)]
pub(super) struct RpcError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    data: Option<Value>,
}

impl RpcError {
    pub(super) fn refusal(&self, name: &str, question: Question, status: StatusCode, headers: &HeaderMap) -> Refusal {
        let Self { code, message, data } = self;
        if let Some(data) = self.revert() {
            return Refusal::is_final(EvmError::Reverted(data));
        }
        let says = message.to_lowercase();
        if says.contains("insufficient funds") || says.contains("gas required exceeds allowance") {
            return Refusal::is_final(EvmError::InsufficientGasFunds(words(message)));
        }
        let mut meaning = foreign::of_rpc(question, *code, message, data.as_ref());
        // The status knows of limits that the words may not name.
        if status == StatusCode::TOO_MANY_REQUESTS || (!status.is_success() && headers.contains_key(RETRY_AFTER)) {
            meaning = foreign::of_status(status, headers);
        }
        let said = format!("{name}: {}", words(message));
        let error = match meaning {
            Meaning::Final => EvmError::InvalidTransaction(words(message)),
            _ if foreign::is_unknown_method(*code, message) => EvmError::Unsupported(said),
            _ => EvmError::Unreachable(said),
        };
        let is_unheard = matches!(error, EvmError::InvalidTransaction(_) | EvmError::Unsupported(_));
        Refusal { error, meaning, is_unheard }
    }

    /// The data of a contract's refusal, if it is one: by its code, by the word, or because it has such data.
    fn revert(&self) -> Option<Bytes> {
        let reverted = |word: &str| matches!(word, "revert" | "reverted" | "reverts");
        let mut says = self.message.to_lowercase();
        says.extend(self.data.as_ref().and_then(Value::as_str).map(str::to_lowercase));
        let is_said = self.code == 3 || says.split(|c: char| !c.is_ascii_alphanumeric()).any(reverted);
        let data = self.data.as_ref().and_then(find);
        // A selector, and its values.
        let is_shown = self.code != -32_602 && data.as_ref().is_some_and(|data| data.len() % 32 == 4);
        if is_said || is_shown { Some(data.unwrap_or_default()) } else { None }
    }
}

/// Bytes in hexadecimal digits, however deep they are wrapped.
fn find(data: &Value) -> Option<Bytes> {
    match data {
        Value::String(text) => {
            let digits = text.trim();
            let digits = digits.strip_prefix("Reverted ").unwrap_or(digits);
            hex::decode(digits.strip_prefix("0x")?).ok().map(Bytes::from)
        }
        Value::Object(fields) => ["data", "result", "originalError"].iter().find_map(|name| find(fields.get(*name)?)),
        _ => None,
    }
}

pub(super) fn words(text: &str) -> String {
    text.chars().take(MAX_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(question: Question, error: &Value) -> Refusal {
        let said: Said = serde_json::from_value(json!({ "jsonrpc": "2.0", "id": null, "result": null, "error": error })).unwrap();
        said.error.unwrap().refusal("node", question, StatusCode::OK, &HeaderMap::new())
    }

    #[test]
    fn a_contracts_refusal_is_known_however_it_is_wrapped() {
        for (error, data) in [
            (json!({ "code": 3, "message": "execution reverted: no", "data": "0x08c379a0" }), "0x08c379a0"),
            (json!({ "code": -32_000, "message": "execution reverted" }), "0x"),
            (json!({ "code": -32_015, "message": "VM execution error.", "data": "Reverted 0x08c379a0" }), "0x08c379a0"),
            (json!({ "code": -32_015, "message": "VM execution error.", "data": "Reverted 0x" }), "0x"),
            (
                json!({
                    "code": -32_603,
                    "message": "Error: VM Exception while processing transaction: reverted with custom error 'Expired(1)'",
                    "data": { "message": "Error: VM Exception", "txHash": "0x12", "data": "0x08c379a0" }
                }),
                "0x08c379a0",
            ),
            (json!({ "code": -32_000, "message": "execution failed", "data": "0x08c379a0" }), "0x08c379a0"),
            (
                json!({ "code": -32_603, "message": "Internal JSON-RPC error.", "data": { "originalError": { "data": "0x08c379a0" } } }),
                "0x08c379a0",
            ),
        ] {
            let refusal = refusal(Question::Read, &error);
            assert_eq!(refusal.error, EvmError::Reverted(data.parse().unwrap()), "{error}");
            assert_eq!(refusal.meaning, Meaning::Final);
        }
        for error in [
            json!({ "code": -32_000, "message": "missing trie node", "data": "0x" }),
            json!({ "code": -32_000, "message": "historical state abc is not available" }),
            json!({ "code": -32_005, "message": "limited", "data": { "see": "https://example.com/dashboard" } }),
            json!({ "code": -32_000, "message": "the state is irrevertible" }),
            json!({}),
        ] {
            let refusal = refusal(Question::Read, &error);
            assert!(matches!(refusal.error, EvmError::Unreachable(_)) && refusal.meaning != Meaning::Final, "{error}");
        }
        let unknown = refusal(Question::Read, &json!({ "code": -32_601, "message": "Method not found" }));
        assert_eq!(unknown.error, EvmError::Unsupported("node: Method not found".into()));
    }

    #[test]
    fn null_stands_for_what_is_not_there() {
        let said: Said = serde_json::from_value(json!({ "result": "0x1", "error": null })).unwrap();
        assert!(said.result == Some(json!("0x1")) && said.error.is_none());
        let said: Said = serde_json::from_value(json!({ "result": null })).unwrap();
        assert!(said.result == Some(Value::Null) && said.error.is_none());
        let said: Said = serde_json::from_value(json!({})).unwrap();
        assert!(said.result.is_none() && said.error.is_none());
    }
}
