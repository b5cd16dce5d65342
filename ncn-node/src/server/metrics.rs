//! What a node measures, for those who collect it.

use std::sync::Arc;

use axum::{Router, body::Body, response::Response, routing::get};
use tonic::codegen::http::{HeaderValue, header};

/// Writes down what was measured so far, in the text format of Prometheus.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Answers `GET /metrics`.
pub fn metrics_routes(render: RenderMetrics) -> Router {
    let answer = move || {
        let mut response = Response::new(Body::from(render()));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
        std::future::ready(response)
    };
    Router::new().route("/metrics", get(answer))
}
