//! The gateway's ports over gRPC: thin adapters around any [`Transport`], and around the gateway's compute plane.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt as _, stream, stream::BoxStream};
use ncn_core::{ChannelParams, Signed, TaskCapability, Transport, TransportError};
use ncn_wire::{
    self as wire, MAX_MESSAGE_BYTES, WireError,
    proto::{
        self, compute_message,
        gateway_client_service_server::{GatewayClientService, GatewayClientServiceServer},
        gateway_compute_service_server::{GatewayComputeService, GatewayComputeServiceServer},
    },
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Gateway, plane, sessions::Sessions};

/// Serves clients.
pub fn client_service(transport: Arc<dyn Transport>) -> GatewayClientServiceServer<impl GatewayClientService> {
    GatewayClientServiceServer::new(ClientAdapter(transport))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Serves compute nodes.
pub fn compute_service(gateway: Arc<Gateway>) -> GatewayComputeServiceServer<impl GatewayComputeService> {
    GatewayComputeServiceServer::new(ComputeAdapter { gateway, sessions: Sessions::default() })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

struct ClientAdapter(Arc<dyn Transport>);

struct ComputeAdapter {
    gateway: Arc<Gateway>,
    sessions: Sessions,
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn status(error: TransportError) -> Status {
    wire::to_status(&error)
}

/// The message as the core's type, or the caller's error.
fn read<M, T: TryFrom<M, Error = WireError>>(request: Request<M>) -> Result<T, Status> {
    Ok(T::try_from(request.into_inner())?)
}

fn ack((): ()) -> Response<proto::Ack> {
    Response::new(proto::Ack {})
}

#[async_trait]
impl GatewayClientService for ClientAdapter {
    type SubscribeToTaskUpdatesStream = BoxStream<'static, Result<proto::InferenceResponse, Status>>;
    type GetSupportedModelsStream = BoxStream<'static, Result<proto::ModelInfo, Status>>;

    async fn get_tickets(&self, request: Request<proto::TicketRequest>) -> Result<Response<proto::Tickets>, Status> {
        let tickets = self.0.tickets(request.into_inner().count).await.map_err(status)?;
        Ok(Response::new(proto::Tickets { tickets: tickets.into_iter().map(Into::into).collect() }))
    }

    async fn submit_inference_task(
        &self,
        request: Request<proto::InferenceRequest>,
    ) -> Result<Response<proto::InferenceTaskStatus>, Status> {
        Ok(Response::new(self.0.submit(read(request)?).await.map_err(status)?.into()))
    }

    async fn subscribe_to_task_updates(
        &self,
        request: Request<proto::TaskId>,
    ) -> Result<Response<Self::SubscribeToTaskUpdatesStream>, Status> {
        let from = request.get_ref().from;
        let updates = self.0.updates(read(request)?, from).await.map_err(status)?;
        Ok(Response::new(updates.map(|update| Ok(update.map_err(status)?.into())).boxed()))
    }

    async fn get_task_status(&self, request: Request<proto::TaskId>) -> Result<Response<proto::InferenceTaskStatus>, Status> {
        let request_id = wire::hash("task_id.request_id", &request.into_inner().request_id)?;
        Ok(Response::new(self.0.status(request_id).await.map_err(status)?.into()))
    }

    async fn cancel_task(&self, request: Request<proto::TaskId>) -> Result<Response<proto::Ack>, Status> {
        self.0.cancel(read(request)?).await.map(ack).map_err(status)
    }

    async fn confirm_payment(&self, request: Request<proto::TransactionConfirmation>) -> Result<Response<proto::Ack>, Status> {
        self.0.confirm_payment(read(request)?).await.map(ack).map_err(status)
    }

    async fn get_network(&self, _: Request<proto::Empty>) -> Result<Response<proto::NetworkInfo>, Status> {
        let network = self.0.network().await.map_err(status)?;
        let (gateway, trust_root) = (wire::bytes(network.gateway), Some(network.trust_root.into()));
        let (model_sources, least_relayed) = (network.model_sources, wire::amount_bytes(network.least_relayed));
        Ok(Response::new(proto::NetworkInfo { gateway, trust_root, model_sources, least_relayed }))
    }

    async fn close_channel(&self, request: Request<proto::CloseChannelRequest>) -> Result<Response<proto::ChannelClosing>, Status> {
        let request = request.into_inner();
        let access: Signed<TaskCapability> = wire::required("access", request.access)?.try_into()?;
        let terms = ChannelParams {
            client: access.message.client,
            gateway: wire::address("gateway", &request.gateway)?,
            salt: wire::hash("salt", &request.salt)?,
        };
        let (settled, signature) = self.0.close_channel(terms, access).await.map_err(status)?;
        let (settled, signature) = (wire::amount_bytes(settled), wire::bytes(signature.as_bytes()));
        Ok(Response::new(proto::ChannelClosing { settled, signature }))
    }

    async fn get_supported_models(&self, _: Request<proto::Empty>) -> Result<Response<Self::GetSupportedModelsStream>, Status> {
        let models = self.0.models().await.map_err(status)?;
        Ok(Response::new(stream::iter(models.into_iter().map(|info| Ok(info.into()))).boxed()))
    }
}

#[async_trait]
impl GatewayComputeService for ComputeAdapter {
    type AttachStream = BoxStream<'static, Result<proto::GatewayMessage, Status>>;
    type ReceiveTaskStream = BoxStream<'static, Result<proto::GatewayMessage, Status>>;

    async fn attach(&self, request: Request<Streaming<proto::ComputeMessage>>) -> Result<Response<Self::AttachStream>, Status> {
        let messages = plane::serve(self.gateway.clone(), request.into_inner(), plane::Tasks::default());
        Ok(Response::new(ReceiverStream::new(messages).boxed()))
    }

    async fn receive_task(&self, _: Request<proto::Empty>) -> Result<Response<Self::ReceiveTaskStream>, Status> {
        Ok(Response::new(self.sessions.begin(self.gateway.clone()).boxed()))
    }

    async fn register_compute_node(&self, request: Request<proto::SessionAttachment>) -> Result<Response<proto::Ack>, Status> {
        let proto::SessionAttachment { session, attachment } = request.into_inner();
        let answer = wire::required("attachment", attachment)?;
        self.sessions.take(&session, compute_message::Message::Attachment(answer)).await.map(ack)
    }

    async fn update_heartbeat(&self, request: Request<proto::HeartbeatRequest>) -> Result<Response<proto::Ack>, Status> {
        let heartbeat = compute_message::Message::Heartbeat(proto::Empty {});
        self.sessions.take(&request.into_inner().session, heartbeat).await.map(ack)
    }

    async fn submit_result(&self, request: Request<proto::SessionMessage>) -> Result<Response<proto::Ack>, Status> {
        let proto::SessionMessage { session, message } = request.into_inner();
        let message = wire::required("message", wire::required("message", message)?.message)?;
        self.sessions.take(&session, message).await.map(ack)
    }

    async fn get_task(&self, request: Request<proto::SessionTask>) -> Result<Response<proto::InferenceRequest>, Status> {
        let proto::SessionTask { session, request_id } = request.into_inner();
        Ok(Response::new(self.sessions.task(&session, &request_id)?))
    }
}
