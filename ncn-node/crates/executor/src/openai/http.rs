use std::{fmt, path::PathBuf, time::Duration};

use ncn_client::foreign::{self, Meaning};
use ncn_core::ExecutorError;
use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::answer::{Models, Refusal, Refused};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that is not streamed.
const MAX_BODY_BYTES: usize = 16 << 20;
/// How much of what an engine says is passed on.
const MAX_MESSAGE_CHARS: usize = 1_000;

/// Where an engine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenAiOptions {
    /// The interface's base URL, such as `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// Where the API key is, when the engine wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<ApiKey>,
}

/// Why an engine cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenAiError {
    /// The base URL is none.
    #[error("url: {0}: write http://HOST:PORT/v1")]
    Url(String),
    /// There is no key where it should be.
    #[error("api_key: {0}")]
    ApiKey(String),
    /// There is no HTTP here.
    #[error("HTTP: {0}")]
    Http(#[from] reqwest::Error),
}

/// Where an API key is. It is read once, when the executor is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApiKey {
    /// In the environment variable with this name.
    Env(String),
    /// In this file.
    File(PathBuf),
}

impl ApiKey {
    fn header(&self) -> Result<HeaderValue, OpenAiError> {
        let wrong = OpenAiError::ApiKey;
        let key = match self {
            Self::Env(name) => std::env::var(name).map_err(|error| wrong(format!("{name}: {error}")))?,
            Self::File(path) => std::fs::read_to_string(path).map_err(|error| wrong(format!("{}: {error}", path.display())))?,
        };
        let mut header = HeaderValue::try_from(format!("Bearer {}", key.trim()))
            .map_err(|_| wrong("has letters that no header can have".into()))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

/// An engine, and how it is spoken to.
#[derive(Clone)]
pub(super) struct Http {
    client: Client,
    base: Url,
    key: Option<HeaderValue>,
}

impl Http {
    pub(super) fn new(options: &OpenAiOptions) -> Result<Self, OpenAiError> {
        let mut base = Url::parse(&options.url).map_err(|error| OpenAiError::Url(error.to_string()))?;
        let plain = base.username().is_empty() && base.password().is_none() && base.query().is_none() && base.fragment().is_none();
        if !matches!(base.scheme(), "http" | "https") || !plain {
            return Err(OpenAiError::Url("takes http or https, without a user, a query or a fragment".into()));
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        // A connection that is kept may be closed by the engine just as it is used again; that request would fail.
        let client = ncn_client::http()?.connect_timeout(CONNECT_TIMEOUT).pool_max_idle_per_host(0).build()?;
        let key = options.api_key.as_ref().map(ApiKey::header).transpose()?;
        Ok(Self { client, base, key })
    }

    pub(super) async fn models(&self) -> Result<Vec<String>, ExecutorError> {
        let response = self.send(self.client.get(self.url("models")?)).await?;
        let models: Models = json(response).await?;
        Ok(models.data.into_iter().map(|model| model.id).collect())
    }

    /// Asks, and returns an answer that is no refusal.
    pub(super) async fn post(&self, path: &str, body: String) -> Result<Response, ExecutorError> {
        self.send(self.client.post(self.url(path)?).header(CONTENT_TYPE, "application/json").body(body)).await
    }

    fn url(&self, path: &str) -> Result<Url, ExecutorError> {
        self.base.join(path).map_err(broken)
    }

    async fn send(&self, mut request: RequestBuilder) -> Result<Response, ExecutorError> {
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.clone());
        }
        let mut next = 1;
        let response = loop {
            // Bodies here are no streams: they can be sent twice.
            let again = request.try_clone();
            let response = request.send().await.map_err(|error| broken(foreign::cause(error)))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            // It is busy and has done nothing yet. What else may pass, such as a failure in mid-work, is better done by another node.
            let is_busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
            let pause = if is_busy { foreign::of_status(status, response.headers()).pause(next) } else { None };
            let (Some(pause), Some(again)) = (pause, again) else { break response };
            tokio::time::sleep(pause).await;
            (request, next) = (again, next + 1);
        };
        let status = response.status();
        let said = body(response).await.unwrap_or_default();
        let message = serde_json::from_slice::<Refused>(&said).map_or_else(
            |_| String::from_utf8_lossy(&said).into_owned(),
            |refused| match refused.error {
                Refusal::Detailed { message, .. } | Refusal::Plain(message) => message,
            },
        );
        Err(judge(status, &message))
    }
}

/// A refusal inside an answer that had begun well.
pub(super) fn refused(refusal: Refusal) -> ExecutorError {
    match refusal {
        Refusal::Detailed { message, code } => {
            let status = code.and_then(|code| StatusCode::from_u16(u16::try_from(code.as_u64()?).ok()?).ok());
            judge(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &message)
        }
        Refusal::Plain(message) => judge(StatusCode::INTERNAL_SERVER_ERROR, &message),
    }
}

/// An answer that has ended without an end, with what the engine said in place of events.
pub(super) fn broken_off(said: &str) -> ExecutorError {
    if let Ok(Refused { error }) = serde_json::from_str(said) {
        return refused(error);
    }
    let said: String = said.trim().chars().take(MAX_MESSAGE_CHARS).collect();
    let said = if said.is_empty() { said } else { format!(": {said}") };
    broken(format_args!("its answer ended before it was done{said}"))
}

fn judge(status: StatusCode, message: &str) -> ExecutorError {
    let message: String = message.trim().chars().take(MAX_MESSAGE_CHARS).collect();
    match foreign::of_status(status, &HeaderMap::new()) {
        Meaning::Final | Meaning::Narrower => ExecutorError::InvalidInput(format!("was refused by the engine: {message}")),
        // The key, the model's name, or the engine itself: not what the client sent.
        Meaning::Again { .. } | Meaning::TooOften { .. } | Meaning::Elsewhere => broken(format_args!("{status}: {message}")),
    }
}

pub(super) async fn json<T: DeserializeOwned>(response: Response) -> Result<T, ExecutorError> {
    let body = body(response).await?;
    serde_json::from_slice(&body).map_err(|error| broken(format_args!("its answer: {error}")))
}

async fn body(mut response: Response) -> Result<Vec<u8>, ExecutorError> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|error| broken(foreign::cause(error)))? {
        if body.len() + part.len() > MAX_BODY_BYTES {
            return Err(broken(format_args!("its answer has more than {MAX_BODY_BYTES} bytes")));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// An engine that does not do its part: another node's may. Where it is, clients need not know.
pub(super) fn broken(problem: impl fmt::Display) -> ExecutorError {
    ExecutorError::Worker(format!("the engine: {problem}"))
}
