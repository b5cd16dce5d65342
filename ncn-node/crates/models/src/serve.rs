//! Serving a store to other nodes, over plain HTTP: the files of a source, ranges of them included, and nothing else.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower_http::services::ServeFile;

use super::{
    ModelStore,
    layout::Layout,
    source::{digest, is_name},
};

/// How many connections are served at once; more wait.
const CONNECTIONS: usize = 64;
/// How long a request may take to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last. Whoever needs longer goes on where it was.
const CONNECTION_LIFE: Duration = Duration::from_hours(1);

/// A store that is served, read-only; it stops when this is dropped.
pub struct ModelServer {
    address: SocketAddr,
    _stop: DropGuard,
}

impl ModelServer {
    /// Serves the store on this address; port 0 takes a free one.
    pub async fn start(store: &ModelStore, address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let routes = Router::new()
            .route("/manifests/{file}", get(manifest))
            .route("/blobs/sha256/{hash}", get(blob))
            .route("/names/{name}", get(name))
            .with_state(store.layout.clone());
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, routes)));
        Ok(Self { address, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL as a source.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn accept(listener: TcpListener, routes: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        drop(stream.set_nodelay(true));
        let service = TowerToHyperService::new(routes.clone());
        connections.spawn(async move {
            let _place = place;
            let mut http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
            http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            drop(timeout(CONNECTION_LIFE, http.serve_connection(TokioIo::new(stream), service)).await);
        });
    }
}

async fn manifest(State(layout): State<Layout>, Path(file): Path<String>, request: Request) -> Response {
    let digest = file.strip_suffix(".json").and_then(digest);
    serve(digest.map(|digest| layout.manifest(&digest)), request).await
}

async fn blob(State(layout): State<Layout>, Path(hash): Path<String>, request: Request) -> Response {
    serve(digest(&hash).map(|sha256| layout.blob(&sha256)), request).await
}

async fn name(State(layout): State<Layout>, Path(name): Path<String>, request: Request) -> Response {
    serve(is_name(&name).then(|| layout.name(&name)), request).await
}

async fn serve(path: Option<PathBuf>, request: Request) -> Response {
    let Some(path) = path else { return StatusCode::NOT_FOUND.into_response() };
    match ServeFile::new(path).try_call(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => {
            tracing::warn!(%error, "a file was not served");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
