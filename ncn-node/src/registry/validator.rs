use std::sync::{Arc, Mutex, PoisonError};

use alloy_primitives::Address;
use async_trait::async_trait;
use ncn_core::{
    Approval, Completion, CompletionRequest, DynSigner, InferenceRequest, Message as _, NodeRecord, PaymentLedger,
    PreprocessingRequest, Quote, Registry, RegistryError, RegistryExt as _, Subnet, TrustRoot, Validator,
    channel::Batch,
    validation::{self, Facts},
};

use super::{record::Record, subnets::Subnets, trust_root};
use crate::{
    payments::{Payments, Unpaid},
    time::unix_now,
};

/// A validator: judges by what registry and chain say, and signs what passes.
pub struct ValidatorNode {
    signer: DynSigner,
    registry: Arc<dyn Registry>,
    ledger: Arc<dyn PaymentLedger>,
    payments: Payments,
    subnets: Subnets,
    record: Arc<Mutex<Record>>,
}

impl ValidatorNode {
    /// The validator with this key.
    pub fn new(signer: DynSigner, registry: Arc<dyn Registry>, ledger: Arc<dyn PaymentLedger>) -> Self {
        let (payments, subnets) = (Payments::new(ledger.clone()), Subnets::new(ledger.clone()));
        Self { signer, registry, ledger, payments, subnets, record: Arc::default() }
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
        self.subnets.check(&subnet.message).await?;
        record.verify(&trust.domain).map_err(unsigned("node"))?;
        Ok((trust, subnet.message, record.message))
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
        let (known, paid) =
            tokio::join!(self.known(quote, order, result.compute), self.payments.check(quote, request.voucher.as_ref()));
        let (trust, subnet, compute) = known?;
        let facts = Facts { trust: &trust, subnet: &subnet, compute: &compute, now: unix_now() };
        validation::completion(request, &facts)?;
        paid.map_err(|error| match error {
            Unpaid::NotYet(problem) => RegistryError::Unreachable(problem),
            Unpaid::Refused(problem) => RegistryError::Refused(format!("payment: {problem}")),
        })?;
        Ok(Approval::sign(&Completion::new(quote, result).digest(&trust.domain), &*self.signer).await?)
    }

    async fn settlement(&self, batch: &Batch) -> Result<Approval, RegistryError> {
        let trust = trust_root(&*self.ledger).await?;
        if !trust.committee(&batch.settlement.root).contains(&self.address()) {
            return Err(RegistryError::Refused("this validator is not in the batch's committee".into()));
        }
        validation::settlement(batch, &trust)?;
        let digest = batch.settlement.digest(&trust.channel_domain());
        // Thousands of signatures: not on a thread that others wait for.
        let (batch, record) = (batch.clone(), self.record.clone());
        let judged = tokio::task::spawn_blocking(move || {
            for entry in &batch.entries {
                entry.verify(&trust).map_err(|error| RegistryError::Refused(error.to_string()))?;
            }
            record.lock().unwrap_or_else(PoisonError::into_inner).enter(&batch, unix_now())
        });
        judged.await.map_err(|error| RegistryError::Unreachable(error.to_string()))??;
        Ok(Approval::sign(&digest, &*self.signer).await?)
    }
}
