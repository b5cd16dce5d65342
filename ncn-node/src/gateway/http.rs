//! The gateway's port for clients over HTTP: JSON, server-sent events (HTML, section 9.2), and the way to a WebSocket. A thin adapter around any
//! [`Transport`].

mod body;
mod output;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{any, get, post},
};
pub(super) use body::read;
use body::{Json, Order};
use futures::{Stream, StreamExt as _};
use ncn_core::{
    B256, ChannelParams, PaymentConfirmation, RequestId, Signed, TaskCapability, TaskEvent, Transport, TransportError, Update,
    transport::PaymentSubmission,
};
use ncn_wire::json::{ChannelClosing, CloseChannel, INFERENCE, Problem, TicketRequest, read_access};
use serde::{Deserialize, Serialize};
use tonic::codegen::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts};

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
    let request = format!("{INFERENCE}/{{request_id}}");
    Router::new()
        .route("/api/v1/tickets", post(tickets))
        .route(INFERENCE, post(submit))
        .route(&request, get(status))
        .route(&format!("{request}/payment"), post(confirm))
        .route(&format!("{request}/cancel"), post(cancel))
        .route(&format!("{request}/events"), get(events))
        .route(&format!("{request}/output"), get(output::output))
        .route("/api/v1/models", get(models))
        .route("/api/v1/network", get(network))
        .route("/api/v1/channels/close", post(close_channel))
        .route("/health", get(health))
        .route("/ws", any(websocket::open))
        .fallback(async |uri: Uri| plain::nothing(StatusCode::NOT_FOUND, &format!("nothing is at {}", uri.path())))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            plain::nothing(StatusCode::METHOD_NOT_ALLOWED, &format!("{method} is no call of {}", uri.path()))
        })
        // The server bounds bodies by what all of them take.
        .layer(DefaultBodyLimit::disable())
        .with_state(transport)
}

fn json(value: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(value).map_err(|error| TransportError::Internal(error.to_string()))?;
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
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

async fn tickets(State(gateway): Gateway, Json(request): Json<TicketRequest>) -> Answer {
    json(&gateway.tickets(request.count).await?)
}

async fn submit(State(gateway): Gateway, Order(submission): Order) -> Answer {
    json(&gateway.submit(submission).await?)
}

async fn status(State(gateway): Gateway, Id(request_id): Id) -> Answer {
    json(&gateway.status(request_id).await?)
}

async fn confirm(State(gateway): Gateway, Id(request_id): Id, Json(proof): Json<PaymentSubmission>) -> Answer {
    gateway.confirm_payment(PaymentConfirmation { request_id, proof }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn cancel(State(gateway): Gateway, id: Id, access: Access) -> Answer {
    gateway.cancel(access.of(&id)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn models(State(gateway): Gateway) -> Answer {
    json(&gateway.models().await?)
}

async fn network(State(gateway): Gateway) -> Answer {
    json(&gateway.network().await?)
}

async fn close_channel(State(gateway): Gateway, Access(access): Access, Json(channel): Json<CloseChannel>) -> Answer {
    let terms = ChannelParams { client: access.message.client, gateway: channel.gateway, salt: channel.salt };
    let (settled, signature) = gateway.close_channel(terms, access).await?;
    json(&ChannelClosing { settled, signature })
}

/// That the gateway is there, and who it is.
#[derive(Serialize)]
struct Health {
    status: &'static str,
    gateway: ncn_core::Address,
    version: &'static str,
}

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

async fn events(State(gateway): Gateway, id: Id, access: Access, headers: HeaderMap, start: Query<Start>) -> Answer {
    let access = access.of(&id)?;
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
