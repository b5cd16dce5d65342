//! Asks one endpoint after the other.

use std::{
    sync::{
        Once,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use alloy_json_rpc::{ErrorPayload, RpcError};
use alloy_primitives::{Bytes, U64};
use alloy_rpc_client::RpcClient;
use alloy_transport::TransportError;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

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

/// Why an endpoint has no answer.
enum Refusal {
    /// Another one would say the same.
    Final(EvmError),
    /// Another one may have it.
    Passing(EvmError),
}

impl Endpoints {
    pub(super) async fn connect(urls: &[String], chain_id: Option<u64>, timeout: Duration) -> Result<Self, EvmError> {
        // Once per process, unless the program has chosen itself.
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let http = reqwest::Client::builder().timeout(timeout).tcp_nodelay(true).redirect(reqwest::redirect::Policy::none());
        let http = http.build().map_err(|error| EvmError::Unreachable(format!("HTTP: {error}")))?;
        let mut all = Vec::new();
        for url in urls {
            all.push(Endpoint::new(url, http.clone())?);
        }
        if all.is_empty() {
            return Err(EvmError::Unreachable("no endpoint is given: give the URL of one".into()));
        }
        let mut this = Self { all, current: AtomicUsize::new(0), chain_id: 0, timeout };
        this.chain_id = match chain_id {
            Some(chain_id) => chain_id,
            None => this.first_chain_id().await?,
        };
        // Says at once when no endpoint is usable.
        this.ask::<U64>("eth_blockNumber", json!([])).await?;
        Ok(this)
    }

    async fn first_chain_id(&self) -> Result<u64, EvmError> {
        let mut problems = Vec::new();
        for endpoint in &self.all {
            match endpoint.chain_id(self.timeout).await {
                Ok(chain_id) => return Ok(chain_id),
                Err(Refusal::Final(error) | Refusal::Passing(error)) => problems.push(error),
            }
        }
        Err(together(problems))
    }

    pub(super) const fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// The first answer.
    pub(super) async fn ask<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, EvmError> {
        let start = self.current.load(Ordering::Relaxed);
        let mut problems = Vec::new();
        for turn in 0..self.all.len() {
            let index = (start + turn) % self.all.len();
            let Some(endpoint) = self.all.get(index) else { continue };
            match endpoint.checked(self.chain_id, self.timeout, method, &params).await {
                Ok(answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    let problem = |error: serde_json::Error| EvmError::Malformed { method, problem: error.to_string() };
                    return serde_json::from_value(answer).map_err(problem);
                }
                Err(Refusal::Final(error)) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Err(error);
                }
                Err(Refusal::Passing(error)) => {
                    tracing::debug!(%error, method, "an endpoint fails; asking the next one");
                    problems.push(error);
                }
            }
        }
        Err(together(problems))
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
        let parsed: reqwest::Url = url.parse().map_err(|error| EvmError::Unreachable(format!("endpoint: is no URL: {error}")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(EvmError::Unreachable("endpoint: begins with neither http:// nor https://".into()));
        }
        let name = parsed.origin().ascii_serialization();
        Ok(Self { name, client: RpcClient::new_http_with_client(http, parsed), checked: AtomicBool::new(false) })
    }

    /// Asks, once it is sure that this is the right chain.
    async fn checked(&self, chain_id: u64, timeout: Duration, method: &'static str, params: &Value) -> Result<Value, Refusal> {
        if !self.checked.load(Ordering::Relaxed) {
            let actual = self.chain_id(timeout).await?;
            if actual != chain_id {
                let error = EvmError::WrongChain { endpoint: self.name.clone(), actual, expected: chain_id };
                return Err(Refusal::Passing(error));
            }
            self.checked.store(true, Ordering::Relaxed);
        }
        let answer = self.ask(timeout, method, params).await;
        if matches!(answer, Err(Refusal::Passing(_))) {
            // What answers at this address next may be something else.
            self.checked.store(false, Ordering::Relaxed);
        }
        answer
    }

    async fn chain_id(&self, timeout: Duration) -> Result<u64, Refusal> {
        let answer = self.ask(timeout, "eth_chainId", &json!([])).await?;
        let malformed = |error: serde_json::Error| EvmError::Malformed { method: "eth_chainId", problem: error.to_string() };
        serde_json::from_value::<U64>(answer).map(|id| id.to()).map_err(|error| Refusal::Passing(malformed(error)))
    }

    async fn ask(&self, timeout: Duration, method: &'static str, params: &Value) -> Result<Value, Refusal> {
        let unreachable = |problem: String| Refusal::Passing(EvmError::Unreachable(format!("{}: {problem}", self.name)));
        match tokio::time::timeout(timeout, self.client.request::<_, Value>(method, params)).await {
            Err(_) => Err(unreachable(format!("no answer to {method} within {timeout:?}"))),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(RpcError::ErrorResp(payload))) => Err(refusal(&self.name, &payload)),
            Ok(Err(RpcError::DeserError { err, .. })) => {
                let problem = format!("{}: {err}", self.name);
                Err(Refusal::Passing(EvmError::Malformed { method, problem }))
            }
            // Of transport errors only their kind is repeated: their text may have the URL in it.
            Ok(Err(error)) => Err(unreachable(cause(&error))),
        }
    }
}

/// What failed, without the URL.
fn cause(error: &TransportError) -> String {
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
fn refusal(name: &str, payload: &ErrorPayload) -> Refusal {
    if let Some(data) = payload.as_revert_data() {
        return Refusal::Final(EvmError::Reverted(data));
    }
    let says = payload.message.to_lowercase();
    let any = |phrases: &[&str]| phrases.iter().any(|phrase| says.contains(phrase));
    if any(&["execution reverted", "revert"]) {
        return Refusal::Final(EvmError::Reverted(Bytes::new()));
    }
    if any(&["insufficient funds", "gas required exceeds allowance"]) {
        return Refusal::Final(EvmError::NoGas(words(&payload.message)));
    }
    // Internal failures, limits on how often one may ask, and blocks that this node has not seen yet.
    let passing = matches!(payload.code, -32603 | -32005 | -32001 | 429)
        || any(&["rate limit", "too many requests", "header not found", "unknown block", "timeout", "timed out"]);
    if passing {
        Refusal::Passing(EvmError::Unreachable(format!("{name}: {}", words(&payload.message))))
    } else {
        Refusal::Final(EvmError::InvalidTransaction(words(&payload.message)))
    }
}
