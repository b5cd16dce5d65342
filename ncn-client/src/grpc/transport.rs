use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use ncn_core::{
    ModelInfo, PaymentConfirmation, RequestId, Signed, Submission, TaskAccess, TaskStatus, TaskUpdate, Transport, TransportError,
    transport::Updates,
};
use tonic::{Status, transport::Channel};

use super::{EndpointError, bounded, channel};
use crate::{
    proto::{self, gateway_client_service_client::GatewayClientServiceClient},
    wire::{self, MAX_MESSAGE_BYTES},
};

/// The most models that a gateway's list is read to.
const MAX_MODELS: usize = 10_000;

/// A gateway, called over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcTransport {
    url: String,
    client: GatewayClientServiceClient<Channel>,
}

impl GrpcTransport {
    /// The gateway at this URL. It is called when it is first used.
    pub fn new(url: &str) -> Result<Self, EndpointError> {
        let client = GatewayClientServiceClient::new(channel(url)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { url: url.to_owned(), client })
    }

    fn error(&self, status: &Status) -> TransportError {
        match wire::from_status(status) {
            TransportError::Unreachable { problem, .. } => TransportError::Unreachable {
                endpoint: self.url.clone(),
                problem: format!("{problem}; check the address, and that the gateway runs"),
            },
            error => error,
        }
    }
}

#[async_trait]
impl Transport for GrpcTransport {
    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError> {
        let reply = self.client.clone().submit_inference_task(bounded(submission.into())).await;
        Ok(reply.map_err(|status| self.error(&status))?.into_inner().try_into()?)
    }

    async fn confirm_payment(&self, confirmation: PaymentConfirmation) -> Result<(), TransportError> {
        let reply = self.client.clone().confirm_payment(bounded(confirmation.into())).await;
        reply.map(drop).map_err(|status| self.error(&status))
    }

    async fn updates(&self, access: Signed<TaskAccess>) -> Result<Updates, TransportError> {
        let reply = self.client.clone().subscribe_to_task_updates(proto::TaskId::from(access)).await;
        let updates = reply.map_err(|status| self.error(&status))?.into_inner();
        let this = self.clone();
        let update = move |reply: Result<proto::InferenceResponse, Status>| {
            Ok(TaskUpdate::try_from(reply.map_err(|status| this.error(&status))?)?)
        };
        Ok(updates.map(update).boxed())
    }

    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError> {
        let id = proto::TaskId { request_id: wire::bytes(request_id), ..proto::TaskId::default() };
        let reply = self.client.clone().get_task_status(bounded(id)).await;
        Ok(reply.map_err(|status| self.error(&status))?.into_inner().try_into()?)
    }

    async fn cancel(&self, access: Signed<TaskAccess>) -> Result<(), TransportError> {
        let reply = self.client.clone().cancel_task(bounded(access.into())).await;
        reply.map(drop).map_err(|status| self.error(&status))
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        let reply = self.client.clone().get_supported_models(bounded(proto::Empty {})).await;
        let models = reply.map_err(|status| self.error(&status))?.into_inner().take(MAX_MODELS);
        models.map(|info| Ok(info.map_err(|status| self.error(&status))?.try_into()?)).try_collect().await
    }
}
