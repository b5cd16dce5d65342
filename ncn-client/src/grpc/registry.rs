use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use ncn_core::{
    B256, Certificate, CompletionRequest, Departure, Heartbeat, NodeQuery, NodeRecord, PreprocessingRequest, Registry,
    RegistryError, Signed, Subnet,
};
use tonic::transport::Channel;

use super::{EndpointError, bounded, channel};
use crate::{
    proto::{self, p2p_registry_service_client::P2pRegistryServiceClient},
    wire::{self, MAX_MESSAGE_BYTES},
};

/// The most nodes that a discovery is read to.
const MAX_NODES: usize = 10_000;

/// A registry node, called over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcRegistry {
    client: P2pRegistryServiceClient<Channel>,
}

impl GrpcRegistry {
    /// The registry node at this URL. It is called when it is first used.
    pub fn new(url: &str) -> Result<Self, EndpointError> {
        let client = P2pRegistryServiceClient::new(channel(url)?).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { client })
    }
}

#[async_trait]
impl Registry for GrpcRegistry {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        let reply = self.client.clone().register_node(bounded(record.into())).await;
        reply.map(drop).map_err(|status| wire::from_status(&status))
    }

    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError> {
        let reply = self.client.clone().update_node_heartbeat(bounded(heartbeat.into())).await;
        reply.map(drop).map_err(|status| wire::from_status(&status))
    }

    async fn deregister(&self, departure: Signed<Departure>) -> Result<(), RegistryError> {
        let reply = self.client.clone().deregister_node(bounded(departure.into())).await;
        reply.map(drop).map_err(|status| wire::from_status(&status))
    }

    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError> {
        let reply = self.client.clone().discover_nodes(bounded(query.into())).await;
        let nodes = reply.map_err(|status| wire::from_status::<RegistryError>(&status))?.into_inner().take(MAX_NODES);
        nodes.map(|node| Ok(node.map_err(|status| wire::from_status::<RegistryError>(&status))?.try_into()?)).try_collect().await
    }

    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError> {
        let reply = self.client.clone().register_subnet(bounded(subnet.into())).await;
        reply.map(drop).map_err(|status| wire::from_status(&status))
    }

    async fn subnet(&self, id: B256) -> Result<Signed<Subnet>, RegistryError> {
        let reply = self.client.clone().get_subnet(bounded(proto::SubnetId { id: wire::bytes(id) })).await;
        Ok(reply.map_err(|status| wire::from_status::<RegistryError>(&status))?.into_inner().try_into()?)
    }

    async fn preprocessing(&self, request: PreprocessingRequest) -> Result<Certificate, RegistryError> {
        let reply = self.client.clone().request_preprocessing_validation(bounded(request.into())).await;
        Ok(reply.map_err(|status| wire::from_status::<RegistryError>(&status))?.into_inner().try_into()?)
    }

    async fn completion(&self, request: CompletionRequest) -> Result<Certificate, RegistryError> {
        let reply = self.client.clone().request_completion_validation(bounded(request.into())).await;
        Ok(reply.map_err(|status| wire::from_status::<RegistryError>(&status))?.into_inner().try_into()?)
    }
}
