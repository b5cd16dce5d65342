//! What a server takes in: the calls that are open at once, and the messages that are arriving or being answered.

use std::{
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use ncn_wire::{MAX_MESSAGE_BYTES, MAX_SMALL_MESSAGE_BYTES, MAX_SUBNET_BYTES};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    body::Body,
    codegen::{
        BoxFuture,
        http::{Extensions, Request, Response},
    },
    transport::server::TlsConnectInfo,
};
use tower::{Layer, Service};

use super::{
    answer::{AnswerBody, Call},
    body::RequestBody,
    connection::Peer,
    pool::Pool,
};

/// How long the messages of a call may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lengths {
    /// One message.
    Unary(usize),
    /// The first message, sent by somebody unknown, and each later one.
    Stream(usize, usize),
}

impl Lengths {
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
    /// Bytes of unary calls' messages, and of streams' first ones, from their announcement until they are answered.
    pub(super) messages: Arc<Pool>,
    /// Bytes of streams' later messages, until the next one is asked for. Whoever sends these has been admitted, so that what strangers
    /// announce does not hold up results that were paid for, nor the heartbeats behind them.
    pub(super) streams: Arc<Pool>,
    /// Bytes of answers' messages, until they are sent. What admitted nodes are sent was paid for, and is not in it.
    pub(super) answers: Arc<Pool>,
}

impl<S> Layer<S> for Intake {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission { inner, intake: self.clone() }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Admission<S> {
    inner: S,
    intake: Intake,
}

/// Who is at the other end of a call's connection.
pub(super) fn caller(extensions: &Extensions) -> Option<&Peer> {
    let encrypted = || extensions.get::<TlsConnectInfo<Peer>>().map(TlsConnectInfo::get_ref);
    extensions.get::<Peer>().or_else(encrypted)
}

impl<S> Service<Request<Body>> for Admission<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(peer) = caller(request.extensions()).cloned() else {
            return refuse("the call came on no connection");
        };
        let end = CancellationToken::new();
        let path = request.uri().path();
        let calls = if path == WATCH { &self.intake.watches } else { &self.intake.calls };
        let Some(share) = calls.claim(peer.address, 1, &end) else {
            return refuse(CROWDED);
        };
        let message = Arc::new(Mutex::new(None));
        let lengths = Lengths::of(path);
        let pools = (self.intake.messages.clone(), self.intake.streams.clone());
        let body = |body| Body::new(RequestBody::new(body, lengths, peer.address, end.clone(), pools, message.clone()));
        let answering = self.inner.call(request.map(body));
        let answers = matches!(lengths, Lengths::Unary(_)).then(|| self.intake.answers.clone());
        Box::pin(async move {
            let response = tokio::select! {
                biased;
                () = end.cancelled() => return refuse(CROWDED).await,
                response = answering => response?,
            };
            // Now a unary call's message is dealt with; the body of a stream shares in it for longer.
            drop(message);
            let (head, body) = response.into_parts();
            let call = Call::begin(share, end, peer.end);
            Ok(match AnswerBody::begin(body, peer.address, call, answers).await {
                Ok(body) => Response::from_parts(head, Body::new(body)),
                Err(refused) => refused.into_http(),
            })
        })
    }
}

fn refuse(why: &str) -> BoxFuture<Response<Body>, Infallible> {
    Box::pin(ready(Ok(Status::resource_exhausted(why).into_http())))
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
