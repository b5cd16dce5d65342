use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use ncn_core::Address;
use ncn_core::{
    Approval, BatchRequest, ChainView, CompletionRequest, DirectoryExt as _, Domain, DynSigner, InferenceRequest, LedgerError,
    Message as _, NodeRecord, PreprocessingRequest, Quote, Registry, RegistryError, Signed, Subnet, TrustHistory, Validator,
    membership::MembershipLimits,
    validation::{self, CLAIM_SECONDS, ValidationContext},
};

use super::{defined::Definitions, given::Approvals, subnets::Subnets, trust};
use crate::{
    measures::judged,
    payments::{PaymentCheckError, PaymentVerifier},
    store::{SharedStore, StoreError},
};
use ncn_client::unix_now;

/// A validator: judges by what registry and chain say, and signs what passes.
pub struct ValidatorNode {
    signer: DynSigner,
    registry: Arc<dyn Registry>,
    ledger: Arc<dyn ChainView>,
    payments: PaymentVerifier,
    subnets: Subnets,
    given: Approvals,
    defined: Definitions,
}

impl ValidatorNode {
    /// The validator with this key. What it approves, it remembers until it is dropped.
    pub fn new(signer: DynSigner, registry: Arc<dyn Registry>, ledger: Arc<dyn ChainView>) -> Self {
        let (payments, subnets) = (PaymentVerifier::new(ledger.clone()), Subnets::new(ledger.clone()));
        Self { signer, registry, ledger, payments, subnets, given: Approvals::default(), defined: Definitions::default() }
    }

    /// The same, with a store in which it keeps what it approves: one that has restarted does not approve something else.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn keeping(self, store: SharedStore) -> Result<Self, StoreError> {
        let defined = Definitions::open(store.clone()).await?;
        Ok(Self { given: Approvals::open(store).await?, defined, ..self })
    }

    /// What there is to know about a request: its subnet, and the records of those of its compute nodes that are live. Asked for together,
    /// since no answer needs another. The registry is believed only as far as gateway and compute nodes have signed, and a request is judged
    /// only by its committee.
    async fn known(
        &self,
        trust: &TrustHistory,
        quote: &Quote,
        order: &InferenceRequest,
        nodes: impl IntoIterator<Item = Address>,
    ) -> Result<(Option<Subnet>, Vec<NodeRecord>), RegistryError> {
        let (network, committee) = trust.of(quote)?;
        if !committee.members.contains(&self.address()) {
            return Err(RegistryError::Refused("this validator is not in the request's committee".into()));
        }
        let nodes = join_all(nodes.into_iter().map(|node| self.registry.node(node)));
        let (subnet, nodes) = tokio::join!(self.registry.subnet(order.subnet), nodes);
        let subnet = match subnet {
            // Whether it has to be known, the validation says.
            Err(RegistryError::UnknownSubnet(_)) => None,
            known => Some(known?),
        };
        let unsigned = |what: &'static str| move |error| RegistryError::Malformed(format!("{what}: {error}"));
        let subnet = match subnet {
            None => None,
            Some(subnet) => match self.subnets.check(&subnet, trust).await {
                Ok(()) => Some(subnet),
                // Validators have left who have approved it: until others have, it is as if it were unknown.
                Err(RegistryError::Invalid { field, .. }) if field == "subnet.approvals" => None,
                Err(error) => return Err(error),
            },
        };
        let mut records = Vec::with_capacity(nodes.len());
        for record in nodes {
            match record {
                Ok(record) => {
                    record.verify(&network.domain).map_err(unsigned("node"))?;
                    records.push(record.message);
                }
                // Whether it has to be live, the validation says.
                Err(RegistryError::UnknownNode(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((subnet.map(|subnet| subnet.definition.message), records))
    }

    /// The network's domain, which never changes.
    async fn domain(&self) -> Result<Domain, RegistryError> {
        Ok(trust(&*self.ledger, 0).await?.current().trust.domain)
    }
}

impl ValidatorNode {
    async fn judge_quote(&self, request: &PreprocessingRequest) -> Result<Approval, RegistryError> {
        let domain = self.domain().await?;
        validation::signed_order(request, &domain)?;
        let trust = trust(&*self.ledger, request.quote.epoch).await?;
        let (subnet, nodes) = self.known(&trust, &request.quote, &request.request.message, [request.quote.compute]).await?;
        let context = ValidationContext { trust: &trust, subnet: subnet.as_ref(), nodes: &nodes, now: unix_now() };
        validation::preprocessing(request, &context)?;
        Ok(Approval::sign(&request.quote.digest(&domain), &*self.signer).await?)
    }

    async fn judge_completion(&self, request: &CompletionRequest) -> Result<Approval, RegistryError> {
        let (order, quote) = (&request.request.message, &request.quote);
        let domain = self.domain().await?;
        let completion = validation::authorization(request, &domain)?;
        let trust = trust(&*self.ledger, quote.epoch).await?;
        let nodes = completion.contributions.iter().map(|contribution| contribution.compute);
        let (subnet, nodes) = self.known(&trust, quote, order, nodes).await?;
        let context = ValidationContext { trust: &trust, subnet: subnet.as_ref(), nodes: &nodes, now: unix_now() };
        validation::completion(request, &context)?;
        // Last, so that nobody makes this node ask the chain for nothing.
        let paid = match (validation::claiming_attempt(request), &request.voucher) {
            (None, None) => self.payments.check_certified(quote, completion.struct_hash()).await,
            (None, voucher) => self.payments.check(quote, voucher.as_ref()).await,
            (Some(attempt), None) => self.payments.check_claim(quote, attempt).await,
            (Some(_), Some(_)) => return Err(RegistryError::Refused("payment: a voucher is its gateway's to settle".into())),
        };
        paid.map_err(|error| match error {
            PaymentCheckError::NotYet(problem) => RegistryError::Unreachable(problem),
            PaymentCheckError::Refused(problem) => RegistryError::Refused(format!("payment: {problem}")),
        })?;
        // Later, the chain has settled or refunded it.
        let until = quote.expiry.saturating_add(2 * CLAIM_SECONDS);
        self.given.give(&completion, request.authorization.message.author, quote.gateway, until).await?;
        Ok(Approval::sign(&completion.digest(&domain), &*self.signer).await?)
    }

    async fn judge_batch(&self, request: &BatchRequest) -> Result<Approval, RegistryError> {
        let history = trust(&*self.ledger, 0).await?;
        let network = &history.current().trust;
        if !request.committees.iter().any(|committee| committee.members.contains(&self.address())) {
            return Err(RegistryError::Refused("this validator is in none of the batch's committees".into()));
        }
        validation::settlement(request, network)?;
        let batch = &request.batch;
        for charge in &batch.settlement.charges {
            let channel = self.ledger.channel(charge.channel).await.map_err(unreachable)?;
            validation::charge(batch, charge, channel.as_ref(), history.now(unix_now()))?;
        }
        let digest = batch.settlement.digest(&network.channel_domain());
        let newest = batch.entries.iter().map(|entry| entry.quote.epoch).max().unwrap_or_default();
        let history = trust(&*self.ledger, newest).await?;
        // Thousands of signatures: not on a thread that others wait for.
        let entries = batch.entries.clone();
        let verified = tokio::task::spawn_blocking(move || {
            entries.iter().try_for_each(|entry| entry.verify(&history)).map_err(|error| error.to_string())
        });
        verified.await.map_err(|error| RegistryError::Unreachable(error.to_string()))?.map_err(RegistryError::Refused)?;
        Ok(Approval::sign(&digest, &*self.signer).await?)
    }

    async fn judge_subnet(&self, subnet: &Signed<Subnet>) -> Result<Approval, RegistryError> {
        let digest = subnet.verify(&self.domain().await?);
        let digest = digest.map_err(|error| RegistryError::invalid("subnet.signature", error.to_string()))?;
        MembershipLimits::default().subnet(&subnet.message, unix_now())?;
        self.subnets.is_created(&subnet.message).await?;
        self.defined.give(&subnet.message).await?;
        Ok(Approval::sign(&digest, &*self.signer).await?)
    }
}

#[async_trait]
impl Validator for ValidatorNode {
    fn address(&self) -> Address {
        self.signer.address()
    }

    #[tracing::instrument(name = "validator.preprocessing", skip_all, fields(request = %request.quote.request_id))]
    async fn preprocessing(&self, request: &PreprocessingRequest) -> Result<Approval, RegistryError> {
        judged("quote", self.judge_quote(request)).await
    }

    #[tracing::instrument(name = "validator.completion", skip_all, fields(request = %request.quote.request_id))]
    async fn completion(&self, request: &CompletionRequest) -> Result<Approval, RegistryError> {
        judged("completion", self.judge_completion(request)).await
    }

    async fn settlement(&self, request: &BatchRequest) -> Result<Approval, RegistryError> {
        judged("batch", self.judge_batch(request)).await
    }

    async fn subnet(&self, subnet: &Signed<Subnet>) -> Result<Approval, RegistryError> {
        judged("subnet", self.judge_subnet(subnet)).await
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreachable(error: LedgerError) -> RegistryError {
    RegistryError::Unreachable(error.to_string())
}
