use async_trait::async_trait;
use futures::StreamExt as _;
use ncn_core::{
    Amount, ChannelParams, ModelInfo, NetworkInfo, PaymentConfirmation, RequestId, Signature, Signed, Submission, TaskCapability,
    TaskStatus, Ticket, Transport, TransportError, Update, transport::Updates,
};
use tonic::{Status, transport::Channel};

use super::{EndpointError, bounded, channel, list, within};
use crate::calls::{QUOTE_TIMEOUT, SETTLEMENT_TIMEOUT, unreachable};
use ncn_wire::{
    self as wire, MAX_MESSAGE_BYTES, MAX_MODEL_BYTES,
    proto::{self, gateway_client_service_client::GatewayClientServiceClient},
};

/// The most models that a gateway's list is read to.
const MAX_MODELS: usize = 10_000;
/// The most sources of models that a gateway is believed to have.
const MAX_MODEL_SOURCES: usize = 16;

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
            .max_decoding_message_size(MAX_MODEL_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { url: origin(url), client })
    }

    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(GatewayClientServiceClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, TransportError> {
        bounded(call(self.client.clone())).await.map_err(|error| self.located(error))
    }

    fn error(&self, status: &Status) -> TransportError {
        self.located(wire::from_status(status))
    }

    /// Says who could not be reached.
    fn located(&self, error: TransportError) -> TransportError {
        match error {
            TransportError::Unreachable { problem, .. } => unreachable(&self.url, &problem),
            error => error,
        }
    }
}

/// Scheme, host and port: what else a URL has may be secret.
fn origin(url: &str) -> String {
    url.parse::<tonic::transport::Uri>()
        .ok()
        .and_then(|uri| Some(format!("{}://{}:{}", uri.scheme_str()?, uri.host()?, uri.port_u16().unwrap_or(80))))
        .unwrap_or_default()
}

#[async_trait]
impl Transport for GrpcTransport {
    async fn tickets(&self, count: u32) -> Result<Vec<Ticket>, TransportError> {
        let tickets = self.call(async |mut client| client.get_tickets(proto::TicketRequest { count }).await).await?.into_inner();
        Ok(tickets.tickets.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?)
    }

    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError> {
        let request = proto::InferenceRequest::from(submission);
        let mut client = self.client.clone();
        let submitted = within::<_, TransportError>(QUOTE_TIMEOUT, client.submit_inference_task(request)).await;
        Ok(submitted.map_err(|error| self.located(error))?.into_inner().try_into()?)
    }

    async fn confirm_payment(&self, confirmation: PaymentConfirmation) -> Result<(), TransportError> {
        let confirmation = proto::TransactionConfirmation::from(confirmation);
        self.call(async |mut client| client.confirm_payment(confirmation).await.map(drop)).await
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        let id = proto::TaskId { from, ..access.into() };
        let follow = async |client: GatewayClientServiceClient<Channel>| {
            client.max_decoding_message_size(MAX_MESSAGE_BYTES).subscribe_to_task_updates(id).await
        };
        let updates = self.call(follow).await?.into_inner();
        let this = self.clone();
        let update = move |reply: Result<proto::InferenceResponse, Status>| {
            Ok(Update::try_from(reply.map_err(|status| this.error(&status))?)?)
        };
        Ok(updates.map(update).boxed())
    }

    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError> {
        let id = proto::TaskId { request_id: wire::bytes(request_id), ..proto::TaskId::default() };
        Ok(self.call(async |mut client| client.get_task_status(id).await).await?.into_inner().try_into()?)
    }

    async fn cancel(&self, access: Signed<TaskCapability>) -> Result<(), TransportError> {
        let id = proto::TaskId::from(access);
        self.call(async |mut client| client.cancel_task(id).await.map(drop)).await
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        let models =
            self.call(async |mut client| list(client.get_supported_models(proto::Empty {}).await?.into_inner(), MAX_MODELS).await);
        Ok(models.await??)
    }

    async fn network(&self) -> Result<NetworkInfo, TransportError> {
        let network = self.call(async |mut client| client.get_network(proto::Empty {}).await).await?.into_inner();
        Ok(NetworkInfo {
            gateway: wire::address("gateway", &network.gateway)?,
            trust_root: wire::required("trust_root", network.trust_root)?.try_into()?,
            model_sources: network.model_sources.into_iter().take(MAX_MODEL_SOURCES).collect(),
            least_relayed: wire::amount("least_relayed", &network.least_relayed)?,
        })
    }

    async fn close_channel(
        &self,
        terms: ChannelParams,
        access: Signed<TaskCapability>,
    ) -> Result<(Amount, Signature), TransportError> {
        let mut client = self.client.clone();
        let (salt, gateway) = (wire::bytes(terms.salt), wire::bytes(terms.gateway));
        let closing = client.close_channel(proto::CloseChannelRequest { access: Some(access.into()), salt, gateway });
        let closing = within::<_, TransportError>(SETTLEMENT_TIMEOUT, closing).await.map_err(|error| self.located(error))?;
        let closing = closing.into_inner();
        Ok((wire::amount("settled", &closing.settled)?, wire::signature("signature", &closing.signature)?))
    }
}
