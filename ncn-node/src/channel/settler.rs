//! Settles what is earned: in batches, by count, age and value. Every step is kept before the next, so that a crash at any point
//! leads to the same settlement, once.

use std::{collections::BTreeMap, time::Duration};

use ncn_client::Backoff;
use ncn_core::{
    Amount, B256, ChannelPayment, LedgerError, RegistryError, RequestId,
    channel::{Batch, BatchEntry, CertifiedBatch, MAX_BATCH, MAX_CHARGES, MAX_PAYOUTS},
};

use super::{
    Inner,
    records::{self, Change, Pending},
};
use crate::{store::StoreError, time::unix_now};

/// How often is looked whether something has become due.
const TICK: Duration = Duration::from_millis(500);
/// How often a batch is presented that is refused for good, before its requests are put together anew.
const TRIES: u32 = 5;
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
    /// The chain has been charged otherwise than the batch starts from.
    #[error("the channel was charged in another way: putting the batch together anew")]
    Outdated,
}

impl Failure {
    const fn is_retryable(&self) -> bool {
        match self {
            Self::Store(_) => true,
            Self::Registry(error) => error.is_retryable(),
            Self::Ledger(error) => error.is_retryable(),
            Self::Batch(_) | Self::Outdated => false,
        }
    }
}

pub(super) async fn settle_for_ever(inner: &Inner) {
    let mut backoff = Backoff::new();
    // How many requests go into a batch: fewer after one was refused, so that a bad one ends up alone.
    let mut limit = MAX_BATCH;
    // Requests that were refused alone. They are kept for people to look at, and hold nobody up.
    let mut refused: Vec<RequestId> = Vec::new();
    let mut flushing = false;
    loop {
        match next(inner, limit, &refused, flushing).await {
            Ok(Some(pending)) => match conclude(inner, pending).await {
                Ok(()) => {
                    (limit, backoff) = ((limit * 2).min(MAX_BATCH), Backoff::new());
                    inner.settled.notify_waiters();
                    continue;
                }
                Err((pending, error)) => {
                    let size = pending.batch.entries.len();
                    tracing::error!(%error, requests = size, "a batch is not settled; its requests are put together anew");
                    if let (1, Some(entry)) = (size, pending.batch.entries.first()) {
                        refused.push(entry.quote.request_id);
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
async fn next(inner: &Inner, limit: usize, refused: &[RequestId], flushing: bool) -> Result<Option<Pending>, Failure> {
    if let Some(pending) = records::pending(&inner.store)? {
        return Ok(Some(pending));
    }
    forget(inner).await?;
    if !is_due(inner, refused, flushing) {
        return Ok(None);
    }
    let requests: Vec<RequestId> = {
        let book = inner.book();
        book.earned().map(|((_, request), _)| *request).filter(|request| !refused.contains(request)).take(limit).collect()
    };
    let entries = choose(records::entries(&inner.store, &requests)?);
    let mut settled = BTreeMap::new();
    for entry in &entries {
        let channel = entry.payment.voucher.channel;
        if settled.contains_key(&channel) {
            continue;
        }
        let known = inner.book().account(channel).map(|account| account.settled);
        let chain = inner.chain.channel(channel).await?.map(|chain| chain.settled);
        if known != chain {
            // A file that is older than the chain: what was charged since then was earned by requests that it does not know.
            tracing::warn!(%channel, ?known, ?chain, "the chain has been charged otherwise than the book says; following the chain");
            let sums = [(channel, chain.unwrap_or_default())];
            inner.change(|book| Ok(((), Change { accounts: book.settle(&[], &sums).0, ..Change::default() }))).await?;
        }
        settled.insert(channel, chain.unwrap_or_default());
    }
    let batch = Batch::new(entries, &settled, inner.chain.trust_root().await?.treasury)?;
    let pending = Pending { batch, certificate: None };
    keep(inner, Some(&pending)).await?;
    Ok(Some(pending))
}

fn is_due(inner: &Inner, refused: &[RequestId], flushing: bool) -> bool {
    let book = inner.book();
    let mut waiting = book.earned().filter(|((_, request), _)| !refused.contains(request)).peekable();
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
    let (mut channels, mut payees) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
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
        if !error.is_retryable() {
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
                let certificate = inner.registry.settlement(std::sync::Arc::new(pending.batch.clone())).await?;
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
        Ok(((), Change { accounts, holds, batch: Some(None), settled: requests.clone(), ..Change::default() }))
    };
    Ok(inner.change(settle).await?)
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
    let batch = Some(pending.cloned().map(Box::new));
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
