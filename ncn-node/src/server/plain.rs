//! Errors as answers of calls that are not gRPC.

use std::time::Duration;

use axum::{body::Body, response::Response};
use ncn_core::TransportError;
use ncn_wire::json::Problem;
use tonic::codegen::http::{HeaderValue, StatusCode, header};

/// Which headers of an answer a page from elsewhere may read.
pub(crate) const TOLD: &str = "retry-after, ratelimit-limit, ratelimit-remaining, ratelimit-reset";

/// The error where there is no room or place.
pub(crate) const fn busy() -> TransportError {
    TransportError::Overloaded { retry_after: Duration::from_secs(1) }
}

/// The answer that tells an error: its status says the kind, its body is JSON.
pub(crate) fn answer(error: TransportError) -> Response {
    let status = StatusCode::from_u16(error.kind().http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let retry_after = match error {
        TransportError::Overloaded { retry_after } => Some(retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0)),
        _ => None,
    };
    let mut response = problem(status, &error.into());
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
}

/// The answer where nothing is.
#[cfg(feature = "http")]
pub(crate) fn nothing(status: StatusCode, message: &str) -> Response {
    let message = message.chars().take(256).collect();
    problem(status, &Problem { kind: "unknown".into(), message, retryable: false, error: None })
}

fn problem(status: StatusCode, problem: &Problem) -> Response {
    let mut response = Response::new(Body::from(serde_json::to_vec(problem).unwrap_or_default()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // So that a page in a browser is told of it, wherever the page is from.
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(TOLD));
    response
}
