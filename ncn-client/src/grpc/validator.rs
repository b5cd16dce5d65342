use async_trait::async_trait;
use ncn_core::{
    Address, Approval, BatchRequest, CompletionRequest, PreprocessingRequest, RegistryError, Signed, Subnet, Validator,
};
use tonic::transport::Channel;

use super::{EndpointError, bounded, channel, within};
use crate::calls::SETTLEMENT_TIMEOUT;
use ncn_wire::{
    MAX_MESSAGE_BYTES, MAX_SMALL_MESSAGE_BYTES,
    proto::{self, validator_service_client::ValidatorServiceClient},
};

/// One validator, called over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcValidator {
    address: Address,
    client: ValidatorServiceClient<Channel>,
}

impl GrpcValidator {
    /// The validator `address` at this URL. It is called when it is first used.
    pub fn new(address: Address, url: &str) -> Result<Self, EndpointError> {
        let client = ValidatorServiceClient::new(channel(url)?)
            .max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { address, client })
    }
}

#[async_trait]
impl Validator for GrpcValidator {
    fn address(&self) -> Address {
        self.address
    }

    async fn preprocessing(&self, request: &PreprocessingRequest) -> Result<Approval, RegistryError> {
        let request = proto::InferenceRequest::from(request.clone());
        let reply = bounded::<_, RegistryError>(self.client.clone().approve_preprocessing(request)).await?;
        Ok(reply.into_inner().try_into()?)
    }

    async fn completion(&self, request: &CompletionRequest) -> Result<Approval, RegistryError> {
        let request = proto::CompletionRequest::from(request.clone());
        let reply = bounded::<_, RegistryError>(self.client.clone().approve_completion(request)).await?;
        Ok(reply.into_inner().try_into()?)
    }

    async fn settlement(&self, request: &BatchRequest) -> Result<Approval, RegistryError> {
        let mut client = self.client.clone();
        let judged = client.approve_settlement(proto::SettlementBatch::from(request));
        Ok(within::<_, RegistryError>(SETTLEMENT_TIMEOUT, judged).await?.into_inner().try_into()?)
    }

    async fn subnet(&self, subnet: &Signed<Subnet>) -> Result<Approval, RegistryError> {
        let subnet = proto::CreateSubnetRequest::from(subnet.clone());
        let reply = bounded::<_, RegistryError>(self.client.clone().approve_subnet(subnet)).await?;
        Ok(reply.into_inner().try_into()?)
    }
}
