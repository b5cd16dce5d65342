//! Compute nodes that send no stream: the calls of their own do what the stream does.

use futures::{StreamExt as _, stream::BoxStream};
use ncn_client::Order;
use ncn_client::grpc::{GrpcRegistry, channel};
use ncn_core::{Address, Confinement, NodeRole, SessionProof};
use ncn_executor::EngineExecutor;
use ncn_node::{
    compute::ComputeNode,
    server::{LOOPBACK, Server, Services},
};
use ncn_wire::{
    MAX_MESSAGE_BYTES,
    proto::{
        self, compute_message,
        gateway_compute_service_client::GatewayComputeServiceClient,
        gateway_compute_service_server::{GatewayComputeService, GatewayComputeServiceServer},
        gateway_message,
    },
};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use super::*;

type Gateway = GatewayComputeServiceClient<Channel>;

fn gateway(url: &str) -> Gateway {
    let client = GatewayComputeServiceClient::new(channel(url).unwrap());
    client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Offers nodes the stream, and has only calls of its own to the gateway.
struct Bridge {
    gateway: Gateway,
    /// The tasks that were asked for again, and whether they were as they came.
    asked: Arc<std::sync::Mutex<Vec<bool>>>,
}

#[async_trait::async_trait]
impl GatewayComputeService for Bridge {
    type AttachStream = BoxStream<'static, Result<proto::GatewayMessage, Status>>;
    type ReceiveTaskStream = Self::AttachStream;

    async fn attach(&self, request: Request<Streaming<proto::ComputeMessage>>) -> Result<Response<Self::AttachStream>, Status> {
        let mut from_node = request.into_inner();
        let mut sent = self.gateway.clone().receive_task(proto::Empty {}).await?.into_inner();
        let first = sent.message().await?.unwrap();
        let Some(gateway_message::Message::Challenge(challenge)) = first.message.clone() else { panic!("{first:?}") };
        let (session, mut calls) = (challenge.session, self.gateway.clone());
        let in_session = session.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = from_node.message().await {
                let session = in_session.clone();
                let said = match message.message.unwrap() {
                    compute_message::Message::Attachment(answer) => {
                        let attachment = Some(answer);
                        calls.register_compute_node(proto::SessionAttachment { session, attachment }).await
                    }
                    compute_message::Message::Heartbeat(_) => calls.update_heartbeat(proto::HeartbeatRequest { session }).await,
                    other => {
                        let message = Some(proto::ComputeMessage { message: Some(other) });
                        calls.submit_result(proto::SessionMessage { session, message }).await
                    }
                };
                if said.is_err() {
                    return;
                }
            }
        });
        let (calls, asked) = (self.gateway.clone(), self.asked.clone());
        let again = sent.then(move |message| {
            let (mut calls, asked, session) = (calls.clone(), asked.clone(), session.clone());
            async move {
                let message = message?;
                if let Some(gateway_message::Message::Task(task)) = &message.message {
                    let request_id = task.quote.as_ref().unwrap().request_id.clone();
                    let again = calls.get_task(proto::SessionTask { session, request_id }).await?.into_inner();
                    asked.lock().unwrap().push(again == *task);
                }
                Ok(message)
            }
        });
        Ok(Response::new(futures::stream::iter([Ok(first)]).chain(again).boxed()))
    }

    async fn receive_task(&self, _: Request<proto::Empty>) -> Result<Response<Self::ReceiveTaskStream>, Status> {
        Err(Status::unimplemented("the gateway has it"))
    }

    async fn register_compute_node(&self, _: Request<proto::SessionAttachment>) -> Result<Response<proto::Ack>, Status> {
        Err(Status::unimplemented("the gateway has it"))
    }

    async fn update_heartbeat(&self, _: Request<proto::HeartbeatRequest>) -> Result<Response<proto::Ack>, Status> {
        Err(Status::unimplemented("the gateway has it"))
    }

    async fn submit_result(&self, _: Request<proto::SessionMessage>) -> Result<Response<proto::Ack>, Status> {
        Err(Status::unimplemented("the gateway has it"))
    }

    async fn get_task(&self, _: Request<proto::SessionTask>) -> Result<Response<proto::InferenceRequest>, Status> {
        Err(Status::unimplemented("the gateway has it"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_stream_serves_requests() {
    let network = network().compute_nodes(0).start().await.unwrap();
    let asked = Arc::default();
    let bridge = Bridge { gateway: gateway(&network.gateway_url()), asked: Arc::clone(&asked) };
    let service = GatewayComputeServiceServer::new(bridge).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let service = service.max_encoding_message_size(MAX_MESSAGE_BYTES);
    let bridge = Server::start(LOOPBACK.into(), Services::new().with(service)).unwrap();
    let (signer, subnet) = (key(), network.gateway_node().subnet_id());
    let registry = Arc::new(GrpcRegistry::new(&network.registry_urls()[0]).unwrap());
    let (ledger, files) = (Arc::new(network.ledger(signer.clone())), tempfile::tempdir().unwrap());
    let node = ComputeNode::builder(signer, subnet, Arc::new(EngineExecutor::built_in()), ledger, registry);
    let node = node.models(vec![quickstart::unpack(files.path()).unwrap()]);
    let node = node.gateway(network.gateway_address(), bridge.url()).start().await.unwrap();
    eventually("the node has a session", async || network.gateway_node().attached().len() == 1).await;
    let client = network.client().await.unwrap().build().unwrap();
    for served in 1..=3 {
        let order = Order::new(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]);
        let quoted = in_time("a quote", client.submit(order)).await.unwrap();
        let answer = in_time("the answer", Box::pin(quoted.pay().await.unwrap().finish())).await.unwrap();
        assert_eq!(answer.output.text("label"), Some("7"));
        assert_eq!(*asked.lock().unwrap(), vec![true; served]);
    }
    node.shutdown().await;
    eventually("the session has ended", async || network.gateway_node().attached().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_their_nodes_alone() {
    let network = network().start().await.unwrap();
    let calls = gateway(&network.gateway_url());
    let refused = async |session: &[u8]| {
        let session = bytes::Bytes::copy_from_slice(session);
        let mut calls = calls.clone();
        let message = proto::ComputeMessage { message: Some(compute_message::Message::Heartbeat(proto::Empty {})) };
        [
            calls.update_heartbeat(proto::HeartbeatRequest { session: session.clone() }).await.map(drop).unwrap_err().code(),
            calls
                .submit_result(proto::SessionMessage { session: session.clone(), message: Some(message) })
                .await
                .map(drop)
                .unwrap_err()
                .code(),
            calls.get_task(proto::SessionTask { session, request_id: vec![7; 32].into() }).await.map(drop).unwrap_err().code(),
        ]
    };
    assert_eq!(refused(&[7; 32]).await, [Code::NotFound; 3], "nobody's session");
    assert_eq!(refused(&[7; 3]).await, [Code::InvalidArgument; 3], "no session");

    let begin = async || {
        let mut sent = calls.clone().receive_task(proto::Empty {}).await.unwrap().into_inner();
        let first = sent.message().await.unwrap().unwrap();
        let Some(gateway_message::Message::Challenge(challenge)) = first.message else { panic!() };
        (sent, challenge)
    };
    // Who does not answer by its key is not attached, and its session ends.
    let (mut sent, challenge) = begin().await;
    let session = challenge.session.clone();
    let mut other = gateway(&network.gateway_url());
    other.update_heartbeat(proto::HeartbeatRequest { session: session.clone() }).await.unwrap();
    let ended = sent.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
    eventually("the session has ended", async || refused(&session).await[0] == Code::NotFound).await;

    let (sent, challenge) = begin().await;
    let session = challenge.session.clone();
    let (signer, domain) = (key(), network.trust_root().await.unwrap().domain);
    let record = ncn_core::NodeRecord {
        node: signer.address(),
        role: NodeRole::Compute,
        subnet: network.gateway_node().subnet_id(),
        endpoint: String::new(),
        models: Vec::new(),
        confinement: Confinement::None,
        sequence: 1,
        expires_at: unix_now() + 60,
    };
    let record = Signed::sign(record, &domain, &*signer).await.unwrap();
    let answer = |challenge: B256, gateway: Address| SessionProof { node: signer.address(), gateway, challenge };
    let proof = answer(B256::from_slice(&challenge.challenge), network.gateway_address());
    let proof = Signed::sign(proof, &domain, &*signer).await.unwrap();
    let attachment = proto::Attachment {
        node: Some(record.into()),
        gateway: bytes::Bytes::copy_from_slice(proof.message.gateway.as_slice()),
        challenge: challenge.challenge.clone(),
        signature: bytes::Bytes::copy_from_slice(proof.signature.as_bytes()),
    };
    let signed =
        |session: &bytes::Bytes| proto::SessionAttachment { session: session.clone(), attachment: Some(attachment.clone()) };
    other.register_compute_node(signed(&session)).await.unwrap();
    eventually("it is attached", async || network.gateway_node().attached().contains(&signer.address())).await;
    let unknown =
        other.get_task(proto::SessionTask { session: session.clone(), request_id: vec![7; 32].into() }).await.unwrap_err();
    assert!(unknown.message().contains("request_id"), "{unknown}");
    let nothing = other.submit_result(proto::SessionMessage { session: session.clone(), message: None }).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument, "{nothing}");
    // A copy of its answer does not say which session is its own, and does not end it.
    assert_eq!(refused(&challenge.challenge).await, [Code::NotFound; 3]);
    let again = other.register_compute_node(signed(&session)).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again}");
    other.update_heartbeat(proto::HeartbeatRequest { session: session.clone() }).await.unwrap();
    // In another session it is worth nothing.
    let (mut another, challenge) = begin().await;
    other.register_compute_node(signed(&challenge.session)).await.unwrap();
    assert_eq!(another.message().await.unwrap_err().code(), Code::PermissionDenied);
    // A session ends with its stream.
    drop(sent);
    eventually("it is gone", async || !network.gateway_node().attached().contains(&signer.address())).await;
    assert_eq!(refused(&session).await, [Code::NotFound; 3]);
}
