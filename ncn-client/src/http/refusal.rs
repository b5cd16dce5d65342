//! The error that an answer over HTTP tells.

use std::time::Duration;

use ncn_core::TransportError;
use ncn_wire::json::Problem;
use reqwest::{
    StatusCode,
    header::{self, HeaderMap},
};

use crate::calls::unreachable;

/// What the answer's body says; or else what its status says, since proxies answer too.
pub(crate) fn refusal(endpoint: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> TransportError {
    match serde_json::from_slice(body) {
        Ok(Problem { error: Some(TransportError::Unreachable { problem, .. }), .. }) => unreachable(endpoint, &problem),
        Ok(Problem { error: Some(error), .. }) => error,
        _ => by_status(endpoint, status, headers),
    }
}

fn by_status(endpoint: &str, status: StatusCode, headers: &HeaderMap) -> TransportError {
    match status {
        StatusCode::TOO_MANY_REQUESTS => {
            let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            TransportError::Overloaded { retry_after: Duration::from_secs(seconds.unwrap_or(1)) }
        }
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            unreachable(endpoint, &format!("the answer is {status}"))
        }
        status if status.is_server_error() => TransportError::Internal(format!("the answer is {status}")),
        status => TransportError::Malformed(format!("{status} without a reason: is there a gateway at this address?")),
    }
}
