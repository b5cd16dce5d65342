use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use ncn_core::{
    Approval, Channel, ChannelPayment, Completion, CompletionRequest, DynSigner, EscrowState, InferenceRequest, Message as _,
    NodeRecord, PaymentLedger, PreprocessingRequest, Quote, Registry, RegistryError, RegistryExt as _, Subnet, TrustRoot,
    Validator,
    channel::Batch,
    validation::{self, Facts},
};

use super::{record::Record, trust_root};
use crate::time::unix_now;

/// How long what the chain said of a channel is believed.
const CHANNEL_AGE: Duration = Duration::from_secs(5);
/// Of how many channels that is kept.
const MAX_CHANNELS: usize = 10_000;

/// A validator: judges by what registry and chain say, and signs what passes.
pub struct ValidatorNode {
    signer: DynSigner,
    registry: Arc<dyn Registry>,
    ledger: Arc<dyn PaymentLedger>,
    channels: Mutex<HashMap<B256, (Instant, Channel)>>,
    record: Arc<Mutex<Record>>,
}

impl ValidatorNode {
    /// The validator with this key.
    pub fn new(signer: DynSigner, registry: Arc<dyn Registry>, ledger: Arc<dyn PaymentLedger>) -> Self {
        Self { signer, registry, ledger, channels: Mutex::default(), record: Arc::default() }
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

    /// Does the chain hold exactly this quote's payment, or enough of a deposit for its voucher?
    async fn paid(&self, quote: &Quote, voucher: Option<&ChannelPayment>) -> Result<(), RegistryError> {
        if let Some(payment) = voucher {
            return self.promised(quote, payment).await;
        }
        let state = self.ledger.escrow_state(quote.client, quote.request_id).await;
        match state.map_err(|error| RegistryError::Unreachable(error.to_string()))? {
            EscrowState::Escrowed { quote: hash, .. } if hash == quote.struct_hash() => Ok(()),
            other => Err(RegistryError::Refused(format!("payment: the chain does not hold this quote's payment ({other:?})"))),
        }
    }

    /// Can the channel bear what the voucher promises? What was known of it a moment ago is enough when it says yes.
    async fn promised(&self, quote: &Quote, payment: &ChannelPayment) -> Result<(), RegistryError> {
        let id = payment.voucher.channel;
        let known = self.channels.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied();
        if let Some((at, channel)) = known
            && at.elapsed() < CHANNEL_AGE
            && validation::voucher(payment, Some(&channel), quote).is_ok()
        {
            return Ok(());
        }
        let channel = self.ledger.channel(id).await.map_err(|error| RegistryError::Unreachable(error.to_string()))?;
        if let Some(channel) = channel {
            let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
            if channels.len() >= MAX_CHANNELS {
                channels.retain(|_, (at, _)| at.elapsed() < CHANNEL_AGE);
            }
            if channels.len() < MAX_CHANNELS {
                channels.insert(id, (Instant::now(), channel));
            }
        }
        let judged = validation::voucher(payment, channel.as_ref(), quote);
        judged.map_err(|error| RegistryError::Refused(format!("payment: {error}")))
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
        let (known, paid) = tokio::join!(self.known(quote, order, result.compute), self.paid(quote, request.voucher.as_ref()));
        let (trust, subnet, compute) = known?;
        let facts = Facts { trust: &trust, subnet: &subnet, compute: &compute, now: unix_now() };
        validation::completion(request, &facts)?;
        paid?;
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
