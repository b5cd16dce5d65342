use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use ncn_core::{
    Address, AnswerTime, ApprovedSubnet, Attestors, B256, BatchRequest, Catalog, CompletionRequest, Deregistration, Directory,
    Heartbeat, NodeChange, NodeChanges, NodeQuery, NodeRecord, PreprocessingRequest, QuorumCertificate, RegistryError,
    RegistryStatus, RequestId, Signed, Subnet,
    mempool::{Mempool, PendingRequests},
    registry::{SUBNETS_PAGE, manifest_digest},
};
use tonic::{Status, transport::Channel};

use super::{EndpointError, bounded, channel, list, within};
use crate::calls::SETTLEMENT_TIMEOUT;
use ncn_wire::{
    self as wire, MAX_MESSAGE_BYTES, MAX_SMALL_MESSAGE_BYTES, MAX_SUBNET_BYTES,
    proto::{
        self, p2p_registry_service_client::P2pRegistryServiceClient, registry_status_service_client::RegistryStatusServiceClient,
    },
};

/// The most nodes that a discovery is read to.
const MAX_NODES: usize = 10_000;

/// A registry node, called over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcRegistry {
    client: P2pRegistryServiceClient<Channel>,
    channel: Channel,
}

impl GrpcRegistry {
    /// The registry node at this URL. It is called when it is first used.
    pub fn new(url: &str) -> Result<Self, EndpointError> {
        let channel = channel(url)?;
        let client = P2pRegistryServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_SUBNET_BYTES + MAX_SMALL_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { client, channel })
    }

    /// What the node says of itself.
    ///
    /// # Errors
    /// Where it has no peers, it has no such service.
    pub async fn status(&self) -> Result<RegistryStatus, RegistryError> {
        let mut client = RegistryStatusServiceClient::new(self.channel.clone());
        let status = bounded::<_, RegistryError>(client.get_registry_status(proto::Empty {})).await?;
        Ok(status.into_inner().into())
    }

    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(P2pRegistryServiceClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, RegistryError> {
        bounded(call(self.client.clone())).await
    }
}

#[async_trait]
impl Directory for GrpcRegistry {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        self.call(async |mut client| client.register_node(proto::NodeInfo::from(record)).await.map(drop)).await
    }

    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError> {
        self.call(async |mut client| {
            client.update_node_heartbeat(proto::UpdateNodeHeartbeatRequest::from(heartbeat)).await.map(drop)
        })
        .await
    }

    async fn deregister(&self, deregistration: Signed<Deregistration>) -> Result<(), RegistryError> {
        self.call(async |mut client| client.deregister_node(proto::DeregisterNodeRequest::from(deregistration)).await.map(drop))
            .await
    }

    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError> {
        let most = if query.node.is_some() { 1 } else { MAX_NODES };
        let query = proto::DiscoverNodesRequest::from(query);
        let nodes = self.call(async |mut client| list(client.discover_nodes(query).await?.into_inner(), most).await);
        Ok(nodes.await??)
    }

    async fn watch(&self, query: NodeQuery) -> Result<NodeChanges, RegistryError> {
        let query = proto::DiscoverNodesRequest::from(query);
        let changes = self.call(async |mut client| client.watch_nodes(query).await).await?.into_inner();
        let change = |sent: Result<proto::NodeChange, Status>| {
            Ok(NodeChange::try_from(sent.map_err(|status| wire::from_status::<RegistryError>(&status))?)?)
        };
        Ok(changes.map(change).boxed())
    }
}

#[async_trait]
impl Catalog for GrpcRegistry {
    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError> {
        self.call(async |mut client| client.register_subnet(proto::CreateSubnetRequest::from(subnet)).await.map(drop)).await
    }

    async fn subnet(&self, id: B256) -> Result<ApprovedSubnet, RegistryError> {
        Ok(self
            .call(async |mut client| client.get_subnet(proto::SubnetId { id: wire::bytes(id) }).await)
            .await?
            .into_inner()
            .try_into()?)
    }

    async fn subnets(&self, after: B256) -> Result<Vec<Arc<ApprovedSubnet>>, RegistryError> {
        let after = proto::SubnetId { id: wire::bytes(after) };
        let page = self.call(async |mut client| list(client.list_subnets(after).await?.into_inner(), SUBNETS_PAGE).await);
        Ok(page.await??.into_iter().map(Arc::new).collect())
    }

    async fn register_manifest(&self, subnet: B256, manifest: Bytes) -> Result<(), RegistryError> {
        let request = proto::ManifestRequest { subnet: wire::bytes(subnet), manifest };
        self.call(async |mut client| client.register_manifest(request).await.map(drop)).await
    }

    async fn manifest(&self, digest: B256) -> Result<Bytes, RegistryError> {
        let model = proto::ModelId { digest: wire::bytes(digest) };
        let found = self.call(async |mut client| client.get_manifest(model).await).await?.into_inner().manifest;
        match manifest_digest(&found) {
            Ok(given) if given == digest => Ok(found),
            _ => Err(RegistryError::Malformed(format!("is not the manifest with the digest {digest}"))),
        }
    }
}

impl GrpcRegistry {
    async fn find_pending(&self, query: proto::PendingQuery) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        let found = self.call(async |mut client| client.find_pending(query).await).await?.into_inner().pending;
        Ok(found.map(TryInto::try_into).transpose()?)
    }
}

#[async_trait]
impl Mempool for GrpcRegistry {
    async fn announce(&self, pending: Signed<PendingRequests>) -> Result<(), RegistryError> {
        self.call(async |mut client| client.announce_pending(proto::PendingRequests::from(pending)).await.map(drop)).await
    }

    async fn pending(&self, subnet: B256, request: RequestId) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        let (subnet, request_id) = (wire::bytes(subnet), wire::bytes(request));
        self.find_pending(proto::PendingQuery { subnet, request_id, ..proto::PendingQuery::default() }).await
    }

    async fn pending_of(&self, gateway: Address) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        self.find_pending(proto::PendingQuery { gateway: wire::bytes(gateway), ..proto::PendingQuery::default() }).await
    }
}

#[async_trait]
impl Attestors for GrpcRegistry {
    async fn preprocessing(&self, request: PreprocessingRequest) -> Result<QuorumCertificate, RegistryError> {
        Ok(self
            .call(async |mut client| client.request_preprocessing_validation(proto::InferenceRequest::from(request)).await)
            .await?
            .into_inner()
            .try_into()?)
    }

    async fn completion(&self, request: CompletionRequest) -> Result<QuorumCertificate, RegistryError> {
        Ok(self
            .call(async |mut client| client.request_completion_validation(proto::CompletionRequest::from(request)).await)
            .await?
            .into_inner()
            .try_into()?)
    }

    async fn settlement(&self, request: Arc<BatchRequest>) -> Result<QuorumCertificate, RegistryError> {
        let mut client = self.client.clone();
        let judged = client.request_settlement_validation(proto::SettlementBatch::from(&*request));
        let judged = within::<_, RegistryError>(SETTLEMENT_TIMEOUT, judged).await?;
        Ok(judged.into_inner().try_into()?)
    }

    async fn answer_times(&self) -> Result<Vec<AnswerTime>, RegistryError> {
        let said = self.call(async |mut client| client.get_answer_times(proto::Empty {}).await).await?.into_inner();
        Ok(said.times.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?)
    }
}
