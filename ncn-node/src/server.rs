//! Listening for gRPC.

mod answer;
mod body;
mod connection;
mod intake;
mod pool;

use std::{io, net::SocketAddr, time::Duration};

use connection::Connection;
use intake::Intake;
use pool::Pool;
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    service::{Routes, RoutesBuilder},
    transport::{Server, server::TcpIncoming},
};

// What strangers can make a server hold in memory is the sum of these products:
//
//   unread      CONNECTIONS x CONNECTION_WINDOW x 1.5    384 MiB   h2 allows half as much for its records of small frames
//   messages    MESSAGE_BYTES x 5                        320 MiB   the message, and entries of twice its length that grow
//   streams     STREAM_BYTES x 5                         320 MiB   at a gateway, from nodes that it has admitted
//   answers     ANSWER_BYTES x 1                         128 MiB   as they are sent
//   calls       CALLS x (64 + 128) KiB                   384 MiB   headers of 8 KiB as a map, buffers, a frame; short entries
//
// together 1,216 MiB without the streams, of which one address alone gets half: 608 MiB. What the kernel holds of unsent bytes is not in it:
// up to 4 MiB of a connection by Linux's defaults, for 30 s.

/// Any free port of this machine.
pub const LOOPBACK: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0));
/// How many connections are open at once.
const CONNECTIONS: usize = 1_024;
/// How many bytes of a connection have been received and not been read. On a way of 100 ms it lets 2.5 MB/s through.
const CONNECTION_WINDOW: u32 = 256 << 10;
/// How many calls are open at once, answers that are being sent included.
const CALLS: usize = 2_048;
/// How many calls of one connection are open at once; a client keeps more waiting.
const CALLS_PER_CONNECTION: u32 = 256;
/// How many bytes of messages are arriving or being answered at once.
const MESSAGE_BYTES: usize = 64 << 20;
/// The same of compute nodes' streams, once they are admitted. The registry has none.
const STREAM_BYTES: usize = 64 << 20;
/// How many bytes of answers' messages are being sent at once.
const ANSWER_BYTES: usize = 128 << 20;
/// The most bytes of a call's headers. Ours have less than 1 KiB.
const HEADER_BYTES: u32 = 8 << 10;

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
        let connections = Pool::new(CONNECTIONS);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).filter_map(move |accepted| match accepted {
            Ok(stream) => Connection::admit(stream, &connections).map(Ok),
            Err(error) => Some(Err(error)),
        });
        let (calls, messages) = (Pool::new(CALLS), Pool::new(MESSAGE_BYTES));
        let (streams, answers) = (Pool::new(STREAM_BYTES), Pool::new(ANSWER_BYTES));
        let intake = Intake { calls, messages, streams, answers };
        let serving = Server::builder()
            .max_concurrent_streams(CALLS_PER_CONNECTION)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(HEADER_BYTES)
            .http2_keepalive_interval(Some(Duration::from_secs(15)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .layer(intake)
            .add_routes(builder.routes())
            .serve_with_incoming_shutdown(incoming, stopped);
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
