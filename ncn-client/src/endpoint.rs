//! Where a gateway or a registry node is called.

use std::sync::Arc;

use ncn_core::Transport;

#[cfg(feature = "grpc")]
use crate::grpc::GrpcTransport;
#[cfg(feature = "http")]
use crate::http::HttpTransport;
#[cfg(feature = "ws")]
use crate::ws::WebSocketTransport;

/// An address that cannot be called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{url}` {problem}")]
pub struct EndpointError {
    /// What was given.
    pub url: String,
    /// Why, and what to do.
    pub problem: &'static str,
}

impl EndpointError {
    pub(crate) fn new(url: &str, problem: &'static str) -> Self {
        Self { url: url.chars().take(256).collect(), problem }
    }
}

/// A gateway by its URL, whose scheme says how it is called: `grpc` or `grpcs`, the latter with TLS, over gRPC; `http` or `https` over HTTP; `ws` or `wss` over WebSocket. Each takes
/// the feature of its name. It is called when it is first used.
///
/// # Errors
/// It is no such URL, or this build has no way to it.
pub fn transport(url: &str) -> Result<Arc<dyn Transport>, EndpointError> {
    match url.split_once("://").map(|(scheme, _)| scheme) {
        #[cfg(feature = "grpc")]
        Some("grpc" | "grpcs") => Ok(Arc::new(GrpcTransport::new(url)?)),
        #[cfg(feature = "http")]
        Some("http" | "https") => Ok(Arc::new(HttpTransport::new(url)?)),
        #[cfg(feature = "ws")]
        Some("ws" | "wss") => Ok(Arc::new(WebSocketTransport::new(url)?)),
        #[cfg(not(feature = "ws"))]
        Some("ws" | "wss") => Err(EndpointError::new(url, "takes ncn-client's feature `ws`, which this build has not")),
        #[cfg(not(feature = "grpc"))]
        Some("grpc" | "grpcs") => Err(EndpointError::new(url, "takes ncn-client's feature `grpc`, which this build has not")),
        #[cfg(not(feature = "http"))]
        Some("http" | "https") => Err(EndpointError::new(url, "takes ncn-client's feature `http`, which this build has not")),
        _ => Err(EndpointError::new(url, "is not a URL to call: write http://HOST:PORT, or https, grpc, grpcs, ws or wss")),
    }
}
