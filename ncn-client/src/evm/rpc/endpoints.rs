//! Asks one endpoint after the other.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use alloy_json_rpc::{ErrorPayload, RpcError};
use alloy_primitives::{Bytes, U64};
use alloy_rpc_client::RpcClient;
use alloy_transport::TransportError;
use futures::future::join_all;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answers::{Read, whole};
use crate::evm::EvmError;

/// How much of a node's own words is repeated.
const MAX_WORDS: usize = 300;

/// Endpoints of one chain, at least one.
pub(super) struct Endpoints {
    all: Vec<Endpoint>,
    /// The one that answered last.
    current: AtomicUsize,
    chain_id: u64,
    timeout: Duration,
}

struct Endpoint {
    /// Scheme, host and port: paths and queries often are secrets.
    name: String,
    client: RpcClient,
    /// Whether it has said that it is of the right chain.
    checked: AtomicBool,
}

/// What came of a question.
pub(super) struct Asked<T> {
    pub(super) answer: Result<T, EvmError>,
    /// Whether an endpoint failed before the one that this is of: it may have done what it was asked.
    pub(super) doubtful: bool,
}

/// Why an endpoint has no answer.
enum Refusal {
    /// Another one would say the same.
    Final(EvmError),
    /// Another one may have it.
    Passing(EvmError),
}

impl Endpoints {
    pub(super) async fn connect(urls: &[String], chain_id: Option<u64>, timeout: Duration) -> Result<Self, EvmError> {
        let http = crate::http().build().map_err(|error| EvmError::Unreachable(format!("HTTP: {error}")))?;
        let mut all = Vec::new();
        for url in urls {
            all.push(Endpoint::new(url, http.clone())?);
        }
        if all.is_empty() {
            return Err(EvmError::InvalidEndpoint("none is given: write http://HOST:PORT".into()));
        }
        let this = Self { all, current: AtomicUsize::new(0), chain_id: 0, timeout };
        // All of them, at once: one of another chain is a mistake that is better found now than when the others fail.
        let chain_ids = join_all(this.all.iter().map(|endpoint| endpoint.chain_id(timeout))).await;
        let first = chain_ids.iter().find_map(|id| id.as_ref().ok().copied());
        let Some(expected) = first.map(|first| chain_id.unwrap_or(first)) else {
            return Err(together(chain_ids.into_iter().filter_map(Result::err).map(Refusal::into_error).collect()));
        };
        for (endpoint, actual) in this.all.iter().zip(chain_ids) {
            match actual {
                Ok(actual) => endpoint.expect(actual, expected)?,
                Err(refusal) => tracing::warn!(error = %refusal.into_error(), "an endpoint fails; it is tried when others do too"),
            }
        }
        Ok(Self { chain_id: expected, ..this })
    }

    pub(super) const fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// The first answer that is one value.
    pub(super) async fn ask<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, EvmError> {
        self.read(method, params, whole).await.answer
    }

    /// The first answer that can be read.
    pub(super) async fn read<T>(&self, method: &'static str, params: Value, read: impl Fn(&Value) -> Read<T>) -> Asked<T> {
        let start = self.current.load(Ordering::Relaxed);
        let mut problems = Vec::new();
        for turn in 0..self.all.len() {
            let index = (start + turn) % self.all.len();
            let Some(endpoint) = self.all.get(index) else { continue };
            let answer = match endpoint.checked(self.chain_id, self.timeout, method, &params, &read).await {
                Ok(answer) => Ok(answer),
                Err(Refusal::Final(error)) => Err(error),
                Err(Refusal::Passing(error)) => {
                    tracing::debug!(%error, method, "an endpoint fails; asking the next one");
                    problems.push(error);
                    continue;
                }
            };
            self.current.store(index, Ordering::Relaxed);
            return Asked { answer, doubtful: !problems.is_empty() };
        }
        Asked { answer: Err(together(problems)), doubtful: true }
    }
}

impl Refusal {
    fn into_error(self) -> EvmError {
        match self {
            Self::Final(error) | Self::Passing(error) => error,
        }
    }
}

/// All endpoints' problems as one. Where one alone is more than a passing failure, that is what there is to say.
fn together(mut problems: Vec<EvmError>) -> EvmError {
    if let Some(index) = problems.iter().position(|problem| !matches!(problem, EvmError::Unreachable(_))) {
        return problems.swap_remove(index);
    }
    let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
    EvmError::Unreachable(problems.join("; "))
}

impl Endpoint {
    fn new(url: &str, http: reqwest::Client) -> Result<Self, EvmError> {
        let parsed: reqwest::Url =
            url.parse().map_err(|error| EvmError::InvalidEndpoint(format!("is no URL ({error}): write http://HOST:PORT")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(EvmError::InvalidEndpoint("begins with neither http:// nor https://".into()));
        }
        let name = parsed.origin().ascii_serialization();
        Ok(Self { name, client: RpcClient::new_http_with_client(http, parsed), checked: AtomicBool::new(false) })
    }

    /// Asks, once it is sure that this is the right chain, and reads the answer.
    async fn checked<T>(
        &self,
        chain_id: u64,
        timeout: Duration,
        method: &'static str,
        params: &Value,
        read: impl Fn(&Value) -> Read<T>,
    ) -> Result<T, Refusal> {
        if !self.checked.load(Ordering::Relaxed) {
            self.expect(self.chain_id(timeout).await?, chain_id).map_err(Refusal::Passing)?;
        }
        let answer = self.ask(timeout, method, params).await;
        let answer = answer.and_then(|answer| read(&answer).map_err(|problem| self.malformed(method, &problem)));
        if matches!(answer, Err(Refusal::Passing(_))) {
            // What answers at this address next may be something else.
            self.checked.store(false, Ordering::Relaxed);
        }
        answer
    }

    /// Whether its chain is the right one.
    fn expect(&self, actual: u64, expected: u64) -> Result<(), EvmError> {
        if actual != expected {
            return Err(EvmError::WrongChain { endpoint: self.name.clone(), actual, expected });
        }
        self.checked.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn chain_id(&self, timeout: Duration) -> Result<u64, Refusal> {
        let answer = self.ask(timeout, "eth_chainId", &json!([])).await?;
        let id: Read<U64> = whole(&answer);
        id.map(|id| id.to()).map_err(|problem| self.malformed("eth_chainId", &problem))
    }

    fn malformed(&self, method: &'static str, problem: &str) -> Refusal {
        Refusal::Passing(EvmError::Malformed { method, problem: format!("{} ({})", words(problem), self.name) })
    }

    async fn ask(&self, timeout: Duration, method: &'static str, params: &Value) -> Result<Value, Refusal> {
        let unreachable = |problem: String| Refusal::Passing(EvmError::Unreachable(format!("{}: {problem}", self.name)));
        match tokio::time::timeout(timeout, self.client.request::<_, Value>(method, params)).await {
            Err(_) => Err(unreachable(format!("no answer to {method} within {timeout:?}"))),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(RpcError::ErrorResp(payload))) => Err(refusal(&self.name, method, &payload)),
            Ok(Err(RpcError::DeserError { err, .. })) => Err(self.malformed(method, &format!("result: {err}"))),
            // Of transport errors only their kind is repeated: their text may have the URL in it.
            Ok(Err(error)) => Err(unreachable(cause(&error))),
        }
    }
}

/// What failed, without the URL, which a proxy may have put into its page too.
fn cause(error: &TransportError) -> String {
    if let RpcError::Transport(kind) = error
        && let Some(http) = kind.as_http_error()
    {
        return format!("HTTP status {}", http.status);
    }
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    words(&deepest.to_string())
}

fn words(text: &str) -> String {
    text.chars().take(MAX_WORDS).collect()
}

/// What a node's own refusal means.
fn refusal(name: &str, method: &str, payload: &ErrorPayload) -> Refusal {
    if let Some(data) = payload.as_revert_data() {
        return Refusal::Final(EvmError::Reverted(data));
    }
    let says = payload.message.to_lowercase();
    let any = |phrases: &[&str]| phrases.iter().any(|phrase| says.contains(phrase));
    if any(&["execution reverted", "revert"]) {
        return Refusal::Final(EvmError::Reverted(Bytes::new()));
    }
    if any(&["insufficient funds", "gas required exceeds allowance"]) {
        return Refusal::Final(EvmError::InsufficientGasFunds(words(&payload.message)));
    }
    // Internal failures, limits on how often one may ask, and blocks that this node has not seen yet. Of logs, the limit is on how many.
    let passing = matches!(payload.code, -32603 | -32001 | 429)
        || (payload.code == -32005 && method != "eth_getLogs")
        || any(&["rate limit", "too many requests", "header not found", "unknown block", "timeout", "timed out", "pool is full"]);
    if passing {
        Refusal::Passing(EvmError::Unreachable(format!("{name}: {}", words(&payload.message))))
    } else {
        Refusal::Final(EvmError::InvalidTransaction(words(&payload.message)))
    }
}
