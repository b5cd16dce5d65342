//! The registry's ports over gRPC: thin adapters around any implementation.

use std::{future::ready, sync::Arc};

use async_trait::async_trait;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use ncn_core::{
    ApprovedSubnet, B256, NodeChange, NodeQuery, Registry, RegistryError, RegistryStatus, Validator, membership::Source,
};
use ncn_wire::{
    self as wire, MAX_MESSAGE_BYTES, WireError,
    proto::{
        self,
        p2p_registry_service_server::{P2pRegistryService, P2pRegistryServiceServer},
        registry_status_service_server::{RegistryStatusService, RegistryStatusServiceServer},
        validator_service_server::{ValidatorService, ValidatorServiceServer},
    },
};
use tonic::{Request, Response, Status};

use super::SOURCE;
use crate::server::caller;

/// Serves a registry.
pub fn registry_service(registry: Arc<dyn Registry>) -> P2pRegistryServiceServer<impl P2pRegistryService> {
    P2pRegistryServiceServer::new(RegistryAdapter(registry)).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Serves a validator.
pub fn validator_service(validator: Arc<dyn Validator>) -> ValidatorServiceServer<impl ValidatorService> {
    ValidatorServiceServer::new(ValidatorAdapter(validator)).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Tells what a registry node says of itself.
pub type StatusSource = dyn Fn() -> RegistryStatus + Send + Sync;

/// Serves what a registry node says of itself.
pub fn status_service(status: Arc<StatusSource>) -> RegistryStatusServiceServer<impl RegistryStatusService> {
    RegistryStatusServiceServer::new(StatusAdapter(status))
}

struct RegistryAdapter(Arc<dyn Registry>);

struct ValidatorAdapter(Arc<dyn Validator>);

struct StatusAdapter(Arc<StatusSource>);

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn status(error: RegistryError) -> Status {
    wire::to_status(&error)
}

/// The message as the core's type, or the caller's error.
fn read<M, T: TryFrom<M, Error = WireError>>(request: Request<M>) -> Result<T, Status> {
    let invalid = |error: WireError| status(RegistryError::invalid(error.field, error.problem));
    T::try_from(request.into_inner()).map_err(invalid)
}

fn ack((): ()) -> Response<proto::Ack> {
    Response::new(proto::Ack {})
}

#[async_trait]
impl P2pRegistryService for RegistryAdapter {
    type DiscoverNodesStream = BoxStream<'static, Result<proto::NodeInfo, Status>>;
    type ListSubnetsStream = BoxStream<'static, Result<proto::ApprovedSubnet, Status>>;
    type WatchNodesStream = BoxStream<'static, Result<proto::NodeChange, Status>>;

    async fn register_node(&self, request: Request<proto::NodeInfo>) -> Result<Response<proto::Ack>, Status> {
        let source = caller(&request).map(Source::of).unwrap_or_default();
        SOURCE.scope(source, self.0.register(read(request)?)).await.map(ack).map_err(status)
    }

    async fn update_node_heartbeat(
        &self,
        request: Request<proto::UpdateNodeHeartbeatRequest>,
    ) -> Result<Response<proto::Ack>, Status> {
        self.0.heartbeat(read(request)?).await.map(ack).map_err(status)
    }

    async fn deregister_node(&self, request: Request<proto::DeregisterNodeRequest>) -> Result<Response<proto::Ack>, Status> {
        self.0.deregister(read(request)?).await.map(ack).map_err(status)
    }

    async fn discover_nodes(
        &self,
        request: Request<proto::DiscoverNodesRequest>,
    ) -> Result<Response<Self::DiscoverNodesStream>, Status> {
        let query: NodeQuery = read(request)?;
        if query.node.is_some() {
            // One record at most, which is looked up and not searched for: validators ask for each request.
            let found = self.0.discover(query).await.map_err(status)?;
            return Ok(Response::new(stream::iter(found.into_iter().map(|record| Ok(record.into()))).boxed()));
        }
        // Record by record: a list of all would wait in memory until it is read.
        let changes = self.0.watch(query).await.map_err(status)?;
        let live = changes.take_while(|change| ready(*change != Ok(NodeChange::Synced))).filter_map(|change| {
            ready(match change {
                Ok(NodeChange::Live(record)) => Some(Ok(record.into())),
                Ok(_) => None,
                Err(error) => Some(Err(status(error))),
            })
        });
        Ok(Response::new(live.boxed()))
    }

    async fn watch_nodes(&self, request: Request<proto::DiscoverNodesRequest>) -> Result<Response<Self::WatchNodesStream>, Status> {
        let changes = self.0.watch(read(request)?).await.map_err(status)?;
        Ok(Response::new(changes.map(|change| change.map(Into::into).map_err(status)).boxed()))
    }

    async fn register_subnet(&self, request: Request<proto::CreateSubnetRequest>) -> Result<Response<proto::Ack>, Status> {
        self.0.register_subnet(read(request)?).await.map(ack).map_err(status)
    }

    async fn get_subnet(&self, request: Request<proto::SubnetId>) -> Result<Response<proto::ApprovedSubnet>, Status> {
        let id = wire::hash("id", &request.into_inner().id);
        let id = id.map_err(|error| status(RegistryError::invalid(error.field, error.problem)))?;
        Ok(Response::new(self.0.subnet(id).await.map_err(status)?.into()))
    }

    async fn list_subnets(&self, request: Request<proto::SubnetId>) -> Result<Response<Self::ListSubnetsStream>, Status> {
        let after = wire::hash("id", &request.into_inner().id);
        let after = after.map_err(|error| status(RegistryError::invalid(error.field, error.problem)))?;
        // Page by page, as they are read.
        let page = |(registry, after): (Arc<dyn Registry>, Option<B256>)| async move {
            let page = registry.subnets(after?).await;
            let last = page.as_ref().ok()?.last().map(|subnet| subnet.subnet().id());
            Some((stream::iter(page.unwrap_or_default()), (registry, last)))
        };
        let subnets = stream::unfold((self.0.clone(), Some(after)), page).flatten();
        Ok(Response::new(subnets.map(|subnet: Arc<ApprovedSubnet>| Ok(Arc::unwrap_or_clone(subnet).into())).boxed()))
    }

    async fn register_manifest(&self, request: Request<proto::ManifestRequest>) -> Result<Response<proto::Ack>, Status> {
        let proto::ManifestRequest { subnet, manifest } = request.into_inner();
        let subnet = wire::hash("subnet", &subnet);
        let subnet = subnet.map_err(|error| status(RegistryError::invalid(error.field, error.problem)))?;
        self.0.register_manifest(subnet, manifest).await.map(ack).map_err(status)
    }

    async fn get_manifest(&self, request: Request<proto::ModelId>) -> Result<Response<proto::Manifest>, Status> {
        let digest = wire::hash("digest", &request.into_inner().digest);
        let digest = digest.map_err(|error| status(RegistryError::invalid(error.field, error.problem)))?;
        Ok(Response::new(proto::Manifest { manifest: self.0.manifest(digest).await.map_err(status)? }))
    }

    async fn announce_pending(&self, request: Request<proto::PendingRequests>) -> Result<Response<proto::Ack>, Status> {
        self.0.announce(read(request)?).await.map(ack).map_err(status)
    }

    async fn find_pending(&self, request: Request<proto::PendingQuery>) -> Result<Response<proto::PendingAnswer>, Status> {
        let proto::PendingQuery { subnet, request_id, gateway } = request.into_inner();
        let invalid = |error: WireError| status(RegistryError::invalid(error.field, error.problem));
        let found = if gateway.is_empty() {
            let subnet = wire::hash("subnet", &subnet).map_err(invalid)?;
            self.0.pending(subnet, wire::hash("requestId", &request_id).map_err(invalid)?).await
        } else {
            self.0.pending_of(wire::address("gateway", &gateway).map_err(invalid)?).await
        };
        Ok(Response::new(proto::PendingAnswer { pending: found.map_err(status)?.map(Into::into) }))
    }

    async fn request_preprocessing_validation(
        &self,
        request: Request<proto::InferenceRequest>,
    ) -> Result<Response<proto::PreprocessingValidation>, Status> {
        Ok(Response::new(self.0.preprocessing(read(request)?).await.map_err(status)?.into()))
    }

    async fn request_completion_validation(
        &self,
        request: Request<proto::CompletionRequest>,
    ) -> Result<Response<proto::CompletionValidation>, Status> {
        Ok(Response::new(self.0.completion(read(request)?).await.map_err(status)?.into()))
    }

    async fn request_settlement_validation(
        &self,
        request: Request<proto::SettlementBatch>,
    ) -> Result<Response<proto::SettlementValidation>, Status> {
        Ok(Response::new(self.0.settlement(Arc::new(read(request)?)).await.map_err(status)?.into()))
    }

    async fn get_answer_times(&self, _: Request<proto::Empty>) -> Result<Response<proto::AnswerTimes>, Status> {
        let times = self.0.answer_times().await.map_err(status)?;
        Ok(Response::new(proto::AnswerTimes { times: times.into_iter().map(Into::into).collect() }))
    }
}

#[async_trait]
impl RegistryStatusService for StatusAdapter {
    async fn get_registry_status(&self, _: Request<proto::Empty>) -> Result<Response<proto::RegistryStatus>, Status> {
        Ok(Response::new((self.0)().into()))
    }
}

#[async_trait]
impl ValidatorService for ValidatorAdapter {
    async fn approve_preprocessing(
        &self,
        request: Request<proto::InferenceRequest>,
    ) -> Result<Response<proto::ValidatorSignature>, Status> {
        Ok(Response::new(self.0.preprocessing(&read(request)?).await.map_err(status)?.into()))
    }

    async fn approve_completion(
        &self,
        request: Request<proto::CompletionRequest>,
    ) -> Result<Response<proto::ValidatorSignature>, Status> {
        Ok(Response::new(self.0.completion(&read(request)?).await.map_err(status)?.into()))
    }

    async fn approve_settlement(
        &self,
        request: Request<proto::SettlementBatch>,
    ) -> Result<Response<proto::ValidatorSignature>, Status> {
        Ok(Response::new(self.0.settlement(&read(request)?).await.map_err(status)?.into()))
    }

    async fn approve_subnet(
        &self,
        request: Request<proto::CreateSubnetRequest>,
    ) -> Result<Response<proto::ValidatorSignature>, Status> {
        Ok(Response::new(self.0.subnet(&read(request)?).await.map_err(status)?.into()))
    }
}
