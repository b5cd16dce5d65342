use std::sync::Arc;

use alloy_primitives::Address;
use async_trait::async_trait;
use ncn_core::{
    Approval, Completion, CompletionRequest, DynSigner, EscrowState, InferenceRequest, Message as _, NodeRecord, PaymentLedger,
    PreprocessingRequest, Quote, Registry, RegistryError, RegistryExt as _, Subnet, TrustRoot, Validator,
    validation::{self, Facts},
};

use super::trust_root;
use crate::time::unix_now;

/// A validator: judges by what registry and chain say, and signs what passes.
pub struct ValidatorNode {
    signer: DynSigner,
    registry: Arc<dyn Registry>,
    ledger: Arc<dyn PaymentLedger>,
}

impl ValidatorNode {
    /// The validator with this key.
    pub fn new(signer: DynSigner, registry: Arc<dyn Registry>, ledger: Arc<dyn PaymentLedger>) -> Self {
        Self { signer, registry, ledger }
    }

    /// What there is to know about a request; asked for together, since no answer needs another. The registry is believed only as
    /// far as gateway and compute node have signed, and a request is judged only by its committee.
    async fn known(
        &self,
        quote: &Quote,
        order: &InferenceRequest,
        compute: Address,
    ) -> Result<(TrustRoot, Subnet, NodeRecord), RegistryError> {
        let (trust, subnet, record) =
            tokio::join!(trust_root(&*self.ledger), self.registry.subnet(order.subnet), self.registry.node(compute));
        let (trust, subnet, record) = (trust?, subnet?, record?);
        if !trust.committee(&quote.request_id).contains(&self.address()) {
            return Err(RegistryError::Refused("this validator is not in the request's committee".into()));
        }
        let unsigned = |what: &'static str| move |error| RegistryError::Malformed(format!("{what}: {error}"));
        subnet.verify(&trust.domain).map_err(unsigned("subnet"))?;
        record.verify(&trust.domain).map_err(unsigned("node"))?;
        Ok((trust, subnet.message, record.message))
    }

    /// Does the chain hold exactly this quote's payment?
    async fn paid(&self, quote: &Quote) -> Result<(), RegistryError> {
        let state = self.ledger.escrow_state(quote.client, quote.request_id).await;
        match state.map_err(|error| RegistryError::Unreachable(error.to_string()))? {
            EscrowState::Escrowed { quote: hash, .. } if hash == quote.struct_hash() => Ok(()),
            other => Err(RegistryError::Refused(format!("payment: the chain does not hold this quote's payment ({other:?})"))),
        }
    }
}

#[async_trait]
impl Validator for ValidatorNode {
    fn address(&self) -> Address {
        self.signer.address()
    }

    async fn preprocessing(&self, request: &PreprocessingRequest) -> Result<Approval, RegistryError> {
        let (trust, subnet, compute) = self.known(&request.quote, &request.request.message, request.quote.compute).await?;
        let facts = Facts { trust: &trust, subnet: &subnet, compute: &compute, now: unix_now() };
        validation::preprocessing(request, &facts)?;
        Ok(Approval::sign(&request.quote.digest(&trust.domain), &*self.signer).await?)
    }

    async fn completion(&self, request: &CompletionRequest) -> Result<Approval, RegistryError> {
        let (order, quote, result) = (&request.request.message, &request.quote, &request.result.message);
        let (known, paid) = tokio::join!(self.known(quote, order, result.compute), self.paid(quote));
        let (trust, subnet, compute) = known?;
        let facts = Facts { trust: &trust, subnet: &subnet, compute: &compute, now: unix_now() };
        validation::completion(request, &facts)?;
        paid?;
        Ok(Approval::sign(&Completion::new(quote, result).digest(&trust.domain), &*self.signer).await?)
    }
}
