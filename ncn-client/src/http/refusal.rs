//! The error that an answer over HTTP tells.

use std::time::Duration;

use ncn_core::TransportError;
use ncn_wire::json::Problem;
use reqwest::{StatusCode, header::HeaderMap};

use crate::{
    calls::unreachable,
    foreign::{self, Meaning},
};

/// What the answer's body says; or else what its status says, since proxies answer too.
pub(crate) fn refusal(endpoint: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> TransportError {
    match serde_json::from_slice(body) {
        Ok(Problem { error: Some(TransportError::Unreachable { problem, .. }), .. }) => unreachable(endpoint, &problem),
        Ok(Problem { error: Some(error), .. }) => error,
        _ => by_status(endpoint, status, headers),
    }
}

fn by_status(endpoint: &str, status: StatusCode, headers: &HeaderMap) -> TransportError {
    match foreign::of_status(status, headers) {
        Meaning::TooOften { after } => TransportError::Overloaded { retry_after: after.unwrap_or(Duration::from_secs(1)) },
        // What the gateway itself says has a reason: it is a proxy that fails.
        Meaning::Again { .. } if status != StatusCode::INTERNAL_SERVER_ERROR => {
            unreachable(endpoint, &format!("the answer is {status}"))
        }
        _ if status.is_server_error() => TransportError::Internal(format!("the answer is {status}")),
        _ => TransportError::Malformed(format!("{status} without a reason: is there a gateway at this address?")),
    }
}
