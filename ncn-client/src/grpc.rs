//! The ports over gRPC: each client here implements the trait that the role behind it implements.

mod registry;
mod transport;
mod validator;

use std::time::Duration;

use prost::Message;
pub use registry::GrpcRegistry;
use tonic::{
    Status, Streaming,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
pub use transport::GrpcTransport;
pub use validator::GrpcValidator;

use crate::calls::{CALL_TIMEOUT, CONNECT_TIMEOUT};
pub use crate::endpoint::EndpointError;
use ncn_wire::{self as wire, MAX_MESSAGE_BYTES, RemoteError, WireError};

/// The most bytes that a list is read to, which a server sends message by message.
const MAX_LIST_BYTES: usize = 4 * MAX_MESSAGE_BYTES;

/// A connection that is made when it is first used, and again when it breaks. Behind `https` is TLS, whose certificates are held against those
/// that the system trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others. Needs a Tokio runtime.
pub fn channel(url: &str) -> Result<Channel, EndpointError> {
    Ok(endpoint(url)?.connect_lazy())
}

/// How to connect to a URL, whose scheme is `http` or `grpc`, or with TLS `https` or `grpcs`; nothing is called.
pub fn endpoint(url: &str) -> Result<Endpoint, EndpointError> {
    let refuse = |problem| EndpointError::new(url, problem);
    let no_url = || refuse("is not a URL to call: write http://HOST:PORT or https://HOST:PORT");
    // What these say, tonic knows by other names.
    let named = match url.split_once("://") {
        Some(("grpc", host)) => format!("http://{host}"),
        Some(("grpcs", host)) => format!("https://{host}"),
        _ => url.to_owned(),
    };
    let endpoint = Endpoint::from_shared(named).ok().filter(|endpoint| endpoint.uri().host().is_some());
    let endpoint = endpoint.ok_or_else(no_url)?;
    let endpoint = match endpoint.uri().scheme_str() {
        Some("http") => endpoint,
        Some("https") => {
            let tls = endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots());
            tls.map_err(|_| {
                refuse("cannot be trusted: this system has no certificates of authorities; SSL_CERT_FILE may name some")
            })?
        }
        _ => return Err(no_url()),
    };
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(15))
        .keep_alive_timeout(Duration::from_secs(10))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20))
}

/// A whole call, answer and all, within [`CALL_TIMEOUT`].
fn bounded<T, E: RemoteError>(call: impl Future<Output = Result<T, Status>>) -> impl Future<Output = Result<T, E>> {
    within(CALL_TIMEOUT, call)
}

/// A whole call, answer and all, within a time: tonic's own timeout ends at the answer's first byte. A refusal comes back as the error
/// that the service gave.
fn within<T, E: RemoteError>(
    timeout: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> impl Future<Output = Result<T, E>> {
    // Boxed at once: generated clients make large futures, and every caller's would hold one.
    let call = Box::pin(call);
    async move {
        let called = tokio::time::timeout(timeout, call).await;
        let called = called.map_err(|_| E::unreachable(format!("no answer within {timeout:?}")))?;
        called.map_err(|status| wire::from_status(&status))
    }
}

/// A list that a server sends message by message, read up to so many entries and to [`MAX_LIST_BYTES`]. Each is converted as it comes,
/// since a message may hold more memory than what is taken out of it.
async fn list<M, T>(mut messages: Streaming<M>, most: usize) -> Result<Result<Vec<T>, WireError>, Status>
where
    M: Message,
    T: TryFrom<M, Error = WireError>,
{
    let (mut list, mut bytes) = (Vec::new(), 0_usize);
    while list.len() < most
        && let Some(message) = messages.message().await?
    {
        bytes = bytes.saturating_add(message.encoded_len());
        if bytes > MAX_LIST_BYTES {
            break;
        }
        match message.try_into() {
            Ok(entry) => list.push(entry),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(list))
}
