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
    Attestors, ChainView, Committee, CompletionAuthorization, CompletionRequest, Delivery, Dispatch, Domain, DynSigner,
    FinishReason, InferenceRequest, InferenceResult, LedgerError, Message as _, PaymentLedger, PaymentStatus, QuorumCertificate,
    Quote, RegistryError, RequestId, Settlement, Signed,
    validation::{self, CLAIM_SECONDS},
};
use serde::{Deserialize, Serialize};

use crate::store::{Op, SharedStore, StoreError, Table, decode};

/// By request id.
const CLAIMS: Table = "compute.claims";
/// How many are kept: with an order's parameters of 16 KiB, in 80 MiB. Each is for an escrow that somebody has paid for.
const MAX_CLAIMS: usize = 4_096;
/// How long a gateway is left to settle before the chain is asked.
const SETTLING: Duration = Duration::from_mins(1);
/// How many are pursued at once.
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
    /// The node's newest word on what it has given: without the last part, unless there is a certificate for that.
    pub(super) result: Signed<InferenceResult>,
    /// Once the gateway has brought it.
    pub(super) certificate: Option<QuorumCertificate>,
}

impl Claim {
    /// A certificate pays for sure; without one, more parts are more.
    fn is_better_than(&self, other: &Self) -> bool {
        let worth = |claim: &Self| (claim.certificate.is_some(), claim.result.message.parts);
        worth(self) > worth(other)
    }

    fn attempt(&self) -> u8 {
        self.dispatches.last().map_or(0, |dispatch| dispatch.message.attempt)
    }

    fn delivery(&self) -> Delivery {
        let results = self.before.iter().cloned().chain([self.result.clone()]).collect();
        Delivery { results, finish: self.result.message.finish.unwrap_or(FinishReason::NodeLost) }
    }
}

/// What a node claims with.
pub(crate) struct ClaimParts {
    /// Whose transactions are sent.
    pub(crate) account: Arc<dyn PaymentLedger>,
    pub(crate) validators: Arc<dyn Attestors>,
    pub(crate) store: SharedStore,
}

/// All claims of a node.
pub struct Claims {
    signer: DynSigner,
    domain: Domain,
    account: Arc<dyn PaymentLedger>,
    chain: Arc<dyn ChainView>,
    validators: Arc<dyn Attestors>,
    store: SharedStore,
    /// With the time from which on the chain is asked.
    known: Mutex<HashMap<RequestId, (Claim, Instant)>>,
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
    /// Takes up what the store holds.
    pub(crate) async fn load(signer: DynSigner, chain: Arc<dyn ChainView>, parts: ClaimParts) -> Result<Arc<Self>, ClaimsError> {
        let ClaimParts { account, validators, store } = parts;
        let domain = chain.trust_root().await?.domain;
        let now = Instant::now();
        let mut known = HashMap::new();
        for (_, claim) in store.scan(CLAIMS, []).await? {
            let claim: Claim = decode(CLAIMS, &claim)?;
            known.insert(claim.quote.request_id, (claim, now));
        }
        Ok(Arc::new(Self { signer, domain, account, chain, validators, store, known: Mutex::new(known) }))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<RequestId, (Claim, Instant)>> {
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

    /// Keeps the node's newest word on a request, unless a better one is kept: in memory while there may be another one soon. False where there
    /// is no room for it.
    pub(super) async fn keep(&self, claim: Claim) -> bool {
        let request_id = claim.quote.request_id;
        let is_last = claim.certificate.is_some();
        {
            let mut known = self.known();
            let has_room = known.len() < MAX_CLAIMS;
            match known.entry(request_id) {
                // When it is due, its gateway does not put off.
                Entry::Occupied(mut kept) => {
                    if claim.is_better_than(&kept.get().0) {
                        kept.get_mut().0 = claim.clone();
                    }
                }
                Entry::Vacant(place) if has_room => {
                    place.insert((claim.clone(), Instant::now() + SETTLING));
                }
                Entry::Vacant(_) => return false,
            }
        }
        if is_last {
            self.write(request_id, Op::put(CLAIMS, request_id, &claim)).await;
        }
        true
    }

    /// No more is given of a request before there is a certificate.
    pub(super) async fn rest(&self, request_id: RequestId) {
        let claim = self.known().get(&request_id).map(|(claim, _)| claim.clone());
        if let Some(claim) = claim {
            self.write(request_id, Op::put(CLAIMS, request_id, &claim)).await;
        }
    }

    /// The request is paid for, or will not be.
    async fn forget(&self, request_id: RequestId) {
        self.known().remove(&request_id);
        self.write(request_id, Ok(Op::delete(CLAIMS, request_id))).await;
    }

    /// What is not written is lost with this process, and no sooner.
    async fn write(&self, request_id: RequestId, op: Result<Op, StoreError>) {
        let written = async { self.store.commit(vec![op?]).await };
        if let Err(error) = written.await {
            tracing::error!(request = %request_id, %error, "a claim is kept in memory only");
        }
    }

    /// Looks after the claims, for ever.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(POLL / 2);
        loop {
            ticks.tick().await;
            self.look(Instant::now()).await;
        }
    }

    /// Asks the chain for all that are due by then, and claims what nobody else will settle.
    pub async fn look(&self, due: Instant) {
        let claims: Vec<Claim> = {
            let mut known = self.known();
            let due = known.values_mut().filter(|(_, at)| *at <= due);
            due.map(|(claim, at)| {
                *at = Instant::now() + POLL;
                claim.clone()
            })
            .collect()
        };
        let pursue = async |claim: Claim| {
            if let Err(error) = self.pursue(&claim).await {
                tracing::warn!(request = %claim.quote.request_id, %error, "a request is not paid for yet");
            }
        };
        // Each may wait for a block.
        stream::iter(claims).for_each_concurrent(AT_ONCE, pursue).await;
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
        self.forget(request_id).await;
        Ok(())
    }

    /// All that it takes to be paid: with the gateway's certificate, or else with one that this node asks the validators for.
    async fn settlement(&self, claim: &Claim) -> Result<Settlement, ClaimError> {
        let Claim { request, quote, preprocessing, committee, dispatches, certificate, .. } = claim.clone();
        let delivery = claim.delivery();
        let certificate = match certificate {
            Some(certificate) => certificate,
            None => {
                let completion = delivery.completion(&quote)?.struct_hash();
                let message = CompletionAuthorization { author: self.signer.address(), completion };
                let authorization = Signed::sign(message, &self.domain, &*self.signer).await?;
                let (quote, delivery) = (quote.clone(), delivery.clone());
                let preprocessing = Some(preprocessing);
                let request =
                    CompletionRequest { request, quote, delivery, preprocessing, voucher: None, dispatches, authorization };
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
