//! Listening: for gRPC, and for whatever else is mounted beside it.

mod answer;
mod body;
mod connection;
mod intake;
mod pool;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use connection::Connection;
use futures::StreamExt as _;
use intake::Intake;
use pool::Pool;
use rustix::process::{Resource, getrlimit};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    service::Routes,
    transport::{Identity, ServerTlsConfig},
};

// What strangers can make a server hold in memory is the sum of these products:
//
//   unread      CONNECTIONS x CONNECTION_WINDOW x 1.5    384 MiB   h2 allows half as much for its records of small frames
//   messages    MESSAGE_BYTES x 5                        320 MiB   the message, and entries of twice its length that grow
//   streams     STREAM_BYTES x 5                         320 MiB   at a gateway, from nodes that it has admitted
//   answers     ANSWER_BYTES x 1                         128 MiB   as they are sent
//   calls       CALLS x (64 + 128) KiB                   384 MiB   headers of 8 KiB as a map, buffers, a frame; short entries
//   watches     WATCHES x (64 + 128) KiB                  96 MiB   the same
//   TLS         CONNECTIONS x (64 + 32) KiB               96 MiB   where it is used: what waits to be sent, and a record each way
//
// together 1,408 MiB without the streams, of which one address alone gets half: 704 MiB. What the kernel holds of unsent bytes is not in it:
// up to 4 MiB of a connection by Linux's defaults, for 30 s.

/// From which address a call comes.
pub(crate) fn caller<T>(request: &tonic::Request<T>) -> Option<IpAddr> {
    intake::caller(request.extensions()).map(|peer| peer.address)
}

/// Any free port of this machine.
pub const LOOPBACK: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0));
/// How many connections are open at once, where the process may have so many files open.
const CONNECTIONS: usize = 1_024;
/// How many files are left to everything else of the process: its store, its own connections, its workers.
const OTHER_FILES: u64 = 256;
/// After an error that is no connection's own, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many bytes of a connection have been received and not been read. On a way of 100 ms it lets 2.5 MB/s through.
const CONNECTION_WINDOW: u32 = 256 << 10;
/// How many calls are open at once, answers that are being sent included.
const CALLS: usize = 2_048;
/// How many watches are open at once. Each is woken by every change.
const WATCHES: usize = 512;
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

/// How long open calls may still take when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// How long a peer may take for the handshake of TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a server listens, and how it is called.
#[derive(Clone, Debug)]
pub struct Listen {
    address: SocketAddr,
    identity: Option<Identity>,
    url: Option<String>,
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self { address, identity: None, url: None }
    }
}

impl Listen {
    /// On this address; port 0 takes a free one.
    pub fn on(address: SocketAddr) -> Self {
        address.into()
    }

    /// With TLS, by a certificate (with those that lead to its root after it) and its key, both in PEM.
    #[must_use]
    pub fn tls(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.identity = Some(Identity::from_pem(certificate, key));
        self
    }

    /// How others call it, such as `https://gateway.example:50051`: what the node is registered with. By default the address that it listens on.
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }
}

/// A listening server. When this is dropped, it takes no more calls, and ends those that are open a second later.
pub struct Server {
    address: SocketAddr,
    url: String,
    accepting: JoinHandle<Option<()>>,
    stop: DropGuard,
}

impl Server {
    /// Serves what is mounted: gRPC services, and any other routes for HTTP/2.
    ///
    /// # Errors
    /// The address is not free, or certificate and key are none.
    pub async fn start(listen: Listen, routes: axum::Router) -> io::Result<Self> {
        let Listen { address, identity, url } = listen;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        let listener = TcpListener::bind(address).await.map_err(named)?;
        let address = listener.local_addr()?;
        let scheme = if identity.is_some() { "https" } else { "http" };
        let connections = Pool::new(connections()?);
        let (calls, watches, messages) = (Pool::new(CALLS), Pool::new(WATCHES), Pool::new(MESSAGE_BYTES));
        let (streams, answers) = (Pool::new(STREAM_BYTES), Pool::new(ANSWER_BYTES));
        let intake = Intake { calls, watches, messages, streams, answers };
        let mut builder = tonic::transport::Server::builder();
        if let Some(identity) = identity {
            let tls = ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE_TIMEOUT);
            builder = builder.tls_config(tls).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, causes(&error)))?;
        }
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        let (accepted, incoming) = mpsc::channel(1);
        let accepting = accept(listener, connections, end.clone(), accepted);
        let accepting = tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));
        let serving = builder
            .max_concurrent_streams(CALLS_PER_CONNECTION)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(HEADER_BYTES)
            .http2_keepalive_interval(Some(Duration::from_secs(15)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .layer(intake)
            .add_routes(Routes::from(routes))
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming).map(io::Result::Ok), stop.clone().cancelled_owned());
        let stopping = stop.clone();
        tokio::spawn(async move {
            // Waits for open calls.
            if let Err(error) = serving.await {
                tracing::error!(%address, %error, "the server ended");
            }
        });
        tokio::spawn(async move {
            stopping.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
            end.cancel();
        });
        let url = url.unwrap_or_else(|| format!("{scheme}://{address}"));
        Ok(Self { address, url, accepting, stop: stop.drop_guard() })
    }

    /// Stops; once this returns, its address is free. It does not wait for open calls, which end within a second.
    pub async fn shutdown(self) {
        drop(self.stop);
        // An error would be that of a runtime that ends.
        let _ = self.accepting.await;
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it is called.
    pub fn url(&self) -> String {
        self.url.clone()
    }
}

/// Accepts connections; `end` closes them.
async fn accept(listener: TcpListener, connections: Arc<Pool>, end: CancellationToken, accepted: mpsc::Sender<Connection>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = Connection::admit(stream, end.child_token(), &connections);
                if let Some(connection) = connection
                    && accepted.send(connection).await.is_err()
                {
                    return;
                }
            }
            // The peer still waits: without the pause, this would be tried again at once and for ever.
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How many connections the process can have open.
fn connections() -> io::Result<usize> {
    let Some(files) = getrlimit(Resource::Nofile).current else { return Ok(CONNECTIONS) };
    let room = usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(CONNECTIONS).min(CONNECTIONS);
    if room == 0 {
        let problem = format!("only {files} files may be open, at least {} are needed: raise `ulimit -n`", OTHER_FILES + 1);
        return Err(io::Error::other(problem));
    }
    Ok(room)
}

/// What lies beneath an error says more than the error.
fn causes(error: &dyn std::error::Error) -> String {
    let beneath = std::iter::successors(error.source(), |error| error.source());
    beneath.fold(error.to_string(), |text, error| format!("{text}: {error}"))
}
