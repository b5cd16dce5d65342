//! What a compute node is owed for what it has given. A gateway settles that itself, mostly; what it gives up or lets expire, the node has
//! judged and settled by its own account.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use ncn_client::unix_now;
use ncn_core::{
    Acknowledgement, Amount, Attestors, ChainView, Committee, Completion, CompletionAuthorization, CompletionRequest, Delivery,
    Dispatch, Domain, DynSigner, FeeSplit, FinishReason, InferenceRequest, InferenceResult, LedgerError, Message as _,
    PaymentLedger, PaymentStatus, QuorumCertificate, Quote, RegistryError, RequestId, Settlement, Signed,
    validation::{self, CLAIM_SECONDS},
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::store::{Op, SharedStore, StoreError, Table, decode};

/// By request id.
const CLAIMS: Table = "compute.claims";
/// How many are kept. Each is for an escrow that somebody has paid for, and takes as much as its order's parameters, of 16 KiB at most, and two certificates
/// with their committee: 20 KiB with one of five, 80 MiB of all; 70 KiB with one of 256.
const MAX_CLAIMS: usize = 4_096;
/// How long a gateway is left to settle before the chain is asked.
const SETTLING: Duration = Duration::from_mins(1);
/// How many are pursued at once by one look.
const AT_ONCE: usize = 32;
/// How often the chain is asked for what is not settled then: several times in [`CLAIM_SECONDS`].
const POLL: Duration = Duration::from_secs(30);

/// What it takes to be paid for a request.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) request: Signed<InferenceRequest>,
    pub(super) quote: Quote,
    /// The validators' approval of it.
    pub(super) preprocessing: QuorumCertificate,
    pub(super) committee: Committee,
    pub(super) before: Vec<Signed<InferenceResult>>,
    pub(super) dispatches: Vec<Signed<Dispatch>>,
    /// The node's newest word on what it has given. The last part is in it only with the certificate that it was handed over for.
    pub(super) result: Signed<InferenceResult>,
    /// Its gateway's word that it has got that. A claim is nothing without it or the certificate.
    pub(super) acknowledgement: Option<Signed<Acknowledgement>>,
    /// Once the gateway has brought it.
    pub(super) certificate: Option<QuorumCertificate>,
}

impl Claim {
    /// Whether it pays more, or as much for sure.
    fn is_better_than(&self, other: &Self) -> bool {
        let worth = |claim: &Self| (worth(&claim.quote, &claim.before, &claim.result), claim.certificate.is_some());
        worth(self) > worth(other)
    }

    fn attempt(&self) -> u8 {
        self.dispatches.last().map_or(0, |dispatch| dispatch.message.attempt)
    }

    fn delivery(&self) -> Delivery {
        delivery(&self.before, &self.result)
    }
}

/// What was delivered by a node's newest word, and by those before it.
fn delivery(before: &[Signed<InferenceResult>], result: &Signed<InferenceResult>) -> Delivery {
    let results = before.iter().cloned().chain([result.clone()]).collect();
    Delivery { results, finish: result.message.finish.unwrap_or(FinishReason::NodeLost) }
}

/// What the parts cost that are the node's own.
fn worth(quote: &Quote, before: &[Signed<InferenceResult>], result: &Signed<InferenceResult>) -> Amount {
    let node = result.message.compute;
    let own = |completion: Completion| {
        let own = completion.contributions.iter().filter(|contribution| contribution.compute == node);
        own.map(|contribution| contribution.cost).sum()
    };
    delivery(before, result).completion(quote).map(own).unwrap_or_default()
}

/// What the node gets of that, once gateway, validators and treasury have their parts: this much at least, with any approvers.
pub(super) fn least_payout(quote: &Quote, before: &[Signed<InferenceResult>], result: &Signed<InferenceResult>) -> Amount {
    let FeeSplit { gateway_bps, validators_bps, treasury_bps } = quote.split;
    let compute_bps = 10_000u16.saturating_sub(gateway_bps).saturating_sub(validators_bps).saturating_sub(treasury_bps);
    let part = FeeSplit::part(worth(quote, before, result), compute_bps);
    // Of several nodes' parts, each is rounded down.
    part.checked_sub(Amount::new(1)).unwrap_or_default()
}

/// What a node claims with.
pub struct ClaimParts {
    /// Whose transactions are sent.
    pub account: Arc<dyn PaymentLedger>,
    /// Who approves what its gateway has not brought.
    pub validators: Arc<dyn Attestors>,
    /// Where claims are kept until they are paid.
    pub store: SharedStore,
}

/// All claims of a node.
pub struct Claims {
    signer: DynSigner,
    domain: Domain,
    account: Arc<dyn PaymentLedger>,
    chain: Arc<dyn ChainView>,
    validators: Arc<dyn Attestors>,
    store: SharedStore,
    known: Mutex<HashMap<RequestId, Kept>>,
}

/// A claim, and how it is looked after.
struct Kept {
    claim: Claim,
    /// From when on the chain is asked.
    due: Instant,
    is_written: bool,
    /// Somebody does so.
    is_pursued: bool,
}

/// Why a claim is not paid yet.
#[derive(Debug, thiserror::Error)]
enum ClaimError {
    #[error("chain: {0}")]
    Ledger(#[from] LedgerError),
    #[error("validators: {0}")]
    Registry(#[from] RegistryError),
    #[error("the delivery: {0}")]
    Delivery(#[from] ncn_core::DeliveryError),
    #[error("key: {0}")]
    Key(#[from] ncn_core::SignatureError),
}

impl Claims {
    /// Takes up what the store holds. [`Self::watch`] looks after it.
    ///
    /// # Errors
    /// When the chain does not answer, or the store cannot be read.
    pub async fn load(signer: DynSigner, chain: Arc<dyn ChainView>, parts: ClaimParts) -> Result<Arc<Self>, ClaimsError> {
        let ClaimParts { account, validators, store } = parts;
        let domain = chain.trust_root().await?.domain;
        let due = Instant::now();
        let mut known = HashMap::new();
        for (_, claim) in store.scan(CLAIMS, []).await? {
            let claim: Claim = decode(CLAIMS, &claim)?;
            known.insert(claim.quote.request_id, Kept { claim, due, is_written: true, is_pursued: false });
        }
        Ok(Arc::new(Self { signer, domain, account, chain, validators, store, known: Mutex::new(known) }))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<RequestId, Kept>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.known().len()
    }

    /// Whether there is room for another one.
    pub(super) fn has_room(&self) -> bool {
        self.known().len() < MAX_CLAIMS
    }

    /// Keeps what the node is owed for a request, unless something better is kept. What has a certificate is written at once, the rest when the
    /// output is at its end and acknowledged, or the claim is due. False where there is no room for it.
    pub(super) async fn keep(&self, claim: Claim) -> bool {
        let (request_id, due) = (claim.quote.request_id, Instant::now() + SETTLING);
        let is_certified = claim.certificate.is_some();
        {
            let mut known = self.known();
            let has_room = known.len() < MAX_CLAIMS;
            match known.entry(request_id) {
                Entry::Occupied(mut kept) => {
                    let kept = kept.get_mut();
                    if !claim.is_better_than(&kept.claim) {
                        return true;
                    }
                    // Its gateway has a moment to settle what it has the certificate for. Nothing else postpones when a claim is due.
                    if is_certified && kept.claim.certificate.is_none() {
                        kept.due = due;
                    }
                    (kept.claim, kept.is_written) = (claim, false);
                }
                Entry::Vacant(place) if has_room => {
                    place.insert(Kept { claim, due, is_written: false, is_pursued: false });
                }
                Entry::Vacant(_) => return false,
            }
        }
        if is_certified {
            self.persist(request_id).await;
        }
        true
    }

    /// Writes down what is kept of a request. What is not written is lost with this process, and no sooner.
    pub(super) async fn persist(&self, request_id: RequestId) {
        let claim = {
            let mut known = self.known();
            let unwritten = known.get_mut(&request_id).filter(|kept| !kept.is_written);
            unwritten.map(|kept| {
                kept.is_written = true;
                kept.claim.clone()
            })
        };
        if let Some(claim) = claim {
            self.write(request_id, Op::put(CLAIMS, request_id, &claim)).await;
        }
    }

    /// The request is paid for, or will not be.
    async fn forget(&self, request_id: RequestId) {
        self.write(request_id, Ok(Op::delete(CLAIMS, request_id))).await;
        self.known().remove(&request_id);
    }

    async fn write(&self, request_id: RequestId, op: Result<Op, StoreError>) {
        let written = async { self.store.commit(vec![op?]).await };
        if let Err(error) = written.await {
            tracing::error!(request = %request_id, %error, "a claim is kept in memory only");
        }
    }

    /// Looks after the claims, for ever. Dropping it ends that; what it was about to settle may be on its way.
    pub async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(POLL / 2);
        let mut looking = JoinSet::new();
        loop {
            ticks.tick().await;
            // One that waits for a block holds up none that is due meanwhile.
            let claims = self.clone();
            looking.spawn(async move { claims.look(Instant::now()).await });
            while looking.try_join_next().is_some() {}
        }
    }

    /// Asks the chain for all that are due by then, and claims what nobody else will settle. Returns once that is done.
    pub async fn look(&self, due: Instant) {
        let due: Vec<RequestId> = {
            let mut known = self.known();
            let due = known.iter_mut().filter(|(_, kept)| kept.due <= due && !kept.is_pursued);
            due.map(|(request_id, kept)| {
                (kept.due, kept.is_pursued) = (Instant::now() + POLL, true);
                *request_id
            })
            .collect()
        };
        let pursue = async |request_id: RequestId| {
            self.persist(request_id).await;
            let claim = self.known().get(&request_id).map(|kept| kept.claim.clone());
            let Some(claim) = claim else { return };
            let pursued = self.pursue(&claim).await;
            if let Some(kept) = self.known().get_mut(&request_id) {
                kept.is_pursued = false;
                // One of the approvals may be of a validator that has nothing at stake any more: this node asks for others.
                if let Err(ClaimError::Ledger(LedgerError::Certificate(_))) = &pursued {
                    kept.claim.certificate = None;
                }
            }
            if let Err(error) = pursued {
                tracing::warn!(request = %request_id, %error, "a request is not paid for yet");
            }
        };
        stream::iter(due).for_each_concurrent(AT_ONCE, pursue).await;
    }

    async fn pursue(&self, claim: &Claim) -> Result<(), ClaimError> {
        let Quote { request_id, client, expiry, .. } = claim.quote;
        let now = self.chain.now().await?.max(unix_now());
        let status = self.chain.status(client, request_id).await?;
        if status == PaymentStatus::Unpaid && now <= expiry {
            return Ok(());
        }
        if let Ok(from) = validation::claimable_from(&claim.quote, claim.attempt(), &status)
            && now <= expiry + CLAIM_SECONDS
        {
            // With a certificate there is nothing to wait for: its gateway has had its time, and may end the escrow in another way.
            if now < from && claim.certificate.is_none() {
                return Ok(());
            }
            let settlement = self.settlement(claim).await?;
            let by = self.account.settle(&settlement).await?;
            tracing::info!(request = %request_id, %by, "settled a request that its gateway had not");
        }
        match status {
            PaymentStatus::PaidOut { by, .. } => {
                tracing::info!(request = %request_id, %by, "a request that was served is paid out");
            }
            PaymentStatus::Refunded { by } => tracing::warn!(request = %request_id, %by, "a request that was served is refunded"),
            _ => {}
        }
        self.forget(request_id).await;
        Ok(())
    }

    /// All that it takes to be paid: with the gateway's certificate, or else with one that this node asks the validators for.
    async fn settlement(&self, claim: &Claim) -> Result<Settlement, ClaimError> {
        let Claim { request, quote, preprocessing, committee, dispatches, acknowledgement, certificate, .. } = claim.clone();
        let delivery = claim.delivery();
        let certificate = match certificate {
            Some(certificate) => certificate,
            None => {
                let completion = delivery.completion(&quote)?.struct_hash();
                let message = CompletionAuthorization { author: self.signer.address(), completion };
                let authorization = Signed::sign(message, &self.domain, &*self.signer).await?;
                let (quote, delivery) = (quote.clone(), delivery.clone());
                let preprocessing = Some(preprocessing);
                let request = CompletionRequest {
                    request,
                    quote,
                    delivery,
                    preprocessing,
                    voucher: None,
                    dispatches,
                    acknowledgement,
                    authorization,
                };
                self.validators.completion(request).await?
            }
        };
        Ok(Settlement::new(quote, committee, delivery, certificate)?)
    }
}

/// Why claims cannot be looked after.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimsError {
    /// The chain does not answer.
    #[error("chain: {0}")]
    Ledger(#[from] LedgerError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}
