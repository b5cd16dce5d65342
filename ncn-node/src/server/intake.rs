//! What a server takes in: the calls that are open at once, and the messages that are arriving or being answered.

use std::{
    convert::Infallible,
    future::ready,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use http_body::Frame;
use ncn_client::wire::{MAX_MESSAGE_BYTES, MAX_SMALL_MESSAGE_BYTES, MAX_SUBNET_BYTES};
use tonic::{
    Status,
    body::Body,
    codegen::{
        BoxFuture,
        http::{Request, Response},
    },
    transport::server::TcpConnectInfo,
};
use tower::{Layer, Service};

use super::{
    body::RequestBody,
    pool::{Pool, Share, peer_of},
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
            "/ncn.v1.P2PRegistryService/RegisterSubnet" => Self::Unary(MAX_SUBNET_BYTES),
            "/ncn.v1.GatewayComputeService/Attach" => Self::Stream(MAX_SMALL_MESSAGE_BYTES, MAX_MESSAGE_BYTES),
            _ => Self::Unary(MAX_SMALL_MESSAGE_BYTES),
        }
    }
}

/// The pools of one server, as a layer around its services.
#[derive(Clone, Debug)]
pub(super) struct Intake {
    /// Calls until their answer is sent.
    pub(super) calls: Arc<Pool>,
    /// Bytes of unary calls' messages, and of streams' first ones, from their announcement until they are answered.
    pub(super) messages: Arc<Pool>,
    /// Bytes of streams' later messages, until the next one is asked for. Whoever sends these has been admitted, so that what strangers
    /// announce does not hold up results that were paid for, nor the heartbeats behind them.
    pub(super) streams: Arc<Pool>,
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
        let address = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let peer = address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| peer_of(address.ip()));
        let Some(call) = self.intake.calls.try_take(peer, 1) else {
            let refused = Status::resource_exhausted("too many calls are open: try again later");
            return Box::pin(ready(Ok(refused.into_http())));
        };
        let message = Arc::new(Mutex::new(None));
        let lengths = Lengths::of(request.uri().path());
        let pool = self.intake.messages.clone();
        let streams = self.intake.streams.clone();
        let body = |body| Body::new(RequestBody::new(body, lengths, peer, (pool, streams), message.clone()));
        let answering = self.inner.call(request.map(body));
        Box::pin(async move {
            let response = answering.await?;
            // Now a unary call's message is dealt with; the body of a stream shares in it for longer.
            drop(message);
            Ok(response.map(|body| Body::new(ResponseBody { body, _call: call })))
        })
    }
}

/// An answer; the call is open until it is sent.
struct ResponseBody {
    body: Body,
    _call: Share,
}

impl http_body::Body for ResponseBody {
    type Data = tonic::codegen::Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use ncn_client::proto::{
        gateway_client_service_server as client, gateway_compute_service_server as compute,
        p2p_registry_service_server as registry, validator_service_server as validator,
    };

    use super::*;

    /// A service that is renamed would fall back to the shortest messages without notice.
    #[test]
    fn the_calls_with_long_messages_have_these_names() {
        let paths = [
            (client::SERVICE_NAME, "SubmitInferenceTask"),
            (registry::SERVICE_NAME, "RequestSettlementValidation"),
            (registry::SERVICE_NAME, "RegisterSubnet"),
            (validator::SERVICE_NAME, "ApproveSettlement"),
            (compute::SERVICE_NAME, "Attach"),
        ];
        for (service, call) in paths {
            let path = format!("/{service}/{call}");
            assert_ne!(Lengths::of(&path), Lengths::Unary(MAX_SMALL_MESSAGE_BYTES), "{path}");
        }
    }
}
