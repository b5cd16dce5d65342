//! Listening for gRPC.

use std::{io, net::SocketAddr, time::Duration};

use ncn_client::wire::MAX_MESSAGE_BYTES;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    service::{Routes, RoutesBuilder},
    transport::{Server, server::TcpIncoming},
};

/// How many calls of one connection are worked on at once; more wait.
const CALLS_PER_CONNECTION: usize = 256;
/// How much a connection may have on its way to us unread.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A listening server; it stops when this is dropped.
pub struct GrpcServer {
    address: SocketAddr,
    _stop: DropGuard,
}

impl GrpcServer {
    /// Serves on this address; port 0 takes a free one.
    pub async fn start(address: SocketAddr, routes: impl FnOnce(&mut RoutesBuilder)) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        let listener = TcpListener::bind(address).await.map_err(named)?;
        let address = listener.local_addr()?;
        let mut builder = Routes::builder();
        routes(&mut builder);
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = Server::builder()
            .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
            .max_concurrent_streams(u32::try_from(CALLS_PER_CONNECTION).ok())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(1 << 20)
            .max_frame_size(u32::try_from(MAX_MESSAGE_BYTES / 4).ok())
            .http2_keepalive_interval(Some(Duration::from_secs(15)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_routes(builder.routes())
            .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stopped);
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%address, %error, "the server ended");
            }
        });
        Ok(Self { address, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it is called.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}
