//! Asks one endpoint after the other.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use alloy_primitives::U64;
use futures::future::join_all;
use reqwest::{Client, Url, header};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    answers::{Read, whole},
    refusal::{Refusal, Said, words},
};
use crate::{
    evm::EvmError,
    foreign::{self, Meaning, Question},
};

/// The largest answer with logs.
const MAX_LOGS_BYTES: usize = 32 << 20;
/// The largest answer to anything else: the names of a large block's transactions, say.
const MAX_ANSWER_BYTES: usize = 4 << 20;

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
    url: Url,
    client: Client,
    /// Whether it has said that it is of the right chain.
    checked: AtomicBool,
}

/// What came of a question.
pub(super) struct Asked<T> {
    pub(super) answer: Result<T, EvmError>,
    /// Whether an endpoint that failed before the one that this is of may have done what it was asked.
    pub(super) doubtful: bool,
    /// Whether less may be answered.
    pub(super) narrower: bool,
}

/// A question, and how long an answer may take.
#[derive(Clone, Copy)]
struct Ask<'a> {
    method: &'static str,
    params: &'a Value,
    timeout: Duration,
}

impl Endpoints {
    pub(super) async fn connect(urls: &[String], chain_id: Option<u64>, timeout: Duration) -> Result<Self, EvmError> {
        let http = crate::http().and_then(reqwest::ClientBuilder::build);
        let http = http.map_err(|error| EvmError::Unreachable(format!("HTTP: {}", foreign::cause(error))))?;
        let mut all = Vec::new();
        for url in urls {
            all.push(Endpoint::new(url, http.clone())?);
        }
        if all.is_empty() {
            return Err(EvmError::InvalidEndpoint("none is given: write http://HOST:PORT".into()));
        }
        let this = Self { all, current: AtomicUsize::new(0), chain_id: 0, timeout };
        // All of them, at once: one of another chain is a mistake that is better found now than when the others fail.
        let chain_ids = join_all(this.all.iter().map(|endpoint| endpoint.chain_id_again(timeout))).await;
        let first = chain_ids.iter().find_map(|id| id.as_ref().ok().copied());
        let Some(expected) = first.map(|first| chain_id.unwrap_or(first)) else {
            return Err(together(
                chain_ids.into_iter().filter_map(Result::err).map(|refusal| refusal.error).collect(),
                Question::Read,
            ));
        };
        for (endpoint, actual) in this.all.iter().zip(chain_ids) {
            match actual {
                Ok(actual) => endpoint.expect(actual, expected)?,
                Err(refusal) => tracing::warn!(error = %refusal.error, "an endpoint fails; it is tried when others do too"),
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

    /// The first answer that can be read. Those that may answer the same question later are asked again, a few times, except to take a
    /// transaction: that is for who knows whether it was taken.
    pub(super) async fn read<T>(&self, method: &'static str, params: Value, read: impl Fn(&Value) -> Read<T>) -> Asked<T> {
        let start = self.current.load(Ordering::Relaxed);
        let ask = Ask { method, params: &params, timeout: self.timeout };
        let count = self.all.len();
        let mut problems: Vec<Option<Refusal>> = (0..count).map(|_| None).collect();
        let mut turns: Vec<usize> = (0..count).map(|turn| (start + turn) % count).collect();
        let mut doubtful = false;
        for next in 1.. {
            for index in &turns {
                let (Some(endpoint), Some(problem)) = (self.all.get(*index), problems.get_mut(*index)) else { continue };
                let answer = match endpoint.checked(self.chain_id, ask, &read).await {
                    Ok(answer) => Ok(answer),
                    Err(Refusal { error, meaning: Meaning::Final, .. }) => Err(error),
                    Err(refusal) => {
                        tracing::debug!(error = %refusal.error, method, "an endpoint fails; asking the next one");
                        doubtful |= !refusal.is_unheard;
                        *problem = Some(refusal);
                        continue;
                    }
                };
                self.current.store(*index, Ordering::Relaxed);
                return Asked { answer, doubtful, narrower: false };
            }
            if question(method) == Question::Send {
                break;
            }
            let pause = |index: &usize| problems.get(*index)?.as_ref()?.meaning.pause(next);
            turns.retain(|index| pause(index).is_some());
            let Some(pause) = turns.iter().filter_map(pause).min() else { break };
            tokio::time::sleep(pause).await;
        }
        let problems: Vec<_> = problems.into_iter().flatten().collect();
        let smaller = |refusal: &Refusal| matches!(refusal.meaning, Meaning::Narrower | Meaning::Again { .. });
        let narrower = question(method) == Question::Logs && problems.iter().any(smaller);
        let answer = Err(together(problems.into_iter().map(|refusal| refusal.error).collect(), question(method)));
        Asked { answer, doubtful, narrower }
    }
}

fn question(method: &str) -> Question {
    match method {
        "eth_getLogs" => Question::Logs,
        "eth_sendRawTransaction" => Question::Send,
        _ => Question::Read,
    }
}

/// All endpoints' problems as one. Where one alone is more than a passing failure, that is what there is to say, but of a transaction that
/// another one may have taken.
fn together(mut problems: Vec<EvmError>, question: Question) -> EvmError {
    let is_doubtful = |problem: &EvmError| matches!(problem, EvmError::Unreachable(_) | EvmError::Malformed { .. });
    let is_passing = |problem: &EvmError| matches!(problem, EvmError::Unreachable(_) | EvmError::Unsupported(_));
    let told = match question {
        Question::Send => problems.iter().position(is_doubtful),
        _ => None,
    };
    let none_knows = || problems.iter().all(|problem| matches!(problem, EvmError::Unsupported(_))).then_some(0);
    if let Some(index) = told.or_else(|| problems.iter().position(|problem| !is_passing(problem))).or_else(none_knows)
        && index < problems.len()
    {
        return problems.swap_remove(index);
    }
    let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
    EvmError::Unreachable(problems.join("; "))
}

impl Endpoint {
    fn new(url: &str, client: Client) -> Result<Self, EvmError> {
        let url: Url =
            url.parse().map_err(|error| EvmError::InvalidEndpoint(format!("is no URL ({error}): write http://HOST:PORT")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(EvmError::InvalidEndpoint("begins with neither http:// nor https://".into()));
        }
        Ok(Self { name: url.origin().ascii_serialization(), url, client, checked: AtomicBool::new(false) })
    }

    /// Asks, once it is sure that this is the right chain, and reads the answer.
    async fn checked<T>(&self, chain_id: u64, ask: Ask<'_>, read: impl Fn(&Value) -> Read<T>) -> Result<T, Refusal> {
        if !self.checked.load(Ordering::Relaxed) {
            let chain = self.chain_id(ask.timeout).await;
            let expected = chain.and_then(|actual| self.expect(actual, chain_id).map_err(Refusal::elsewhere));
            expected.map_err(|refusal| Refusal { is_unheard: true, ..refusal })?;
        }
        let answer = self.ask(ask).await;
        let answer = answer.and_then(|answer| read(&answer).map_err(|problem| self.malformed(ask.method, &problem)));
        if answer.as_ref().is_err_and(|refusal| refusal.meaning != Meaning::Final) {
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
        let answer = self.ask(Ask { method: "eth_chainId", params: &json!([]), timeout }).await?;
        let id: Read<U64> = whole(&answer);
        id.map(|id| id.to()).map_err(|problem| self.malformed("eth_chainId", &problem))
    }

    async fn chain_id_again(&self, timeout: Duration) -> Result<u64, Refusal> {
        for next in 1.. {
            let refusal = match self.chain_id(timeout).await {
                Ok(id) => return Ok(id),
                Err(refusal) => refusal,
            };
            match refusal.meaning.pause(next) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(refusal),
            }
        }
        unreachable!("the tries end")
    }

    fn malformed(&self, method: &'static str, problem: &str) -> Refusal {
        Refusal::elsewhere(EvmError::Malformed { method, problem: format!("{} ({})", words(problem), self.name) })
    }

    fn unreachable(&self, problem: &str, meaning: Meaning) -> Refusal {
        Refusal { error: EvmError::Unreachable(format!("{}: {problem}", self.name)), meaning, is_unheard: false }
    }

    async fn ask(&self, ask: Ask<'_>) -> Result<Value, Refusal> {
        let Ask { method, timeout, .. } = ask;
        tokio::time::timeout(timeout, self.post(ask)).await.unwrap_or_else(|_| {
            let meaning = if question(method) == Question::Logs { Meaning::Narrower } else { Meaning::Elsewhere };
            Err(self.unreachable(&format!("no answer to {method} within {timeout:?}"), meaning))
        })
    }

    async fn post(&self, Ask { method, params, .. }: Ask<'_>) -> Result<Value, Refusal> {
        // One question a call: its number says nothing.
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let request = self.client.post(self.url.clone()).header(header::CONTENT_TYPE, "application/json").body(body);
        let failed = |error: reqwest::Error| {
            let (meaning, is_unheard) = (foreign::of_failure(&error), error.is_connect());
            Refusal { is_unheard, ..self.unreachable(&words(&foreign::cause(error)), meaning) }
        };
        let mut response = request.send().await.map_err(failed)?;
        let most = if question(method) == Question::Logs { MAX_LOGS_BYTES } else { MAX_ANSWER_BYTES };
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(failed)? {
            if body.len() + part.len() > most {
                return Err(self.unreachable(&format!("its answer to {method} has more than {most} bytes"), Meaning::Narrower));
            }
            body.extend_from_slice(&part);
        }
        let status = response.status();
        match serde_json::from_slice::<Said>(&body) {
            Ok(Said { error: Some(error), .. }) => Err(error.refusal(&self.name, question(method), status, response.headers())),
            Ok(Said { result: Some(result), error: None }) if status.is_success() => Ok(result),
            Ok(_) if status.is_success() => Err(self.malformed(method, "result: is missing")),
            Err(error) if status.is_success() => Err(self.malformed(method, &format!("result: {error}"))),
            // A proxy's page may have the URL in it: it is not repeated.
            _ => Err(self.unreachable(&format!("HTTP status {status}"), foreign::of_status(status, response.headers()))),
        }
    }
}
