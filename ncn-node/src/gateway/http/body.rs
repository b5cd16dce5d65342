//! What clients send.

use axum::{
    body::{Body, to_bytes},
    extract::{FromRequest, Multipart, Request, multipart::MultipartError},
};
use bytes::Bytes;
use ncn_core::{Submission, TransportError, Value, Values, compute::MAX_OUTPUT_VALUES};
use ncn_wire::MAX_SMALL_MESSAGE_BYTES;
use serde::de::DeserializeOwned;
use tonic::{
    Code, Status,
    codegen::http::{HeaderMap, header},
};

use super::Failure;
use crate::server::plain::busy;

/// The part of an order in parts that is JSON.
const SUBMISSION: &str = "submission";
/// How many parts an order may have: as many inputs as JSON may, and itself.
const MAX_PARTS: usize = MAX_OUTPUT_VALUES + 1;
/// What is said at most of a body that cannot be read.
const MAX_PROBLEM_CHARS: usize = 256;

/// A body in JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned + Send + 'static, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = whole(request.into_body()).await?;
        Ok(Self(read(bytes, "body").await?))
    }
}

/// An order: as JSON, or in parts (`multipart/form-data`, RFC 7578), of which `submission` is the JSON and each other one an input: a text, or a
/// file with its media type.
pub(super) struct Order(pub(super) Submission);

impl<S: Send + Sync> FromRequest<S> for Order {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        if !is_multipart(request.headers()) {
            return Ok(Self(Json::from_request(request, state).await?.0));
        }
        let refused = |error: &dyn std::fmt::Display| TransportError::invalid("body", error.to_string());
        // As a whole: a part's head would be looked through again with each byte that arrives.
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, Body::from(whole(body).await?));
        let mut parts = Multipart::from_request(request, state).await.map_err(|error| refused(&error))?;
        let twice = |name: &str| TransportError::invalid(format!("input {name}"), "is given twice");
        let (mut submission, mut inputs, mut count) = (None, Values::new(), 0);
        while let Some(part) = parts.next_field().await.map_err(broken)? {
            count += 1;
            if count > MAX_PARTS {
                return Err(TransportError::invalid("body", format!("has more than {MAX_PARTS} parts")).into());
            }
            let name = part.name().unwrap_or_default().to_owned();
            let media_type = part.content_type().map(str::to_owned);
            let is_file = part.file_name().is_some() || media_type.as_deref().is_some_and(|kind| !kind.starts_with("text/plain"));
            let data = part.bytes().await.map_err(broken)?;
            if name == SUBMISSION {
                if submission.replace(read::<Submission>(data, SUBMISSION).await?).is_some() {
                    return Err(TransportError::invalid(SUBMISSION, "is given twice").into());
                }
                continue;
            }
            let value = if is_file {
                Value::File { media_type: media_type.unwrap_or_else(|| "application/octet-stream".into()), data }
            } else {
                let text = String::from_utf8(data.into());
                Value::Text(text.map_err(|_| TransportError::invalid(format!("input {name}"), "is no text in UTF-8"))?)
            };
            if inputs.insert(name.clone(), value).is_some() {
                return Err(twice(&name).into());
            }
        }
        let mut submission =
            submission.ok_or_else(|| TransportError::invalid(SUBMISSION, "is missing: send it as a part in JSON"))?;
        for (name, value) in inputs {
            if submission.inputs.insert(name.clone(), value).is_some() {
                return Err(twice(&name).into());
            }
        }
        Ok(Self(submission))
    }
}

fn is_multipart(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"multipart/form-data"))
}

/// All of it; the server bounds it.
async fn whole(body: Body) -> Result<Bytes, TransportError> {
    to_bytes(body, usize::MAX).await.map_err(|error| cut(&error, error.to_string()))
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: MultipartError) -> TransportError {
    cut(&error, error.body_text())
}

/// Why a body ended early: the server's reason, when it was the server.
fn cut(error: &(dyn std::error::Error + 'static), problem: String) -> TransportError {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    match causes.find_map(|cause| cause.downcast_ref::<Status>()) {
        Some(status) if status.code() == Code::ResourceExhausted => busy(),
        Some(status) => TransportError::invalid("body", status.message()),
        None => TransportError::invalid("body", problem),
    }
}

/// A value from JSON; the error says where. What is long is read where it holds up nobody.
pub(crate) async fn read<T: DeserializeOwned + Send + 'static>(bytes: Bytes, what: &'static str) -> Result<T, TransportError> {
    if bytes.len() <= MAX_SMALL_MESSAGE_BYTES {
        return parse(&bytes, what);
    }
    let reading = tokio::task::spawn_blocking(move || parse(&bytes, what)).await;
    reading.unwrap_or_else(|error| Err(TransportError::Internal(error.to_string())))
}

fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, TransportError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        // Both may say what was sent, and it was long.
        let short = |text: String| text.chars().take(MAX_PROBLEM_CHARS).collect::<String>();
        let path = short(error.path().to_string());
        let field = if matches!(&*path, "." | "?") { what.to_owned() } else { path };
        TransportError::invalid(field, short(error.into_inner().to_string()))
    })?;
    json.end().map_err(|error| TransportError::invalid(what, error.to_string()))?;
    Ok(value)
}
