//! A store for other nodes, over HTTP: the files of a source, ranges of them included, and nothing else.

use std::path::PathBuf;

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use tower_http::services::ServeFile;

use super::{
    ModelStore,
    layout::Layout,
    source::{digest, is_name},
};

impl ModelStore {
    /// The store as a [`Source`](crate::Source), read-only, for a server that bounds connections and calls.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/manifests/{file}", get(manifest))
            .route("/blobs/sha256/{hash}", get(blob))
            .route("/names/{name}", get(name))
            .with_state(self.layout.clone())
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
