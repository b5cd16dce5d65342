//! Listening: for gRPC, and for whatever else is mounted beside it.

mod answer;
mod begun;
mod body;
mod bounds;
mod connection;
#[cfg(feature = "http")]
mod hosts;
mod intake;
mod metrics;
pub(crate) mod plain;
mod pool;
mod rates;
mod services;
#[cfg(feature = "http")]
pub(crate) mod socket;
mod tls;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use begun::Begun;
use bounds::Bounds;
use connection::{Connection, Peer};
#[cfg(feature = "http")]
pub use hosts::by_address;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder as Protocols,
    service::TowerToHyperService,
};
use intake::Intake;
pub use intake::TRIAL;
pub use metrics::{RenderMetrics, metrics_routes};
use pool::Pool;
use rates::Counters;
pub use rates::{PerMinute, Rates};
pub use services::Services;
pub use tls::Identity;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic_health::{ServingStatus, server::HealthReporter};

/// From which address a call comes.
pub(crate) fn caller<T>(request: &tonic::Request<T>) -> Option<IpAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.address)
}

/// Any free port of this machine.
pub const LOOPBACK: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0));
/// After an error that is no connection's own, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many calls of one connection are open at once; a client keeps more waiting.
const CALLS_PER_CONNECTION: u32 = 256;
/// The most bytes of a call's headers. Ours have less than 1 KiB.
const HEADER_BYTES: u32 = 8 << 10;

/// How long open calls may still take when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// How many headers a call over HTTP/1 may have, and how long it may take until the last of them: from its beginning, or from the end of the call
/// before it on the connection.
const HEADERS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
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

    /// With TLS, as this one.
    #[must_use]
    pub fn tls(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
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
    first: Port,
    others: Vec<Port>,
    stop: DropGuard,
    health: HealthReporter,
}

/// Where a server listens.
struct Port {
    address: SocketAddr,
    url: String,
    accepting: JoinHandle<Option<()>>,
}

impl Server {
    /// Serves what is mounted, gRPC services and other routes, over HTTP/1 and HTTP/2; and for those who have no code of ours, gRPC's health and
    /// reflection. It runs on the Tokio runtime that this is called in.
    ///
    /// # Errors
    /// The address is not free.
    pub fn start(listen: Listen, services: impl Into<Services>) -> io::Result<Self> {
        Self::start_at(listen, Vec::new(), services, None)
    }

    /// The same within smaller bounds, for what takes no messages: figures, pages, files.
    ///
    /// # Errors
    /// The address is not free.
    pub fn start_small(listen: Listen, services: impl Into<Services>) -> io::Result<Self> {
        Self::start_within(Bounds::FILES, listen, Vec::new(), services, None)
    }

    /// The same at several addresses, within the bounds of one, and of so many calls a minute.
    ///
    /// # Errors
    /// As for one of them.
    pub fn start_at(first: Listen, others: Vec<Listen>, services: impl Into<Services>, rates: Option<Rates>) -> io::Result<Self> {
        Self::start_within(Bounds::NODE, first, others, services, rates)
    }

    fn start_within(
        bounds: Bounds,
        first: Listen,
        others: Vec<Listen>,
        services: impl Into<Services>,
        rates: Option<Rates>,
    ) -> io::Result<Self> {
        let intake = Intake {
            counters: Counters::new(rates),
            calls: Pool::new(bounds.calls),
            watches: Pool::new(bounds.watches),
            #[cfg(feature = "http")]
            sockets: Pool::with_most(bounds.sockets, rates.map_or(bounds.sockets, |rates| rates.sockets)),
            messages: Pool::new(bounds.messages),
            streams: Pool::new(bounds.streams),
            answers: Pool::new(bounds.answers),
        };
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        let (health, routes) = services.into().described();
        let places = [Pool::new(bounds.connections), bounds::files()?];
        let serving = Serving { intake, routes, protocols: protocols(bounds), places, stop: stop.clone(), end: end.clone() };
        let serving = Arc::new(serving);
        // What listens already ends with the guard, when another one cannot.
        let (stopping, stop) = (stop.clone(), stop.drop_guard());
        let mut listening = Vec::new();
        let first = Port::open(first, bounds, serving.clone())?;
        for listen in others {
            listening.push(Port::open(listen, bounds, serving.clone())?);
        }
        tokio::spawn(async move {
            stopping.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
            end.cancel();
        });
        Ok(Self { first, others: listening, stop, health })
    }

    /// Stops; once this returns, its addresses are free. It does not wait for open calls, which end within a second.
    pub async fn shutdown(self) {
        self.health.set_service_status("", ServingStatus::NotServing).await;
        drop(self.stop);
        for port in std::iter::once(self.first).chain(self.others) {
            // An error would be that of a runtime that ends.
            let _ = port.accepting.await;
        }
    }

    /// Where it listens first.
    pub const fn address(&self) -> SocketAddr {
        self.first.address
    }

    /// How it is called there.
    pub fn url(&self) -> String {
        self.first.url.clone()
    }

    /// How it is called at its other addresses.
    pub fn other_urls(&self) -> impl Iterator<Item = &str> {
        self.others.iter().map(|port| &*port.url)
    }
}

impl Port {
    fn open(listen: Listen, bounds: Bounds, serving: Arc<Serving>) -> io::Result<Self> {
        let Listen { address, identity, url } = listen;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        let listener = bounds.listen(address).map_err(named)?;
        let address = listener.local_addr()?;
        let scheme = if identity.is_some() { "https" } else { "http" };
        let stop = serving.stop.clone();
        let accepting = tokio::spawn(stop.run_until_cancelled_owned(accept(listener, identity, serving)));
        Ok(Self { address, url: url.unwrap_or_else(|| format!("{scheme}://{address}")), accepting })
    }
}

/// HTTP/1 and HTTP/2, within our bounds.
fn protocols(bounds: Bounds) -> Protocols<TokioExecutor> {
    let mut protocols = Protocols::new(TokioExecutor::new());
    protocols
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES as usize);
    protocols
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        .initial_connection_window_size(bounds.unread)
        .initial_stream_window_size(bounds.unread)
        .max_header_list_size(HEADER_BYTES)
        .keep_alive_interval(Some(Duration::from_secs(15)))
        .keep_alive_timeout(Duration::from_secs(10));
    protocols
}

/// What each connection is served with.
struct Serving {
    intake: Intake,
    routes: Router,
    protocols: Protocols<TokioExecutor>,
    /// For connections: the server's, and the process's.
    places: [Arc<Pool>; 2],
    /// Ends accepting, and calls once they are answered.
    stop: CancellationToken,
    /// Ends connections.
    end: CancellationToken,
}

impl Serving {
    async fn connection(&self, connection: Connection, tls: Option<TlsAcceptor>) {
        let peer = connection.peer().clone();
        let Some(tls) = tls else { return self.talk(connection, peer).await };
        match timeout(HANDSHAKE_TIMEOUT, tls.accept(connection)).await {
            Ok(Ok(stream)) => self.talk(stream, peer).await,
            Ok(Err(error)) => tracing::debug!(peer = %peer.address, %error, "a handshake failed"),
            Err(_) => tracing::debug!(peer = %peer.address, "a handshake took too long"),
        }
    }

    /// Serves calls; when the server stops, it takes no more and waits for those that are open.
    async fn talk(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, peer: Peer) {
        let service = TowerToHyperService::new(self.intake.admission(self.routes.clone(), peer));
        let mut serving = std::pin::pin!(
            self.protocols.serve_connection_with_upgrades(TokioIo::new(Begun::within(HEADER_TIMEOUT, stream)), service)
        );
        let served = tokio::select! {
            served = &mut serving => served,
            () = self.stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection broke off");
        }
    }
}

/// Accepts connections.
async fn accept(listener: TcpListener, identity: Option<Identity>, serving: Arc<Serving>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Some(connection) = Connection::admit(stream, serving.end.child_token(), &serving.places) {
                    let (serving, tls) = (serving.clone(), identity.as_ref().map(Identity::acceptor));
                    tokio::spawn(async move { serving.connection(connection, tls).await });
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
