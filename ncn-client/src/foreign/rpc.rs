//! What nodes of a chain say.

use std::time::Duration;

use serde_json::Value;

use super::Meaning;

/// What a node of a chain was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Something that the chain has, or a call.
    Read,
    /// The logs of several blocks.
    Logs,
    /// To take a transaction.
    Send,
}

/// What the refusal of a chain's node means, by the code and the words of its JSON-RPC error. That a contract reverted is the caller's to
/// find out before.
pub(crate) fn of_rpc(question: Question, code: i64, message: &str, data: Option<&Value>) -> Meaning {
    let says = message.to_lowercase();
    let any = |phrases: &[&str]| phrases.iter().any(|phrase| says.contains(phrase));
    let often =
        matches!(code, 429 | -32_007 | -32_029 | -32_097) || (code == -32_005 && question != Question::Logs) || any(TOO_OFTEN);
    if often {
        let seconds = data.and_then(|data| data.pointer("/rate/backoff_seconds")?.as_f64());
        return Meaning::TooOften { after: seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) };
    }
    if is_unknown_method(code, message) {
        return Meaning::Elsewhere;
    }
    match question {
        Question::Logs => Meaning::Narrower,
        Question::Read if any(OF_EXECUTION) => Meaning::Final,
        Question::Read if matches!(code, -32_603 | -32_002) || any(TOO_EARLY) || any(TOO_SLOW) => Meaning::Again { after: None },
        Question::Read => Meaning::Elsewhere,
        Question::Send if matches!(code, -32_603 | -32_001 | -32_002) || any(TOO_EARLY) || any(TOO_SLOW) || any(TOO_FULL) => {
            Meaning::Elsewhere
        }
        Question::Send => Meaning::Final,
    }
}

/// Whether a node says that it does not know, or does not allow, what it was asked.
pub(crate) fn is_unknown_method(code: i64, message: &str) -> bool {
    let says = message.to_lowercase();
    let unknown = ["not found", "not supported", "does not exist", "not available", "not whitelisted", "not allowed", "disabled"];
    matches!(code, -32_601 | -32_004) || (says.contains("method") && unknown.iter().any(|words| says.contains(words)))
}

/// Limits on how often one may ask.
const TOO_OFTEN: &[&str] = &[
    "rate limit",
    "rate-limit",
    "ratelimit",
    "too many requests",
    "request limit",
    "requests limit",
    "request count exceeded",
    "compute units per second",
    "capacity exceeded",
    "throttl",
    "exceeded the quota",
    "out of cu",
];
/// A block or a state that this node does not have yet.
const TOO_EARLY: &[&str] = &["header not found", "unknown block", "block not found", "block is not available"];
const TOO_SLOW: &[&str] = &["timeout", "timed out", "deadline exceeded", "request canceled"];
const TOO_FULL: &[&str] = &["pool is full", "pool full", "txpool overflow"];
/// Failures of what was to be executed: every node gets to the same.
const OF_EXECUTION: &[&str] = &[
    "invalid opcode",
    "invalid jump",
    "bad jump",
    "stack underflow",
    "stack overflow",
    "stack limit",
    "write protection",
    "intrinsic gas too low",
    "max initcode size",
    "max code size",
    "nonce too low",
    "nonce too high",
    "less than block base fee",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Meaning = Meaning::Again { after: None };
    const OFTEN: Meaning = Meaning::TooOften { after: None };

    /// Words of nodes and providers as they were reported by people who met them.
    #[test]
    fn what_nodes_and_providers_say_is_understood() {
        use Meaning::{Elsewhere, Final, Narrower};
        use Question::{Logs, Read, Send};
        for (question, code, message, meaning) in [
            (Read, -32_007, "50/second request limit reached - reduce calls per second or upgrade your account", OFTEN),
            (Read, -32_097, "Rate limit exceeded", OFTEN),
            (Read, -32_005, "daily request count exceeded, request rate limited", OFTEN),
            (Read, 429, "Your app has exceeded its compute units per second capacity.", OFTEN),
            (Read, -32_016, "over rate limit", OFTEN),
            (Read, -32_000, "header not found", NOW),
            (Read, -32_603, "Internal error", NOW),
            (Read, -32_002, "request timed out", NOW),
            (Read, -32_000, "execution aborted (timeout = 5s)", NOW),
            (Read, -32_000, "missing trie node 9f7e (path ) state 0x9f7e is not available", Elsewhere),
            (Read, -32_000, "historical state abc is not available", Elsewhere),
            (Read, -32_052, "method handler crashed", Elsewhere),
            (Read, -32_601, "the method eth_maxPriorityFeePerGas does not exist/is not available", Elsewhere),
            (Read, -32_004, "Unsupported method: eth_getProof", Elsewhere),
            (Read, -32_001, "Unable to perform request", Elsewhere),
            (Read, -32_602, "invalid argument 1: hex string without 0x prefix", Elsewhere),
            (Read, -32_000, "Unauthorized: you must authenticate your request with an API key", Elsewhere),
            (Read, -32_015, "VM execution error", Elsewhere),
            (Read, -32_000, "invalid opcode: INVALID", Final),
            (Read, -32_000, "intrinsic gas too low: have 21000, want 53000", Final),
            (Logs, -32_005, "query returned more than 10000 results", Narrower),
            (Logs, -32_005, "query timeout exceeded", Narrower),
            (Logs, -32_603, "Internal error", Narrower),
            (Logs, -32_001, "Unable to complete request at this time", Narrower),
            (Logs, -32_602, "eth_getLogs is limited to a 10,000 range", Narrower),
            (Logs, -32_000, "exceed maximum block range: 5000", Narrower),
            (Logs, -32_614, "eth_getLogs is limited to a 10 block range", Narrower),
            (Logs, -32_000, "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range", Narrower),
            (Logs, -32_097, "too many requests", OFTEN),
            (Logs, -32_601, "the method eth_getLogs does not exist/is not available", Elsewhere),
            (Send, -32_000, "nonce too low: next nonce 5, tx nonce 4", Final),
            (Send, -32_000, "transaction underpriced", Final),
            (Send, -32_000, "already known", Final),
            (Send, -32_000, "no such luck", Final),
            (Send, -32_000, "txpool is full", Elsewhere),
            (Send, -32_603, "Internal error", Elsewhere),
            (Send, -32_601, "Method not found", Elsewhere),
            (Send, -32_005, "limit exceeded", OFTEN),
        ] {
            assert_eq!(of_rpc(question, code, message, None), meaning, "{question:?} {code} {message}");
        }
        let wait = Duration::from_millis(2_500);
        let data = json!({ "rate": { "allowed_rps": 1, "backoff_seconds": 2.5, "current_rps": 1.4 } });
        assert_eq!(of_rpc(Read, -32_005, "project ID request rate exceeded", Some(&data)), Meaning::TooOften { after: Some(wait) });
    }
}
