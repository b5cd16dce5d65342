//! Settles what is earned: in batches, by count, age and value. Every step is kept before the next, so that a crash at any point
//! leads to the same settlement, once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use ncn_client::Backoff;
use ncn_core::{
    Amount, B256, BatchRequest, Certificate, ChannelPayment, LedgerError, Message as _, RegistryError, RequestId,
    SettlementRequest, SignatureError, Signed,
    channel::{Batch, BatchEntry, CertifiedBatch, MAX_BATCH, MAX_CHARGES, MAX_PAYOUTS},
};

use super::{
    Inner,
    records::{self, BatchChange, Change, Pending},
};
use crate::{store::StoreError, time::unix_now};

/// How often is looked whether something has become due.
const TICK: Duration = Duration::from_millis(500);
/// How often a batch is presented that the validators or the chain refuse, before its requests are put together anew, fewer at a time.
const TRIES: u32 = 6;
/// How long a request is left alone that was refused on its own.
const SET_ASIDE: Duration = Duration::from_mins(1);
/// How long ended requests are remembered after their quotes' expiry, in seconds.
const MEMORY: u64 = 3_600;

/// Why a batch was not settled.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("validators: {0}")]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Batch(#[from] ncn_core::channel::BatchError),
    #[error("key: {0}")]
    Signature(#[from] SignatureError),
    /// The chain has been charged otherwise than the batch starts from.
    #[error("the channel was charged in another way: putting the batch together anew")]
    Outdated,
}

impl Failure {
    /// True when it may be the batch's own fault: that ends after some tries. Everything else is waited for, however long it takes.
    const fn is_refusal(&self) -> bool {
        match self {
            Self::Registry(error) => !matches!(error, RegistryError::Unreachable(_) | RegistryError::Overloaded(_)),
            Self::Batch(_) | Self::Outdated => true,
            Self::Ledger(error) => {
                let circumstances = matches!(error, LedgerError::NotAllowed(_) | LedgerError::Malformed(_));
                !circumstances && !error.is_retryable()
            }
            Self::Store(_) | Self::Signature(_) => false,
        }
    }
}

/// Requests that were refused on their own, and when. They hold nobody up, and are tried again.
type Aside = HashMap<RequestId, Instant>;

pub(super) async fn settle_for_ever(inner: &Inner) {
    let mut backoff = Backoff::new();
    // How many requests go into a batch: fewer after one was refused, so that a bad one ends up alone.
    let mut limit = MAX_BATCH;
    let mut aside = Aside::new();
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
                    if let (1, Some(entry)) = (size, pending.batch.entries.first()) {
                        aside.insert(entry.quote.request_id, Instant::now());
                    }
                    limit = (size / 2).max(1);
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
    if let Some(pending) = records::pending(&inner.store)? {
        return Ok(Some(pending));
    }
    forget(inner).await?;
    aside.retain(|_, since| since.elapsed() < SET_ASIDE);
    if !is_due(inner, aside, flushing) {
        return Ok(None);
    }
    let requests: Vec<RequestId> = {
        let book = inner.book();
        book.earned().map(|((_, request), _)| *request).filter(|request| !aside.contains_key(request)).take(limit).collect()
    };
    let store = inner.store.clone();
    let read = tokio::task::spawn_blocking(move || records::entries(&store, &requests));
    let mut entries = choose(read.await.map_err(StoreError::new)??);
    let mut settled = BTreeMap::new();
    for channel in entries.iter().map(|entry| entry.payment.voucher.channel).collect::<BTreeSet<_>>() {
        let Some(chain) = inner.chain.channel(channel).await? else { continue };
        let known = inner.book().account(channel).map(|account| account.settled).unwrap_or_default();
        inner.book().refresh(channel, chain);
        if !chain.open || unix_now() > chain.expiry {
            tracing::error!(%channel, "a channel ended before what it owes was settled");
            continue;
        }
        if chain.settled < known {
            return Err(LedgerError::Unreachable(format!("channel {channel}: the chain's answer is older than the book")).into());
        }
        if chain.settled > known {
            // A file that is older than the chain: what was charged since then was earned by requests that it does not know.
            tracing::warn!(%channel, %known, chain = %chain.settled, "the chain has been charged more than the book says");
            let sums = [(channel, chain.settled)];
            inner.change(|book| Ok(((), Change { accounts: book.settle(&[], &sums).0, ..Change::default() }))).await?;
        }
        settled.insert(channel, chain.settled);
    }
    // What can never be settled holds nobody up.
    for entry in entries.iter().filter(|entry| !settled.contains_key(&entry.payment.voucher.channel)) {
        aside.insert(entry.quote.request_id, Instant::now());
    }
    entries.retain(|entry| settled.contains_key(&entry.payment.voucher.channel));
    if entries.is_empty() {
        return Ok(None);
    }
    let batch = Batch::new(entries, &settled, inner.chain.trust_root().await?.treasury)?;
    let pending = Pending { batch, certificate: None };
    keep(inner, Some(&pending)).await?;
    Ok(Some(pending))
}

fn is_due(inner: &Inner, aside: &Aside, flushing: bool) -> bool {
    let book = inner.book();
    let mut waiting = book.earned().filter(|((_, request), _)| !aside.contains_key(request)).peekable();
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
        payees.extend(entry.completion.validators());
        payees.extend([entry.result.message.compute, entry.quote.gateway]);
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
        if matches!(error, Failure::Outdated) {
            return Err((pending, error));
        }
        if error.is_refusal() {
            tries += 1;
            // The validators may have changed since they approved.
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
                let certificate = certify(inner, &pending.batch).await?;
                pending.certificate = Some(certificate.clone());
                keep(inner, Some(pending)).await?;
                certificate
            }
        };
        let settlement = pending.batch.settlement.clone();
        let vouchers = vouchers(inner, &pending.batch);
        let transaction = inner.chain.settle_batch(&CertifiedBatch { settlement, vouchers, certificate }).await?;
        tracing::info!(%transaction, requests = pending.batch.entries.len(), "settled a batch");
    }
    let requests: Vec<RequestId> = pending.batch.entries.iter().map(|entry| entry.quote.request_id).collect();
    let sums: Vec<_> = pending.batch.settlement.charges.iter().map(|charge| (charge.channel, charge.settled_after)).collect();
    let settle = |book: &mut super::Book| {
        let (accounts, holds) = book.settle(&requests, &sums);
        Ok(((), Change { accounts, holds, batch: Some(BatchChange::Drop), settled: requests.clone(), ..Change::default() }))
    };
    Ok(inner.change(settle).await?)
}

/// Has the validators approve a batch. What the registry brings is believed only when it verifies.
async fn certify(inner: &Inner, batch: &Batch) -> Result<Certificate, Failure> {
    let trust = inner.chain.trust_root().await?;
    let message = SettlementRequest { gateway: inner.signer.address(), settlement: batch.settlement.struct_hash() };
    let request = Signed::sign(message, &trust.channel_domain(), &*inner.signer).await?;
    let request = Arc::new(BatchRequest { batch: batch.clone(), request });
    let certificate = inner.registry.settlement(request.clone()).await?;
    let digest = batch.settlement.digest(&trust.channel_domain());
    let verified = certificate.verify(&digest, &request.committee_id(), &trust);
    verified.map_err(|error| RegistryError::Malformed(format!("the certificate does not verify: {error}")))?;
    Ok(certificate)
}

/// Whether the chain has been charged for this batch. It is charged for all of it or nothing.
async fn is_charged(inner: &Inner, batch: &Batch) -> Result<bool, Failure> {
    let Some(charge) = batch.settlement.charges.first() else { return Ok(true) };
    let settled = inner.chain.channel(charge.channel).await?.map(|channel| channel.settled).unwrap_or_default();
    if settled == charge.settled_before {
        Ok(false)
    } else if settled == charge.settled_after {
        // Only this gateway settles its channels, one batch after the other, and this one was kept before it was sent.
        Ok(true)
    } else {
        Err(Failure::Outdated)
    }
}

/// For each charge the channel's highest voucher.
fn vouchers(inner: &Inner, batch: &Batch) -> Vec<ChannelPayment> {
    let book = inner.book();
    let of_batch = batch.vouchers();
    let highest = |channel: &B256| book.account(*channel).map(|account| account.highest).or_else(|| of_batch.get(channel).copied());
    batch.settlement.charges.iter().filter_map(|charge| highest(&charge.channel)).collect()
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
    let forgotten = inner.book().forget(before);
    if !forgotten.is_empty() {
        inner.change(move |_| Ok(((), Change { forgotten, ..Change::default() }))).await?;
    }
    Ok(())
}
