use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use futures::future::join_all;
use ncn_core::Address;
use ncn_core::{
    Approval, BatchRequest, ChainView, CompletionRequest, Directory, DirectoryExt as _, DynSigner, InferenceRequest, LedgerError,
    Message as _, NodeRecord, PreprocessingRequest, Quote, RegistryError, Subnet, TrustRoot, Validator,
    channel::Batch,
    validation::{self, ValidationContext},
};

use super::{record::Record, subnets::Subnets, trust_root};
use crate::payments::{PaymentCheckError, PaymentVerifier};
use ncn_client::unix_now;

/// How many approvers of a batch may have left.
const MAX_LEFT: usize = 64;

/// A validator: judges by what registry and chain say, and signs what passes.
pub struct ValidatorNode {
    signer: DynSigner,
    registry: Arc<dyn Directory>,
    ledger: Arc<dyn ChainView>,
    payments: PaymentVerifier,
    subnets: Subnets,
    record: Mutex<Record>,
}

impl ValidatorNode {
    /// The validator with this key.
    pub fn new(signer: DynSigner, registry: Arc<dyn Directory>, ledger: Arc<dyn ChainView>) -> Self {
        let (payments, subnets) = (PaymentVerifier::new(ledger.clone()), Subnets::new(ledger.clone()));
        Self { signer, registry, ledger, payments, subnets, record: Mutex::default() }
    }

    /// What there is to know about a request: its subnet, and the records of those of its compute nodes that are live. Asked for together,
    /// since no answer needs another. The registry is believed only as far as gateway and compute nodes have signed, and a request is judged
    /// only by its committee.
    async fn known(
        &self,
        trust: &TrustRoot,
        quote: &Quote,
        order: &InferenceRequest,
        nodes: impl IntoIterator<Item = Address>,
    ) -> Result<(Subnet, Vec<NodeRecord>), RegistryError> {
        let nodes = join_all(nodes.into_iter().map(|node| self.registry.node(node)));
        let (subnet, nodes) = tokio::join!(self.registry.subnet(order.subnet), nodes);
        let subnet = subnet?;
        if !trust.committee(&quote.request_id).contains(&self.address()) {
            return Err(RegistryError::Refused("this validator is not in the request's committee".into()));
        }
        let unsigned = |what: &'static str| move |error| RegistryError::Malformed(format!("{what}: {error}"));
        subnet.verify(&trust.domain).map_err(unsigned("subnet"))?;
        self.subnets.check(&subnet.message).await?;
        let mut records = Vec::with_capacity(nodes.len());
        for record in nodes {
            match record {
                Ok(record) => {
                    record.verify(&trust.domain).map_err(unsigned("node"))?;
                    records.push(record.message);
                }
                // Whether it has to be live, the validation says.
                Err(RegistryError::UnknownNode(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((subnet.message, records))
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose approvals of requests count: the active validators', and those of validators that have left since and can still be
    /// punished for them.
    async fn staked(&self, batch: &Batch, trust: &TrustRoot) -> Result<Vec<Address>, RegistryError> {
        let mut validators = trust.validators.clone();
        let approvers: BTreeSet<_> = batch.entries.iter().flat_map(|entry| entry.certificate.validators()).collect();
        let left: Vec<_> = approvers.into_iter().filter(|approver| !validators.contains(approver)).collect();
        if left.len() > MAX_LEFT {
            return Err(RegistryError::Refused(format!("{} approvers are no active validators", left.len())));
        }
        for approver in left {
            if self.ledger.has_stake(approver).await.map_err(unreachable)? {
                validators.push(approver);
            }
        }
        Ok(validators)
    }
}

#[async_trait]
impl Validator for ValidatorNode {
    fn address(&self) -> Address {
        self.signer.address()
    }

    #[tracing::instrument(name = "validator.preprocessing", skip_all, fields(request = %request.quote.request_id))]
    async fn preprocessing(&self, request: &PreprocessingRequest) -> Result<Approval, RegistryError> {
        let trust = trust_root(&*self.ledger).await?;
        validation::signed_order(request, &trust.domain)?;
        let (subnet, nodes) = self.known(&trust, &request.quote, &request.request.message, [request.quote.compute]).await?;
        let context = ValidationContext { trust: &trust, subnet: &subnet, nodes: &nodes, now: unix_now() };
        validation::preprocessing(request, &context)?;
        Ok(Approval::sign(&request.quote.digest(&trust.domain), &*self.signer).await?)
    }

    #[tracing::instrument(name = "validator.completion", skip_all, fields(request = %request.quote.request_id))]
    async fn completion(&self, request: &CompletionRequest) -> Result<Approval, RegistryError> {
        let (order, quote) = (&request.request.message, &request.quote);
        let trust = trust_root(&*self.ledger).await?;
        let completion = validation::authorization(request, &trust.domain)?;
        let nodes = completion.contributions.iter().map(|contribution| contribution.compute);
        let (subnet, nodes) = self.known(&trust, quote, order, nodes).await?;
        let context = ValidationContext { trust: &trust, subnet: &subnet, nodes: &nodes, now: unix_now() };
        validation::completion(request, &context)?;
        // Last, so that nobody makes this node ask the chain for nothing.
        self.payments.check(quote, request.voucher.as_ref()).await.map_err(|error| match error {
            PaymentCheckError::NotYet(problem) => RegistryError::Unreachable(problem),
            PaymentCheckError::Refused(problem) => RegistryError::Refused(format!("payment: {problem}")),
        })?;
        Ok(Approval::sign(&completion.digest(&trust.domain), &*self.signer).await?)
    }

    async fn settlement(&self, request: &BatchRequest) -> Result<Approval, RegistryError> {
        let trust = trust_root(&*self.ledger).await?;
        if !trust.committee(&request.committee_id()).contains(&self.address()) {
            return Err(RegistryError::Refused("this validator is not in the gateway's committee".into()));
        }
        validation::settlement(request, &trust)?;
        let batch = &request.batch;
        for charge in &batch.settlement.charges {
            let channel = self.ledger.channel(charge.channel).await.map_err(unreachable)?;
            validation::charge(charge, channel.as_ref(), unix_now())?;
        }
        let validators = self.staked(batch, &trust).await?;
        let digest = batch.settlement.digest(&trust.channel_domain());
        // Thousands of signatures: not on a thread that others wait for.
        let entries = batch.entries.clone();
        let verified = tokio::task::spawn_blocking(move || {
            entries.iter().try_for_each(|entry| entry.verify(&trust, &validators)).map_err(|error| error.to_string())
        });
        verified.await.map_err(|error| RegistryError::Unreachable(error.to_string()))?.map_err(RegistryError::Refused)?;
        // Which of the batches that were approved before the chain was charged for.
        let earlier = self.record().earlier(batch);
        let mut charged = HashSet::new();
        for approved in earlier {
            let root = self.ledger.charged_root(approved.channel, approved.settled_before).await.map_err(unreachable)?;
            if root == Some(approved.root) {
                charged.insert(approved);
            }
        }
        self.record().enter(batch, &charged, unix_now())?;
        Ok(Approval::sign(&digest, &*self.signer).await?)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreachable(error: LedgerError) -> RegistryError {
    RegistryError::Unreachable(error.to_string())
}
