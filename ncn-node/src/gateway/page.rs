//! A page for people who watch the gateway: its files are in this program, and it asks for nothing from elsewhere.

use std::{
    future::ready,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use ncn_core::{B256, TransportError};
use tonic::codegen::http::{HeaderValue, header};

use super::Gateway;
use crate::server::{by_address, plain};

/// For how long everyone who asks has the same overview: many who watch cost little more than one.
const AGE: Duration = Duration::from_millis(250);
/// What a browser may do with the page: nothing but ask this server. What a model has made is shown as a picture, or played, and never run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; media-src data:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The page at `/`, and what it asks for. It shows who ordered what, and receipts, to everyone who reaches it by its IP address. It can be served
/// before there is a gateway.
#[derive(Clone, Default)]
pub struct Page(Arc<Shown>);

#[derive(Default)]
struct Shown {
    gateway: OnceLock<Arc<Gateway>>,
    overview: Mutex<Option<(Instant, Bytes)>>,
}

impl Page {
    /// Of no gateway yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// From here on it shows this gateway; the first one stays.
    pub fn show(&self, gateway: &Arc<Gateway>) {
        let _ = self.0.gateway.set(gateway.clone());
    }

    /// The page's files, `/overview`, and `/overview/ID` for a request.
    pub fn routes(&self) -> Router {
        let asset = |kind: &'static str, text: &'static str| get(move || ready(file(kind, text.into())));
        let routes = Router::new()
            .route("/", asset("text/html; charset=utf-8", include_str!("page/index.html")))
            .route("/page.css", asset("text/css", include_str!("page/page.css")))
            .route("/page.js", asset("text/javascript", include_str!("page/page.js")))
            .route("/overview", get(overview))
            .route("/overview/{request_id}", get(detail))
            .with_state(self.0.clone());
        by_address(routes)
    }
}

fn file(kind: &'static str, data: Bytes) -> Response {
    let mut response = Response::new(Body::from(data));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

impl Shown {
    /// Once it has started.
    fn gateway(&self) -> Result<&Arc<Gateway>, TransportError> {
        self.gateway.get().ok_or_else(plain::busy)
    }

    fn overview(&self) -> Result<Bytes, TransportError> {
        let gateway = self.gateway()?;
        let mut newest = self.overview.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, overview)) = &*newest
            && at.elapsed() < AGE
        {
            return Ok(overview.clone());
        }
        let overview = serde_json::to_vec(&gateway.overview()).map_err(|error| TransportError::Internal(error.to_string()))?;
        let overview = Bytes::from(overview);
        *newest = Some((Instant::now(), overview.clone()));
        Ok(overview)
    }

    fn detail(&self, id: &str) -> Result<Bytes, TransportError> {
        let id = id.parse::<B256>();
        let id = id.map_err(|_| TransportError::invalid("request_id", "is no request's id: write 0x and 64 hexadecimal digits"))?;
        let detail = self.gateway()?.detail(id)?;
        Ok(serde_json::to_vec(&detail).map_err(|error| TransportError::Internal(error.to_string()))?.into())
    }
}

fn answer(json: Result<Bytes, TransportError>) -> Response {
    json.map_or_else(|error| plain::answer(error).into_response(), |json| file("application/json", json))
}

async fn overview(State(shown): State<Arc<Shown>>) -> Response {
    answer(shown.overview())
}

async fn detail(State(shown): State<Arc<Shown>>, id: Result<Path<String>, PathRejection>) -> Response {
    // What is no text is no id.
    answer(shown.detail(&id.map(|Path(id)| id).unwrap_or_default()))
}
