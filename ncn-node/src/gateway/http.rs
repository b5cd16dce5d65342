//! The gateway's port for clients over HTTP: JSON, server-sent events (HTML, section 9.2), and the way to a WebSocket. A thin adapter around any
//! [`Transport`].

mod body;
mod openapi;
mod output;
mod reference;

use std::{convert::Infallible, future::ready, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State, rejection::QueryRejection},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{any, get},
};
pub(super) use body::read;
use body::{Json, Order};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use ncn_core::{
    B256, ChannelParams, PaymentConfirmation, RequestId, Signed, TaskCapability, TaskEvent, Transport, TransportError, Update,
    transport::PaymentSubmission,
};
use ncn_wire::json::{ChannelClosing, CloseChannel, Problem, TicketRequest, read_access};
use openapi::{Failures, OfRequest};
use serde::{Deserialize, Serialize};
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use tower_http::cors::{self, CorsLayer};
use utoipa::{OpenApi as _, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::websocket;
use crate::server::plain;

/// How often a client that follows a request without news hears that the connection is alive.
const ALIVE: Duration = Duration::from_secs(15);

type Gateway = State<Arc<dyn Transport>>;

/// An error as an answer.
struct Failure(TransportError);

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        plain::answer(self.0)
    }
}

type Answer = Result<Response, Failure>;

/// Serves clients over HTTP, and over WebSocket at `/ws`.
pub fn http_routes(transport: Arc<dyn Transport>) -> Router {
    let described = OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(tickets))
        .routes(routes!(submit))
        .routes(routes!(status))
        .routes(routes!(confirm))
        .routes(routes!(cancel))
        .routes(routes!(events))
        .routes(routes!(output::output))
        .routes(routes!(models))
        .routes(routes!(network))
        .routes(routes!(close_channel))
        .routes(routes!(health));
    let (routes, document) = described.split_for_parts();
    let document = serde_json::to_value(document).unwrap_or_default();
    let (document, page) = (Bytes::from(document.to_string()), Bytes::from(reference::page(&document)));
    routes
        .route("/openapi.json", get(move || ready(file("application/json", document.clone()))))
        .route("/api", get(move || ready(file("text/html; charset=utf-8", page.clone()))))
        .route("/ws", any(websocket::open))
        .fallback(async |uri: Uri| plain::nothing(StatusCode::NOT_FOUND, &format!("nothing is at {}", uri.path())))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            plain::nothing(StatusCode::METHOD_NOT_ALLOWED, &format!("{method} is no call of {}", uri.path()))
        })
        .layer(any_page())
        // The server bounds bodies by what all of them take.
        .layer(DefaultBodyLimit::disable())
        .with_state(transport)
}

/// Lets pages from anywhere call, in any browser (Fetch, section 3.2): a call is worth what its client has signed, and a browser adds nothing to that by
/// itself, since there are no cookies.
fn any_page() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(cors::Any)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static("last-event-id")])
        .expose_headers(plain::TOLD.split(", ").map(HeaderName::from_static).collect::<Vec<_>>())
        .max_age(Duration::from_hours(2))
}

fn json(value: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(value).map_err(|error| TransportError::Internal(error.to_string()))?;
    Ok(file("application/json", bytes.into()))
}

fn file(kind: &'static str, data: Bytes) -> Response {
    let mut response = Response::new(Body::from(data));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The request's id in the path.
struct Id(RequestId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let id = Path::<String>::from_request_parts(parts, state).await.ok().and_then(|Path(text)| text.parse::<B256>().ok());
        let refused = || TransportError::invalid("request_id", "is no request's id: write 0x and 64 hexadecimal digits");
        Ok(Self(id.ok_or_else(refused)?))
    }
}

/// What the client has signed: in the header `Authorization: Bearer`, or in the URL as `access`, since a browser's `EventSource` sends no
/// headers of its own.
struct Access(Signed<TaskCapability>);

#[derive(Deserialize)]
struct AccessQuery {
    access: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Access {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = header.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
        let in_url = async {
            let query = Query::<AccessQuery>::from_request_parts(parts, state).await;
            query.ok().and_then(|Query(query)| query.access)
        };
        let text = match bearer {
            Some(text) => Some(text),
            None => in_url.await,
        };
        let text = text.ok_or_else(|| TransportError::invalid("access", "is missing: send `Authorization: Bearer` with it"))?;
        Ok(Self(read_access(&text).map_err(|problem| TransportError::invalid("access", problem))?))
    }
}

impl Access {
    /// The access, when it is that of the request in the path.
    fn of(self, Id(request_id): &Id) -> Result<Signed<TaskCapability>, TransportError> {
        if self.0.message.request_id == *request_id {
            return Ok(self.0);
        }
        Err(TransportError::invalid("access.requestId", "is another request's than that in the path"))
    }
}

/// Tickets for orders, each for one and for a few minutes.
#[utoipa::path(post, path = "/api/v1/tickets", request_body = openapi::TicketRequest, responses((status = 200, description = "The tickets", body = Vec<openapi::Ticket>), Failures))]
async fn tickets(State(gateway): Gateway, Json(request): Json<TicketRequest>) -> Answer {
    json(&gateway.tickets(request.count).await?)
}

/// Submits an order, and waits for its quote.
#[utoipa::path(post, path = "/api/v1/inference",
    request_body(content((openapi::Submission = "application/json"), (openapi::SubmissionInParts = "multipart/form-data"))),
    responses((status = 200, description = "Its status", body = openapi::TaskStatus), Failures, OfRequest))]
async fn submit(State(gateway): Gateway, Order(submission): Order) -> Answer {
    json(&gateway.submit(submission).await?)
}

/// Where a request is.
#[utoipa::path(get, path = "/api/v1/inference/{request_id}", params(("request_id" = openapi::Hash, Path)),
    responses((status = 200, description = "Its status", body = openapi::TaskStatus), Failures, OfRequest))]
async fn status(State(gateway): Gateway, Id(request_id): Id) -> Answer {
    json(&gateway.status(request_id).await?)
}

/// Says that a quote is paid, or pays it by a signature.
#[utoipa::path(post, path = "/api/v1/inference/{request_id}/payment", params(("request_id" = openapi::Hash, Path)),
    request_body = openapi::PaymentSubmission, responses((status = 204, description = "Done"), Failures, OfRequest))]
async fn confirm(State(gateway): Gateway, Id(request_id): Id, Json(proof): Json<PaymentSubmission>) -> Answer {
    gateway.confirm_payment(PaymentConfirmation { request_id, proof }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Withdraws a request, or stops its output.
#[utoipa::path(post, path = "/api/v1/inference/{request_id}/cancel", params(("request_id" = openapi::Hash, Path)),
    security(("access" = [])), responses((status = 204, description = "Done"), Failures, OfRequest))]
async fn cancel(State(gateway): Gateway, id: Id, access: Access) -> Answer {
    gateway.cancel(access.of(&id)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What is offered.
#[utoipa::path(get, path = "/api/v1/models", responses((status = 200, description = "The models", body = Vec<openapi::ModelInfo>), Failures))]
async fn models(State(gateway): Gateway) -> Answer {
    json(&gateway.models().await?)
}

/// Which network the gateway is of.
#[utoipa::path(get, path = "/api/v1/network", responses((status = 200, description = "The network", body = openapi::NetworkInfo), Failures))]
async fn network(State(gateway): Gateway) -> Answer {
    json(&gateway.network().await?)
}

/// Agrees to a channel's end, once its requests are settled.
#[utoipa::path(post, path = "/api/v1/channels/close", security(("access" = [])), request_body = openapi::CloseChannel,
    responses((status = 200, description = "Its agreement", body = openapi::ChannelClosing), Failures, OfRequest))]
async fn close_channel(State(gateway): Gateway, Access(access): Access, Json(channel): Json<CloseChannel>) -> Answer {
    let terms = ChannelParams { client: access.message.client, gateway: channel.gateway, salt: channel.salt };
    let (settled, signature) = gateway.close_channel(terms, access).await?;
    json(&ChannelClosing { settled, signature })
}

/// That the gateway is there, and who it is.
#[derive(Serialize, ToSchema)]
struct Health {
    status: &'static str,
    #[schema(value_type = openapi::Address)]
    gateway: ncn_core::Address,
    version: &'static str,
}

/// That the gateway is there.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "It is there", body = Health), Failures))]
async fn health(State(gateway): Gateway) -> Answer {
    let gateway = gateway.network().await?.gateway;
    json(&Health { status: "ok", gateway, version: env!("CARGO_PKG_VERSION") })
}

/// From which update on, unless the header `Last-Event-ID` says which one was the last.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Start {
    from: u64,
}

/// Follows a request, from its beginning or from an update on.
#[utoipa::path(get, path = "/api/v1/inference/{request_id}/events",
    params(("request_id" = openapi::Hash, Path), ("from" = Option<u64>, Query), ("Last-Event-ID" = Option<u64>, Header)),
    security(("access" = [])), responses((status = 200, description = "Its updates", content_type = "text/event-stream", body = String), Failures, OfRequest))]
async fn events(
    State(gateway): Gateway,
    id: Id,
    access: Access,
    headers: HeaderMap,
    start: Result<Query<Start>, QueryRejection>,
) -> Answer {
    let access = access.of(&id)?;
    let Query(start) = start.map_err(|error| TransportError::invalid("from", error.body_text()))?;
    let last = headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default().parse::<u64>());
    let last = last.transpose().map_err(|_| TransportError::invalid("last-event-id", "is no update's index"))?;
    let from = last.map_or_else(|| start.from, |last| last.saturating_add(1));
    let updates = gateway.updates(access, from).await?;
    Ok(Sse::new(sse(updates)).keep_alive(KeepAlive::new().interval(ALIVE)).into_response())
}

fn sse(updates: impl Stream<Item = Result<Update, TransportError>>) -> impl Stream<Item = Result<Event, Infallible>> {
    updates.map(|update| {
        let event = match update {
            Ok(update) => event(name(&update.event), &update).id(update.index.to_string()),
            Err(error) => event("error", &Problem::from(error)),
        };
        Ok(event)
    })
}

fn event(name: &str, data: &impl Serialize) -> Event {
    // JSON has no line breaks, except where it is made for people.
    Event::default().event(name).data(serde_json::to_string(data).unwrap_or_default())
}

/// What an event is called, for listeners that want some of them.
const fn name(event: &TaskEvent) -> &'static str {
    match event {
        TaskEvent::Step(_) => "step",
        TaskEvent::Attempt(_) => "attempt",
        TaskEvent::Takeover(_) => "takeover",
        TaskEvent::Chunk(_) => "chunk",
        TaskEvent::Checkpoint(_) => "checkpoint",
        TaskEvent::GivenUp(_) => "givenUp",
        TaskEvent::Delivered { .. } => "delivered",
        TaskEvent::Failed { .. } => "failed",
        _ => "update",
    }
}
