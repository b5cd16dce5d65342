//! Outside data that makes no sense, on every port: refused, and the service goes on.

use std::time::Duration;

use ncn_client::grpc::channel;
use ncn_core::{Address, B256, Confinement, NodeRole, SessionProof, Signed, Value};
use ncn_devnet::{LocalNetwork, quickstart};
use ncn_executor::{EngineExecutor, worker};
use ncn_node::registration::NodeDescriptor;
use ncn_wire::{
    MAX_MESSAGE_BYTES,
    proto::{
        self, ToWorker, gateway_client_service_client::GatewayClientServiceClient,
        gateway_compute_service_client::GatewayComputeServiceClient, p2p_registry_service_client::P2pRegistryServiceClient,
    },
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

use crate::{
    scene::{key, network},
    wait::in_time,
};

/// Sends bytes to a port and returns once it has closed the connection, or said nothing more for a while.
async fn throw(url: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut stream = stream.take(1 << 20);
    let _ = tokio::time::timeout(Duration::from_millis(300), stream.read_to_end(&mut answer)).await;
}

#[tokio::test]
async fn garbage_on_the_ports() {
    let network = network().start().await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let endless_header = [&preface[..], &[0xff, 0xff, 0xff, 1, 4, 0, 0, 0, 1]].concat();
    let huge_frame = [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], &[0; 4_096]].concat();
    for url in [network.gateway_url(), network.registry_urls()[0].clone()] {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 10_000], &[0xff; 10_000], &endless_header, &huge_frame] {
            throw(&url, garbage).await;
        }
    }
    let client = network.client().await.unwrap().build().unwrap();
    let answer = client.infer(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]).await.unwrap();
    assert_eq!(answer.output.text("label"), Some("7"));
}

#[tokio::test]
async fn malformed_messages_name_the_field() {
    let network = network().start().await.unwrap();
    let mut gateway = GatewayClientServiceClient::new(channel(&network.gateway_url()).unwrap());
    let status = gateway.submit_inference_task(proto::InferenceRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "request.client: has 0 bytes, an address has 20"));
    let status = gateway.get_task_status(proto::TaskId::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "task_id.request_id: has 0 bytes, a hash has 32"));
    let unknown = proto::TaskId { request_id: vec![1; 32].into(), ..proto::TaskId::default() };
    assert_eq!(gateway.get_task_status(unknown).await.unwrap_err().code(), Code::NotFound);

    let twice = proto::NamedValue { name: "x".into(), value: Some(proto::named_value::Value::Text("y".into())) };
    let request = proto::InferenceRequest { inputs: vec![twice.clone(), twice], ..proto::InferenceRequest::default() };
    let status = gateway.submit_inference_task(request).await.unwrap_err();
    assert_eq!(status.message(), "values.name: appears twice");
    let file = proto::File { media_type: "x".repeat(256), ..proto::File::default() };
    let typed = proto::NamedValue { name: "x".into(), value: Some(proto::named_value::Value::File(file)) };
    let request = proto::InferenceRequest { inputs: vec![typed], ..proto::InferenceRequest::default() };
    let status = gateway.submit_inference_task(request).await.unwrap_err();
    assert!(status.message().starts_with("values.file.media_type: has 256 bytes"), "{status}");

    let mut registry = P2pRegistryServiceClient::new(channel(&network.registry_urls()[0]).unwrap());
    let status = registry.register_node(proto::NodeInfo::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "node.node: has 0 bytes, an address has 20"));
}

#[tokio::test]
async fn oversized_messages_are_refused() {
    let network = network().start().await.unwrap();
    let mut gateway = GatewayClientServiceClient::new(channel(&network.gateway_url()).unwrap());
    let large = proto::InferenceRequest { parameters: "x".repeat(MAX_MESSAGE_BYTES + 1), ..proto::InferenceRequest::default() };
    let status = gateway.submit_inference_task(large).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(gateway.get_supported_models(proto::Empty {}).await.is_ok());
}

#[tokio::test]
async fn strangers_do_not_attach_as_compute_nodes() {
    let network = network().start().await.unwrap();
    let mut plane = GatewayComputeServiceClient::new(channel(&network.gateway_url()).unwrap());
    let mut refusals = Vec::new();
    for lie in [Lie::None, Lie::Silence, Lie::Challenge, Lie::Gateway, Lie::Role, Lie::Subnet, Lie::Record, Lie::Signature] {
        let (sender, messages) = tokio::sync::mpsc::channel(4);
        let mut answers = plane.attach(tokio_stream::wrappers::ReceiverStream::new(messages)).await.unwrap().into_inner();
        let Some(proto::gateway_message::Message::Challenge(challenge)) = answers.message().await.unwrap().unwrap().message else {
            panic!("the first message is a challenge")
        };
        let message = proto::ComputeMessage { message: Some(answer(&network, &challenge, lie).await) };
        sender.send(message).await.unwrap();
        if lie == Lie::None {
            // Taken: the stream stays open, and nothing comes.
            let quiet = tokio::time::timeout(Duration::from_millis(200), answers.message()).await;
            assert!(quiet.is_err(), "{quiet:?}");
        } else {
            let refused = answers.message().await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{lie:?}: {refused}");
            refusals.push(refused.message().to_owned());
        }
    }
    assert!(refusals.iter().any(|refusal| refusal.starts_with("node.signature")), "{refusals:?}");
    assert!(refusals.iter().any(|refusal| refusal.starts_with("attachment.signature")), "{refusals:?}");
}

/// What is wrong with an answer to the challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    Silence,
    Challenge,
    Gateway,
    Role,
    Subnet,
    Record,
    Signature,
}

async fn answer(network: &LocalNetwork, challenge: &proto::Challenge, lie: Lie) -> proto::compute_message::Message {
    if lie == Lie::Silence {
        return proto::compute_message::Message::Heartbeat(proto::Empty {});
    }
    let (node, domain) = (key(), network.trust_root().await.unwrap().domain);
    let subnet = network.gateway().models().await.unwrap()[0].subnet;
    let descriptor = NodeDescriptor {
        role: if lie == Lie::Role { NodeRole::Validator } else { NodeRole::Compute },
        subnet: if lie == Lie::Subnet { B256::ZERO } else { subnet },
        endpoint: String::new(),
        models: Vec::new(),
        confinement: Confinement::None,
    };
    let mut record = descriptor.record(&domain, &node, 1).await.unwrap();
    let proof = SessionProof {
        node: node.address(),
        gateway: if lie == Lie::Gateway { node.address() } else { Address::from_slice(&challenge.gateway) },
        challenge: if lie == Lie::Challenge { B256::ZERO } else { B256::from_slice(&challenge.challenge) },
    };
    let mut proof = Signed::sign(proof, &domain, &*node).await.unwrap();
    match lie {
        Lie::Record => record.message.sequence += 1,
        Lie::Signature => proof.signature = record.signature,
        _ => {}
    }
    proto::compute_message::Message::Attachment(proto::Attachment::write(record, proof))
}

/// What a worker does with these bytes on its standard input; it must end by itself.
async fn feed(bytes: Vec<u8>) -> std::io::Result<()> {
    let executor = std::sync::Arc::new(EngineExecutor::built_in());
    let serving = worker::serve(executor, std::io::Cursor::new(bytes), tokio::io::sink());
    in_time("the worker ends", serving).await
}

#[tokio::test]
async fn malformed_frames_end_a_worker() {
    assert!(feed(Vec::new()).await.is_ok());
    assert!(feed(u32::MAX.to_be_bytes().to_vec()).await.is_err(), "4 GiB are not waited for");
    assert!(feed([&8u32.to_be_bytes()[..], &[0xff; 8]].concat()).await.is_err());
    assert!(feed([&0u32.to_be_bytes()[..]].concat()).await.is_err(), "an empty message");
    assert!(feed([&100u32.to_be_bytes()[..], &[1; 10]].concat()).await.is_err(), "broken off");
    let message = ToWorker { id: 1, message: Some(proto::to_worker::Message::Unload(vec![1; 5].into())) };
    let frame = message.encode_to_vec();
    let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
    assert!(feed([&length[..], &frame].concat()).await.is_ok(), "a message that makes no sense is answered");
}
