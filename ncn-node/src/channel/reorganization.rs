//! Presents settled batches again that a reorganization has taken back. It runs beside the settling, so that a channel that waits for
//! this is in nobody else's way.
//!
//! A batch is presented as it was: whichever of its transactions the chain takes, it is charged once. Only when that has become
//! impossible, the requests are earned anew and settled in another batch.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use ncn_core::{
    Amount, B256, Channel, ChannelCharge,
    channel::{Batch, BatchEntry, ChargeStart},
};

use super::{
    ChannelState, Inner,
    kept::SettledBatch,
    records::{self, Change, KeptChange},
    settler::{Failure, certified, certify, charged_by},
    state::{Hold, Stage},
};
use ncn_client::unix_now;

/// How often is looked whether the chain still has the settled batches, at the least.
const REVISIT: Duration = Duration::from_secs(15);
const SHORTEST_REVISIT: Duration = Duration::from_millis(50);
/// How often a batch is presented again that the validators or the chain refuse, before its requests are earned anew.
const TRIES: u32 = 6;
/// How many times as long as for a first try is waited for what only the chain can bring back: a channel, or a deposit.
const HOPELESS: u32 = 10;

/// A batch that the chain is without.
struct Missing {
    since: Instant,
    refusals: u32,
}

/// By number and root.
type AllMissing = HashMap<(u64, B256), Missing>;

/// Where a batch stands that the chain is without.
enum Standing {
    /// It can be presented.
    Ready,
    /// Something has to come back first.
    Waits(String),
    /// It can never be charged again as it is.
    Impossible(String),
}

pub(super) async fn revisit_for_ever(inner: &Inner) {
    let mut missing = AllMissing::new();
    let pause = (inner.options.resubmit_after / 2).clamp(SHORTEST_REVISIT, REVISIT);
    loop {
        revisit(inner, &mut missing).await;
        tokio::time::sleep(pause).await;
    }
}

/// Looks at every batch that is kept, the oldest first. What goes wrong with one of them stops none of the others.
async fn revisit(inner: &Inner, missing: &mut AllMissing) {
    let kept = inner.state().kept.list();
    missing.retain(|(number, root), _| kept.iter().any(|(known, batch)| known == number && batch.settlement.root == *root));
    for (number, batch) in kept {
        let revisited = if batch.reopened {
            watch_reopened(inner, number, &batch).await
        } else {
            revisit_one(inner, number, &batch, missing).await
        };
        if let Err(error) = revisited {
            tracing::warn!(root = %batch.settlement.root, %error, "cannot see to a settled batch; trying again");
        }
    }
}

async fn revisit_one(inner: &Inner, number: u64, batch: &SettledBatch, missing: &mut AllMissing) -> Result<(), Failure> {
    let (key, root) = ((number, batch.settlement.root), batch.settlement.root);
    if is_on_chain(inner, batch).await? {
        if missing.remove(&key).is_some() {
            tracing::info!(%root, "the chain has a settled batch again");
        }
        if batch.is_deep(inner.chain.now().await?) {
            forget(inner, number).await?;
        }
        return Ok(());
    }
    let lost = missing.entry(key).or_insert_with(|| {
        tracing::warn!(%root, "the chain is without a settled batch: it is presented again unless it returns");
        Missing { since: Instant::now(), refusals: 0 }
    });
    let since = lost.since.elapsed();
    if since < inner.options.resubmit_after {
        return Ok(());
    }
    let problem = match standing(inner, batch).await? {
        Standing::Ready => match present(inner, number, batch, lost.refusals > 0).await {
            Ok(()) => {
                missing.remove(&key);
                return Ok(());
            }
            Err(error) if error.is_refusal() && lost.refusals.saturating_add(1) >= TRIES => error.to_string(),
            Err(error) => {
                lost.refusals += u32::from(error.is_refusal());
                return Err(error);
            }
        },
        Standing::Waits(_) if since < inner.options.resubmit_after.saturating_mul(HOPELESS) => return Ok(()),
        Standing::Waits(problem) | Standing::Impossible(problem) => problem,
    };
    // What was charged on top of it is lost with it. The newest first: after a crash those before them are still missing.
    let mut gone: BTreeSet<B256> = batch.channels().collect();
    let mut with_it = Vec::new();
    let kept = inner.state().kept.list();
    for (later, other) in kept {
        if later > number && !other.reopened && other.channels().any(|channel| gone.contains(&channel)) {
            gone.extend(other.channels());
            with_it.push((later, other));
        }
    }
    for (later, other) in with_it.into_iter().rev() {
        reopen(inner, later, &other, "an earlier batch of its channels is lost").await?;
    }
    reopen(inner, number, batch, &problem).await
}

async fn charged(inner: &Inner, channel: B256) -> Result<Amount, Failure> {
    Ok(inner.chain.channel(channel).await?.map(|channel| channel.settled).unwrap_or_default())
}

async fn is_on_chain(inner: &Inner, batch: &SettledBatch) -> Result<bool, Failure> {
    let Some(charge) = batch.first() else { return Ok(true) };
    Ok(charged(inner, charge.channel).await? >= charge.settled_after)
}

/// Whether every charge of a batch starts from what its channel has been charged.
async fn standing(inner: &Inner, batch: &SettledBatch) -> Result<Standing, Failure> {
    let mut waits = None;
    for ChannelCharge { channel, settled_before, settled_after, .. } in batch.settlement.charges.iter().copied() {
        let Some(known) = inner.chain.channel(channel).await? else {
            waits = Some(format!("channel {channel} is not on the chain any more"));
            continue;
        };
        if !known.open || unix_now() > known.expiry {
            return Ok(Standing::Impossible(format!("channel {channel} has ended")));
        }
        let is = known.settled;
        if is != settled_before {
            waits = Some(format!("channel {channel} was charged {is}, not {settled_before}"));
        } else if known.deposit < settled_after {
            waits = Some(format!("channel {channel} has a deposit of {}, not {settled_after}", known.deposit));
        }
    }
    Ok(waits.map_or(Standing::Ready, Standing::Waits))
}

/// Has the chain charged for a batch once more; `anew` has the validators approve it again.
async fn present(inner: &Inner, number: u64, batch: &SettledBatch, anew: bool) -> Result<(), Failure> {
    let SettledBatch { settlement, vouchers, certificate, .. } = batch;
    let certificate = match certificate {
        Some(certificate) if !anew => certificate.clone(),
        _ => {
            let batch = Batch { entries: proofs(inner, number).await?, settlement: settlement.clone() };
            certify(inner, &batch, vouchers).await?
        }
    };
    let transaction = inner.chain.settle_batch(&certified(settlement.clone(), vouchers, certificate.clone())).await?;
    tracing::info!(%transaction, requests = settlement.count, "settled a batch again that the chain had taken back");
    let at = chain_time(inner).await;
    let batch = SettledBatch { certificate: Some(certificate), at, ..batch.clone() };
    let update = move |state: &mut ChannelState| {
        state.kept.replace(number, batch.clone());
        Ok(((), Change { kept: vec![KeptChange::Keep(number, Box::new(batch), None)], ..Change::default() }))
    };
    Ok(inner.change(update).await?)
}

async fn proofs(inner: &Inner, number: u64) -> Result<Vec<BatchEntry>, Failure> {
    Ok(inner.store.read(move |store| records::proofs(store, number)).await?)
}

/// What belongs to a batch is earned anew, from what the chain has charged now. The batch stays known until it would have been deep:
/// another reorganization may bring its transaction back.
async fn reopen(inner: &Inner, number: u64, batch: &SettledBatch, problem: &str) -> Result<(), Failure> {
    let (root, requests) = (batch.settlement.root, batch.settlement.count);
    tracing::error!(%root, %problem, requests, "a settled batch is lost; its requests are earned anew");
    let mut charged = Vec::new();
    for channel in batch.channels() {
        let start = |channel: Channel| ChargeStart { settled: channel.settled, numbers: channel.numbers };
        charged.push((channel, inner.chain.channel(channel).await?.map(start).unwrap_or_default()));
    }
    let entries = proofs(inner, number).await?;
    // They were settled, so they were consistent.
    let hold = |entry: &BatchEntry| {
        let amount = entry.completion().ok()?.cost();
        Some(Hold { payment: entry.payment, amount, expiry: entry.quote.expiry, stage: Stage::Settled })
    };
    let requests: Vec<Hold> = entries.iter().filter_map(hold).collect();
    let batch = SettledBatch { reopened: true, ..batch.clone() };
    let update = move |state: &mut ChannelState| {
        let (accounts, holds) = state.reopen(&requests, &charged, unix_now());
        state.kept.replace(number, batch.clone());
        let kept = vec![KeptChange::Keep(number, Box::new(batch), None)];
        Ok(((), Change { accounts, holds, entries, kept, ..Change::default() }))
    };
    inner.change(update).await?;
    inner.changed.notify_one();
    Ok(())
}

/// A reopened batch may be charged after all. Then its requests are settled, and must not be charged in another batch.
async fn watch_reopened(inner: &Inner, number: u64, batch: &SettledBatch) -> Result<(), Failure> {
    let Some(charge) = batch.first() else { return forget(inner, number).await };
    if is_on_chain(inner, batch).await? {
        let root = inner.chain.charged_root(charge.channel, charge.settled_before).await?;
        if root == Some(batch.settlement.root) {
            tracing::warn!(root = %batch.settlement.root, "the chain has a settled batch again that counted as lost");
            return settle_after_all(inner, number, batch).await;
        }
    }
    if batch.is_deep(inner.chain.now().await?) {
        forget(inner, number).await?;
    }
    Ok(())
}

async fn settle_after_all(inner: &Inner, number: u64, batch: &SettledBatch) -> Result<(), Failure> {
    let requests: Vec<_> = proofs(inner, number).await?.iter().map(|entry| entry.quote.request_id).collect();
    let batch = SettledBatch { reopened: false, at: chain_time(inner).await, ..batch.clone() };
    let update = move |state: &mut ChannelState| {
        let known = |channel| state.account(channel).map(|account| account.settled).unwrap_or_default();
        let more = |charge: &&ChannelCharge| charge.settled_after > known(charge.channel);
        let charged: Vec<_> = batch.settlement.charges.iter().filter(more).map(charged_by).collect();
        let (accounts, holds) = state.settle(&requests, &charged);
        state.kept.replace(number, batch.clone());
        let kept = vec![KeptChange::Keep(number, Box::new(batch), None)];
        Ok(((), Change { accounts, holds, settled: requests, kept, ..Change::default() }))
    };
    Ok(inner.change(update).await?)
}

async fn forget(inner: &Inner, number: u64) -> Result<(), Failure> {
    let drop = move |state: &mut ChannelState| {
        state.kept.remove(number);
        Ok(((), Change { kept: vec![KeptChange::Drop(number)], ..Change::default() }))
    };
    Ok(inner.change(drop).await?)
}

/// The chain's time; this machine's when the chain does not tell.
pub(super) async fn chain_time(inner: &Inner) -> u64 {
    inner.chain.now().await.unwrap_or_else(|_| unix_now())
}
