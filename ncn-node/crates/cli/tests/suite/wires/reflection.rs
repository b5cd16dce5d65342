//! What a server says of itself to those who have no code of ours.

use std::collections::BTreeSet;

use prost::Message as _;
use tokio_stream::iter;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

use super::*;

async fn channel(url: String) -> Channel {
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

/// The answers to questions on one call.
async fn ask(channel: &Channel, questions: Vec<MessageRequest>) -> Result<Vec<MessageResponse>, tonic::Status> {
    let message = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let questions = iter(questions.into_iter().map(message).collect::<Vec<_>>());
    let mut answers = ServerReflectionClient::new(channel.clone()).server_reflection_info(questions).await?.into_inner();
    let mut said = Vec::new();
    while let Some(answer) = in_time("an answer", answers.message()).await? {
        said.extend(answer.message_response);
    }
    Ok(said)
}

async fn services(channel: &Channel) -> BTreeSet<String> {
    let said = ask(channel, vec![MessageRequest::ListServices(String::new())]).await.unwrap();
    let [MessageResponse::ListServicesResponse(list)] = &*said else { panic!("{said:?}") };
    list.service.iter().map(|service| service.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_server_describes_the_services_that_it_has() {
    let network = network().start().await.unwrap();
    let (gateway, registry) = (channel(network.gateway_url()).await, channel(network.registry_urls().remove(0)).await);
    let common = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];
    let expected = |own: &[&str]| own.iter().chain(&common).map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(services(&gateway).await, expected(&["ncn.v1.GatewayClientService", "ncn.v1.GatewayComputeService"]));
    assert!(services(&registry).await.is_superset(&expected(&["ncn.v1.P2PRegistryService"])));
    for name in services(&gateway).await {
        let said = ask(&gateway, vec![MessageRequest::FileContainingSymbol(name.clone())]).await.unwrap();
        let [MessageResponse::FileDescriptorResponse(files)] = &*said else { panic!("{said:?}") };
        let file = prost_types::FileDescriptorProto::decode(&*files.file_descriptor_proto[0]).unwrap();
        let full = |service: &prost_types::ServiceDescriptorProto| format!("{}.{}", file.package(), service.name());
        assert!(file.service.iter().any(|service| full(service) == name), "{name} is in {}", file.name());
    }
    // A stranger asks for as much as there is, and no more.
    let list = || MessageRequest::ListServices(String::new());
    assert_eq!(ask(&gateway, vec![list(); 64]).await.unwrap().len(), 64);
    assert!(ask(&gateway, vec![list(); 1_000]).await.is_ok_and(|said| said.len() <= 64));
    assert!(ask(&gateway, vec![MessageRequest::ListServices("a".repeat(5_000))]).await.is_ok_and(|said| said.is_empty()));

    let mut health = HealthClient::new(gateway);
    let check = |service: &str| HealthCheckRequest { service: service.into() };
    assert_eq!(health.check(check("")).await.unwrap().into_inner().status(), ServingStatus::Serving);
    assert_eq!(health.check(check("ncn.v1.NoService")).await.unwrap_err().code(), Code::NotFound);
    let mut watch = health.watch(check("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    network.shutdown().await;
    while let Ok(Some(news)) = in_time("the end", watch.message()).await {
        assert_eq!(news.status(), ServingStatus::NotServing);
    }
}
