//! Settles what is earned: in batches, by count, age and value. Every step is kept before the next, so that a crash at any point
//! leads to the same settlement, once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ncn_client::Backoff;
use ncn_core::{
    Address, Amount, B256, BatchRequest, ChannelCharge, ChannelSettlement, LedgerError, Message as _, QuorumCertificate,
    RegistryError, RequestId, SettlementRequest, SignatureError, Signed,
    channel::{Batch, BatchEntry, BatchError, CertifiedBatch, ChargeStart, MAX_BATCH, MAX_CHARGES, MAX_PAYOUTS},
};

use super::{
    ChannelState, Inner,
    chargeable::{Aside, chargeable, fits, numbered},
    kept::SettledBatch,
    records::{self, BatchChange, Change, KeptChange, Pending},
    reorganization::chain_time,
    state::Judged,
};
use crate::{measures, store::StoreError};
use ncn_client::unix_now;

/// How often is looked whether something has become due.
const TICK: Duration = Duration::from_millis(500);
/// How often a batch is presented that the validators or the chain refuse, before its requests are put together anew, fewer at a time.
const TRIES: u32 = 6;
/// How long a request is left alone that was refused on its own.
pub(super) const SET_ASIDE: Duration = Duration::from_mins(1);
/// How long a request is left alone whose proof is not on disk yet, or whose number is too high.
pub(super) const NOT_YET: Duration = Duration::from_secs(1);
/// How long ended requests are remembered after their quotes' expiry, in seconds.
const MEMORY: u64 = 3_600;

/// Why a batch was not settled.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("validators: {0}")]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("key: {0}")]
    Signature(#[from] SignatureError),
    /// The chain has been charged otherwise than the batch starts from.
    #[error("the channel was charged in another way: putting the batch together anew")]
    Outdated,
    /// The chain has taken something back that the batch builds upon.
    #[error("the chain has taken back what the batch builds upon: it is presented again after that")]
    Behind,
}

impl Failure {
    /// True when it may be the batch's own fault: that ends after some tries. Everything else is waited for, however long it takes.
    pub(super) const fn is_refusal(&self) -> bool {
        match self {
            Self::Registry(error) => !matches!(error, RegistryError::Unreachable(_) | RegistryError::Overloaded(_)),
            Self::Batch(_) | Self::Outdated => true,
            Self::Ledger(error) => {
                let circumstances = matches!(error, LedgerError::NotAllowed(_) | LedgerError::Malformed(_));
                !circumstances && !error.is_retryable()
            }
            Self::Store(_) | Self::Signature(_) | Self::Behind => false,
        }
    }
}

pub(super) async fn settle_for_ever(inner: &Inner) {
    let mut backoff = Backoff::new();
    // How many requests go into a batch: fewer after one was refused, so that a bad one ends up alone.
    let mut limit = MAX_BATCH;
    let mut aside = Aside::default();
    let mut flushing = false;
    loop {
        match next(inner, limit, &mut aside, flushing).await {
            Ok(Some(pending)) => match conclude(inner, pending).await {
                Ok(()) => {
                    (limit, backoff) = ((limit * 2).min(MAX_BATCH), Backoff::new());
                    inner.settled.notify_waiters();
                }
                Err((pending, error)) => {
                    let size = pending.batch.entries.len();
                    tracing::error!(%error, requests = size, "a batch is not settled; its requests are put together anew");
                    // What is one channel's trouble is not looked for among all requests.
                    if let Failure::Ledger(LedgerError::Channel { channel, .. }) = &error {
                        aside.channel(*channel, SET_ASIDE);
                    } else {
                        limit = (size / 2).max(1);
                        if let (1, Some(entry)) = (size, pending.batch.entries.first()) {
                            aside.refused(entry.quote.request_id);
                            limit = MAX_BATCH;
                        }
                    }
                    if let Err(error) = discard(inner).await {
                        tracing::error!(%error, "a batch cannot be taken back");
                    }
                    backoff.pause().await;
                }
            },
            Ok(None) => {
                flushing = false;
                tokio::select! {
                    () = inner.flush.notified() => flushing = true,
                    () = inner.changed.notified() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot put a batch together; trying again");
                backoff.pause().await;
            }
        }
    }
}

/// The batch to settle now: the one that was begun, or a new one when something is due.
async fn next(inner: &Inner, limit: usize, aside: &mut Aside, flushing: bool) -> Result<Option<Pending>, Failure> {
    if let Some(pending) = inner.store.read(records::pending).await? {
        return Ok(Some(pending));
    }
    forget(inner).await?;
    aside.expire(&inner.state());
    if !is_due(inner, aside, flushing) {
        return Ok(None);
    }
    let requests: Vec<RequestId> = {
        let state = inner.state();
        let waiting = state.earned().map(|((_, request), _)| *request).filter(|request| !aside.has(&state, request));
        aside.choose(waiting, limit)
    };
    let wanted = requests.clone();
    let entries = inner.store.read(move |store| records::entries(store, &wanted)).await?;
    let found: BTreeSet<_> = entries.iter().map(|entry| entry.quote.request_id).collect();
    for request in requests.iter().filter(|request| !found.contains(*request)) {
        aside.request(*request, NOT_YET);
    }
    let mut entries = choose(entries);
    let mut channels = BTreeMap::new();
    for channel in entries.iter().map(|entry| entry.payment.voucher.channel).collect::<BTreeSet<_>>() {
        match chargeable(inner, channel).await {
            Ok(Ok(known)) => {
                channels.insert(channel, known);
            }
            Ok(Err(how_long)) => aside.channel(channel, how_long),
            Err(error) => {
                // It comes last in the next round, in case the trouble is this channel's alone.
                aside.channel(channel, inner.options.resubmit_after.min(SET_ASIDE));
                return Err(error);
            }
        }
    }
    entries.retain(|entry| fits(entry, &mut channels, aside));
    let starts = numbered(inner, &mut entries, &channels, aside);
    if entries.is_empty() {
        return Ok(None);
    }
    let batch = match Batch::new(entries, &starts, inner.chain.trust_root().await?.treasury) {
        Err(BatchError::Entry { request_id, problem }) => {
            tracing::error!(request = %request_id, %problem, "a request cannot be settled");
            aside.request(request_id, SET_ASIDE);
            return Ok(None);
        }
        batch => batch?,
    };
    let vouchers = vouchers(inner, &batch).await?;
    let pending = Pending { batch, vouchers, certificate: None };
    let (charges, kept) = (pending.batch.settlement.charges.clone(), BatchChange::Keep(Box::new(pending.clone())));
    let own: BTreeSet<_> = pending.batch.entries.iter().map(|entry| entry.quote.request_id).collect();
    // From here on no voucher is taken whose number ends with the batch.
    inner
        .change(move |state| {
            let accounts = state.end_numbers(&charges, &own)?;
            Ok(((), Change { accounts, batch: Some(kept), ..Change::default() }))
        })
        .await?;
    Ok(Some(pending))
}

fn is_due(inner: &Inner, aside: &Aside, flushing: bool) -> bool {
    let state = inner.state();
    let mut waiting = state.earned().filter(|((_, request), _)| !aside.has(&state, request)).peekable();
    let Some(((oldest, _), _)) = waiting.peek() else { return false };
    let options = &inner.options;
    let now = unix_now();
    if flushing || now.saturating_sub(*oldest) >= options.max_age.as_secs() {
        return true;
    }
    let (mut count, mut value) = (0, Amount::ZERO);
    waiting.any(|(_, amount)| {
        count += 1;
        value = Amount::checked_sum([value, *amount]).unwrap_or(Amount::new(u128::MAX));
        count >= options.max_requests || value >= options.max_value
    })
}

/// As many of the requests as one settlement can charge and pay.
fn choose(entries: Vec<BatchEntry>) -> Vec<BatchEntry> {
    let (mut channels, mut payees) = (BTreeSet::new(), BTreeSet::new());
    let fits = |entry: &BatchEntry| {
        channels.insert(entry.payment.voucher.channel);
        payees.extend(entry.certificate.validators());
        payees.extend(entry.delivery.results.iter().map(|result| result.message.compute));
        payees.insert(entry.quote.gateway);
        // One more is the treasury's.
        channels.len() <= MAX_CHARGES && payees.len() < MAX_PAYOUTS
    };
    entries.into_iter().take_while(fits).collect()
}

/// Has the batch approved and charged, however often that takes; gives it back when it is refused for good.
async fn conclude(inner: &Inner, mut pending: Pending) -> Result<(), (Pending, Failure)> {
    let mut backoff = Backoff::new();
    let mut tries = 0;
    loop {
        let error = match attempt(inner, &mut pending).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match error {
            Failure::Outdated => return Err((pending, error)),
            // Its transaction may be on its way: the batch stays as it is, and others go on.
            Failure::Behind => match book_settled(inner, &pending).await {
                Ok(()) => {
                    tracing::warn!(requests = pending.batch.entries.len(), %error, "a batch waits for the chain");
                    return Ok(());
                }
                Err(error) => tracing::error!(%error, "a batch cannot be put down"),
            },
            _ => {}
        }
        if error.is_refusal() {
            tries += 1;
            // An approval that the chain does not take is not tried for ever.
            pending.certificate = None;
        }
        if tries >= TRIES {
            return Err((pending, error));
        }
        tracing::warn!(%error, "a batch is not settled yet; trying again");
        backoff.pause().await;
    }
}

async fn attempt(inner: &Inner, pending: &mut Pending) -> Result<(), Failure> {
    if !is_charged(inner, &pending.batch).await? {
        let certificate = match &pending.certificate {
            Some(certificate) => certificate.clone(),
            None => {
                let certificate = certify(inner, &pending.batch, &pending.vouchers).await?;
                let certified = Pending { certificate: Some(certificate.clone()), ..pending.clone() };
                keep(inner, Some(&certified)).await?;
                *pending = certified;
                certificate
            }
        };
        let batch = certified(pending.batch.settlement.clone(), &pending.vouchers, certificate);
        let transaction = inner.chain.settle_batch(&batch).await?;
        tracing::info!(%transaction, requests = pending.batch.entries.len(), "settled a batch");
    }
    book_settled(inner, pending).await
}

/// Books a batch as settled, and keeps it until no reorganization can take it back.
async fn book_settled(inner: &Inner, pending: &Pending) -> Result<(), Failure> {
    let Pending { batch, vouchers, certificate } = pending;
    let at = chain_time(inner).await;
    let requests: Vec<RequestId> = batch.entries.iter().map(|entry| entry.quote.request_id).collect();
    let charged: Vec<_> = batch.settlement.charges.iter().map(charged_by).collect();
    let (vouchers, proofs) = (vouchers.clone(), records::encode_proofs(&batch.entries)?);
    let (settlement, certificate, bytes) = (batch.settlement.clone(), certificate.clone(), proofs.len() as u64);
    let settled = SettledBatch { settlement, vouchers, certificate, at, bytes, reopened: false };
    let settle = |state: &mut ChannelState| {
        let (accounts, holds) = state.settle(&requests, &charged);
        let (number, dropped) = state.kept.push(settled.clone());
        if !dropped.is_empty() {
            tracing::warn!(batches = dropped.len(), "too much is kept: settled batches are forgotten before they are deep");
        }
        let mut kept = vec![KeptChange::Keep(number, Box::new(settled), Some(proofs))];
        kept.extend(dropped.into_iter().map(KeptChange::Drop));
        Ok(((), Change { accounts, holds, batch: Some(BatchChange::Drop), settled: requests, kept, ..Change::default() }))
    };
    inner.change(settle).await?;
    measures::settled(batch.entries.len());
    Ok(())
}

/// Has the validators approve a batch. What the registry brings is believed only when it verifies.
pub(super) async fn certify(inner: &Inner, batch: &Batch, vouchers: &[Judged]) -> Result<QuorumCertificate, Failure> {
    let trust = inner.chain.trust_root().await?;
    let message = SettlementRequest { gateway: inner.signer.address(), settlement: batch.settlement.struct_hash() };
    let request = Signed::sign(message, &trust.channel_domain(), &*inner.signer).await?;
    let committees: Vec<_> = vouchers.iter().map(|voucher| voucher.judges.clone()).collect();
    let request = Arc::new(BatchRequest { batch: batch.clone(), committees, request });
    let certificate = inner.registry.settlement(request.clone()).await?;
    let digest = batch.settlement.digest(&trust.channel_domain());
    // Only the approvals of members with a stake count on chain: it is asked after the answer, which may have taken minutes.
    let history = inner.chain.trust(0).await?;
    let member = |validator: &Address| request.committees.iter().any(|committee| committee.members.contains(validator));
    let certificate = certificate.only(|validator| member(validator) && history.is_listed(validator));
    let verified = certificate.verify_all(&digest, &request.committees);
    verified.map_err(|error| RegistryError::Malformed(format!("the certificate does not verify: {error}")))?;
    Ok(certificate)
}

/// Whether the chain has been charged for this batch. It is charged for all of it or nothing.
async fn is_charged(inner: &Inner, batch: &Batch) -> Result<bool, Failure> {
    let (mut before, mut after) = (false, false);
    for charge in &batch.settlement.charges {
        let settled = inner.chain.channel(charge.channel).await?.map(|channel| channel.settled).unwrap_or_default();
        if settled < charge.settled_before {
            return Err(Failure::Behind);
        }
        before |= settled == charge.settled_before;
        // Only this gateway settles its channels, one batch after the other, and this one was kept before it was sent.
        after |= settled == charge.settled_after;
        if settled != charge.settled_before && settled != charge.settled_after {
            return Err(Failure::Outdated);
        }
    }
    if before && after {
        let problem = "its answers about the channels of a batch are of different blocks";
        return Err(LedgerError::Unreachable(problem.into()).into());
    }
    Ok(!before)
}

/// For each charge a voucher that allows as much: the batch's own where one does, so that its judges are those of a request in it; else the
/// channel's highest.
async fn vouchers(inner: &Inner, batch: &Batch) -> Result<Vec<Judged>, Failure> {
    let mut vouchers = Vec::with_capacity(batch.settlement.charges.len());
    for charge in &batch.settlement.charges {
        let own = batch.entries.iter().filter(|entry| entry.payment.voucher.channel == charge.channel);
        let own = own.max_by_key(|entry| entry.payment.voucher.cumulative);
        if let Some(BatchEntry { quote, payment, .. }) = own
            && payment.voucher.cumulative >= charge.settled_after
            && let Ok((_, judges)) = inner.chain.trust(quote.epoch).await?.of(quote)
        {
            vouchers.push(Judged { payment: *payment, judges });
            continue;
        }
        let highest = inner.state().account(charge.channel).map(|account| account.highest.clone());
        vouchers.push(highest.ok_or(BatchError::UnknownChannel(charge.channel))?);
    }
    Ok(vouchers)
}

/// What the chain sees of a batch.
pub(super) fn certified(settlement: ChannelSettlement, vouchers: &[Judged], certificate: QuorumCertificate) -> CertifiedBatch {
    let (vouchers, committees) = vouchers.iter().map(|voucher| (voucher.payment, voucher.judges.clone())).unzip();
    CertifiedBatch { settlement, vouchers, committees, certificate }
}

/// What a channel has been charged with this.
pub(super) fn charged_by(charge: &ChannelCharge) -> (B256, ChargeStart) {
    (charge.channel, ChargeStart { settled: charge.settled_after, numbers: charge.numbers })
}

async fn keep(inner: &Inner, pending: Option<&Pending>) -> Result<(), Failure> {
    let batch = Some(pending.map_or(BatchChange::Drop, |pending| BatchChange::Keep(Box::new(pending.clone()))));
    Ok(inner.change(move |_| Ok(((), Change { batch, ..Change::default() }))).await?)
}

async fn discard(inner: &Inner) -> Result<(), Failure> {
    keep(inner, None).await
}

async fn forget(inner: &Inner) -> Result<(), Failure> {
    let before = unix_now().saturating_sub(MEMORY);
    if inner.state().forgettable(before).next().is_none() {
        return Ok(());
    }
    Ok(inner.change(move |state| Ok(((), Change { forgotten: state.forget(before), ..Change::default() }))).await?)
}
