//! What a server takes in: the calls that are open at once, and the messages that are arriving or being answered.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use axum::{Router, body::Body, response::Response};
use futures::future::BoxFuture;
use ncn_wire::{
    MAX_MESSAGE_BYTES, MAX_SMALL_MESSAGE_BYTES, MAX_SUBNET_BYTES,
    json::{INFERENCE, MAX_JSON_BYTES},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    codegen::{
        Bytes, StdError,
        http::{HeaderMap, Request, header},
    },
};
use tower::Service;

use super::{
    answer::{AnswerBody, Call},
    body::RequestBody,
    connection::Peer,
    plain,
    pool::Pool,
};

/// How long the messages of a call may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lengths {
    /// One message.
    Unary(usize),
    /// The first message, sent by somebody unknown, and each later one.
    Stream(usize, usize),
    /// A body without messages, of a call that is not gRPC.
    Plain(usize),
}

impl Lengths {
    /// Of a call that is not gRPC.
    fn of_plain(path: &str) -> Self {
        Self::Plain(if path == INFERENCE { MAX_JSON_BYTES } else { MAX_SMALL_MESSAGE_BYTES })
    }

    /// Of the call with this path. Unknown paths are the router's to refuse.
    fn of(path: &str) -> Self {
        match path {
            "/ncn.v1.GatewayClientService/SubmitInferenceTask"
            | "/ncn.v1.P2PRegistryService/RequestSettlementValidation"
            | "/ncn.v1.ValidatorService/ApproveSettlement" => Self::Unary(MAX_MESSAGE_BYTES),
            "/ncn.v1.P2PRegistryService/RegisterSubnet" | "/ncn.v1.ValidatorService/ApproveSubnet" => Self::Unary(MAX_SUBNET_BYTES),
            "/ncn.v1.GatewayComputeService/Attach" => Self::Stream(MAX_SMALL_MESSAGE_BYTES, MAX_MESSAGE_BYTES),
            _ => Self::Unary(MAX_SMALL_MESSAGE_BYTES),
        }
    }
}

/// Open until its client ends it: beside other calls, an idle one would take their places for ever.
const WATCH: &str = "/ncn.v1.P2PRegistryService/WatchNodes";

const CROWDED: &str = "too many calls are open: try again later";

/// The pools of one server, as a layer around its services.
#[derive(Clone, Debug)]
pub(super) struct Intake {
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

/// Whether a call is gRPC, whose errors are in headers of their own.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
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
        let (is_grpc, path) = (is_grpc(request.headers()), request.uri().path());
        let calls = if path == WATCH { &self.intake.watches } else { &self.intake.calls };
        let Some(share) = calls.claim(peer.address, 1, &end) else {
            return Box::pin(async move { Ok(refuse(is_grpc, CROWDED)) });
        };
        let message = Arc::new(Mutex::new(None));
        let lengths = if is_grpc { Lengths::of(path) } else { Lengths::of_plain(path) };
        let pools = (self.intake.messages.clone(), self.intake.streams.clone());
        request.extensions_mut().insert(peer.clone());
        #[cfg(feature = "http")]
        if request.headers().contains_key(header::UPGRADE) {
            request.extensions_mut().insert(self.intake.clone());
        }
        let body = |body| Body::new(RequestBody::new(Body::new(body), lengths, peer.address, end.clone(), pools, message.clone()));
        let answering = self.routes.call(request.map(body));
        let answers = (!matches!(lengths, Lengths::Stream(..))).then(|| self.intake.answers.clone());
        Box::pin(async move {
            let response = tokio::select! {
                biased;
                () = end.cancelled() => return Ok(refuse(is_grpc, CROWDED)),
                response = answering => response?,
            };
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
        ];
        for (service, call) in paths {
            let path = format!("/{service}/{call}");
            assert_ne!(Lengths::of(&path), Lengths::Unary(MAX_SMALL_MESSAGE_BYTES), "{path}");
        }
        assert_eq!(WATCH, format!("/{}/WatchNodes", registry::SERVICE_NAME));
    }
}
