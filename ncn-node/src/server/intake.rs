//! What a server takes in: the calls that are open at once, and the messages that are arriving or being answered.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use axum::{Router, body::Body, response::Response};
use futures::future::BoxFuture;
use ncn_core::TransportError;
use ncn_wire::{
    MAX_MESSAGE_BYTES, MAX_SMALL_MESSAGE_BYTES, MAX_SUBNET_BYTES,
    json::{INFERENCE, MAX_JSON_BYTES},
    to_status,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    codegen::{
        Bytes, StdError,
        http::{Method, Request},
    },
};
use tower::Service;

use super::{
    answer::{AnswerBody, Call},
    body::{FREE_BYTES, RequestBody},
    connection::Peer,
    plain,
    pool::Pool,
    rates::{self, Counters, Wire},
};
use crate::measures;

/// How long the messages of a call may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lengths {
    /// One message.
    Unary(usize),
    /// The first message, sent by somebody unknown, and each later one.
    Stream(usize, usize),
    /// Messages of strangers, each of this length, and how many of them.
    Questions(usize, usize),
    /// A body without messages, of a call that is not gRPC.
    Plain(usize),
}

impl Lengths {
    /// Of a call that is not gRPC.
    fn of_plain(path: &str) -> Self {
        Self::Plain(if [INFERENCE, TRIAL].contains(&path) { MAX_JSON_BYTES } else { MAX_SMALL_MESSAGE_BYTES })
    }

    /// Of the call with this path. Unknown paths are the router's to refuse.
    fn of(path: &str) -> Self {
        match path {
            SUBMIT
            | RESULT
            | "/ncn.v1.P2PRegistryService/RequestSettlementValidation"
            | "/ncn.v1.ValidatorService/ApproveSettlement" => Self::Unary(MAX_MESSAGE_BYTES),
            "/ncn.v1.P2PRegistryService/RegisterSubnet" | "/ncn.v1.ValidatorService/ApproveSubnet" => Self::Unary(MAX_SUBNET_BYTES),
            REFLECTION => Self::Questions(FREE_BYTES, QUESTIONS),
            ATTACH => Self::Stream(MAX_SMALL_MESSAGE_BYTES, MAX_MESSAGE_BYTES),
            _ => Self::Unary(MAX_SMALL_MESSAGE_BYTES),
        }
    }
}

/// Where a network for development runs models for anyone who asks: inputs come as in an order.
pub const TRIAL: &str = "/trial";
const SUBMIT: &str = "/ncn.v1.GatewayClientService/SubmitInferenceTask";

const ATTACH: &str = "/ncn.v1.GatewayComputeService/Attach";
const RECEIVE: &str = "/ncn.v1.GatewayComputeService/ReceiveTask";
const RESULT: &str = "/ncn.v1.GatewayComputeService/SubmitResult";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
/// How many questions about the services are answered on one call, each of which counts as one: there are fewer files and services to ask for.
const QUESTIONS: usize = 64;

/// Open until their client ends them: beside other calls, idle ones would take their places for ever.
const WATCHES: [&str; 3] = ["/ncn.v1.P2PRegistryService/WatchNodes", "/grpc.health.v1.Health/Watch", REFLECTION];

/// The pools and the rates of one server, as a layer around its services.
#[derive(Clone, Debug)]
pub(super) struct Intake {
    /// How many calls come in a minute.
    pub(super) counters: Counters,
    /// Calls until their answer is sent.
    pub(super) calls: Arc<Pool>,
    /// Watches, until they end.
    pub(super) watches: Arc<Pool>,
    /// WebSockets, until they end.
    #[cfg(feature = "http")]
    pub(super) sockets: Arc<Pool>,
    /// Bytes of unary calls' messages, and of streams' first ones, from their announcement until they are answered.
    pub(super) messages: Arc<Pool>,
    /// Bytes of streams' later messages, until the next one is asked for. Whoever sends these has been admitted, so that what strangers
    /// announce does not hold up results that were paid for, nor the heartbeats behind them.
    pub(super) streams: Arc<Pool>,
    /// Bytes of answers' messages, until they are sent. What admitted nodes are sent was paid for, and is not in it.
    pub(super) answers: Arc<Pool>,
}

impl Intake {
    /// What a connection of this peer is served by.
    pub(super) fn admission(&self, routes: Router, peer: Peer) -> Admission {
        Admission { routes, intake: self.clone(), peer }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Admission {
    routes: Router,
    intake: Intake,
    peer: Peer,
}

/// Whether a call is gRPC, whose errors are in headers of their own. The path says it: what a client says of its body is its own affair.
fn is_grpc(path: &str) -> bool {
    ["/ncn.v1.", "/grpc."].into_iter().any(|start| path.starts_with(start))
}

impl<B> Service<Request<B>> for Admission
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A router always is.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let peer = self.peer.clone();
        let end = CancellationToken::new();
        let path = request.uri().path();
        let is_grpc = is_grpc(path);
        let wire = if is_grpc { Wire::Stream } else { Wire::Http };
        // What is as long as an order costs as much to read, no matter who sends it.
        let is_order = [SUBMIT, RESULT].contains(&path) || path == INFERENCE && *request.method() == Method::POST;
        measures::called(wire.name());
        let left = match self.intake.counters.count(peer.address, wire, is_order) {
            Ok(left) => left.filter(|_| !is_grpc),
            Err(left) => {
                measures::refused("often");
                let error = TransportError::from(left);
                let mut response = if is_grpc { to_status(&error).into_http() } else { plain::answer(error) };
                if !is_grpc {
                    rates::say(&mut response, left);
                }
                return Box::pin(async move { Ok(response) });
            }
        };
        let calls = if WATCHES.contains(&path) { &self.intake.watches } else { &self.intake.calls };
        let Some(share) = calls.claim(peer.address, 1, &end) else {
            return Box::pin(async move { Ok(crowded(is_grpc)) });
        };
        let is_admitted = [ATTACH, RECEIVE].contains(&path);
        let message = Arc::new(Mutex::new(None));
        let lengths = if is_grpc { Lengths::of(path) } else { Lengths::of_plain(path) };
        let pools = (self.intake.messages.clone(), self.intake.streams.clone(), self.intake.counters.clone());
        request.extensions_mut().insert(peer.clone());
        #[cfg(feature = "http")]
        if request.headers().contains_key(tonic::codegen::http::header::UPGRADE) {
            request.extensions_mut().insert(self.intake.clone());
        }
        let body = |body| Body::new(RequestBody::new(Body::new(body), lengths, peer.address, end.clone(), pools, message.clone()));
        let answering = self.routes.call(request.map(body));
        let answers = (!is_admitted).then(|| self.intake.answers.clone());
        Box::pin(async move {
            let mut response: Response = tokio::select! {
                biased;
                () = end.cancelled() => return Ok(crowded(is_grpc)),
                response = answering => response?,
            };
            if let Some(left) = left {
                rates::say(&mut response, left);
            }
            // Now a unary call's message is dealt with; the body of a stream shares in it for longer.
            drop(message);
            let (head, body) = response.into_parts();
            let call = Call::begin(share, end, peer.end);
            Ok(match AnswerBody::begin(body, peer.address, call, answers).await {
                Ok(body) => Response::from_parts(head, Body::new(body)),
                Err(refused) => refuse(is_grpc, refused.message()),
            })
        })
    }
}

fn crowded(is_grpc: bool) -> Response {
    measures::refused("crowded");
    refuse(is_grpc, "too many calls are open: try again later")
}

fn refuse(is_grpc: bool, why: &str) -> Response {
    if is_grpc {
        return Status::resource_exhausted(why).into_http();
    }
    plain::answer(plain::busy())
}

#[cfg(test)]
mod tests {
    use ncn_wire::proto::{
        gateway_client_service_server as client, gateway_compute_service_server as compute,
        p2p_registry_service_server as registry, validator_service_server as validator,
    };

    use tonic_health::pb::health_server as health;
    use tonic_reflection::pb::v1::server_reflection_server as reflection;

    use super::*;

    /// A service that is renamed would fall back to the shortest messages, or take the places of other calls, without notice.
    #[test]
    fn the_calls_with_bounds_of_their_own_have_these_names() {
        let paths = [
            (client::SERVICE_NAME, "SubmitInferenceTask"),
            (registry::SERVICE_NAME, "RequestSettlementValidation"),
            (registry::SERVICE_NAME, "RegisterSubnet"),
            (validator::SERVICE_NAME, "ApproveSettlement"),
            (validator::SERVICE_NAME, "ApproveSubnet"),
            (compute::SERVICE_NAME, "Attach"),
            (compute::SERVICE_NAME, "SubmitResult"),
            (reflection::SERVICE_NAME, "ServerReflectionInfo"),
        ];
        for (service, call) in paths {
            let path = format!("/{service}/{call}");
            assert!(is_grpc(&path), "{path}");
            assert_ne!(Lengths::of(&path), Lengths::Unary(MAX_SMALL_MESSAGE_BYTES), "{path}");
        }
        let watches = [
            (registry::SERVICE_NAME, "WatchNodes"),
            (health::SERVICE_NAME, "Watch"),
            (reflection::SERVICE_NAME, "ServerReflectionInfo"),
        ];
        assert_eq!(format!("/{}/ReceiveTask", compute::SERVICE_NAME), RECEIVE);
        assert_eq!(watches.map(|(service, call)| format!("/{service}/{call}")), WATCHES);
    }
}
