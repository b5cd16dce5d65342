//! Which channels can be charged now. A channel that cannot be is left alone for a while, and no other one waits for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use ncn_core::{
    Amount, B256, Channel, RequestId,
    channel::{BatchEntry, ChargeStart},
};

use super::{
    ChannelState, Inner,
    kept::DEEP_AFTER,
    records::Change,
    settler::{Failure, NOT_YET, SET_ASIDE},
    state::Stage,
};
use ncn_client::unix_now;

/// The longest that a request is left alone that was refused on its own again and again.
const LONGEST_ASIDE: Duration = Duration::from_hours(1);

/// Requests that were refused on their own, and channels that cannot be charged at present; until when they are left alone. They hold
/// nobody up, and are tried again.
#[derive(Default)]
pub(super) struct Aside {
    requests: HashMap<RequestId, Instant>,
    channels: HashMap<B256, Instant>,
    /// How often a request was refused on its own.
    refused: HashMap<RequestId, u32>,
}

impl Aside {
    pub(super) fn request(&mut self, request: RequestId, how_long: Duration) {
        self.requests.insert(request, Instant::now() + how_long);
    }

    /// A request was refused on its own: it waits, longer each time.
    pub(super) fn refused(&mut self, request: RequestId) {
        let count = self.refused.entry(request).or_default();
        *count = count.saturating_add(1);
        let pause = SET_ASIDE.saturating_mul(1 << (*count - 1).min(16)).min(LONGEST_ASIDE);
        self.request(request, pause);
    }

    /// What goes into the next batch, of those that wait: none that was refused on its own before, as long as there are others, and then one
    /// of them alone.
    pub(super) fn choose(&self, waiting: impl Iterator<Item = RequestId>, limit: usize) -> Vec<RequestId> {
        let (again, new): (Vec<_>, Vec<_>) = waiting.partition(|request| self.refused.contains_key(request));
        if new.is_empty() {
            let least = again.into_iter().min_by_key(|request| self.refused.get(request).copied());
            return least.into_iter().collect();
        }
        new.into_iter().take(limit).collect()
    }

    pub(super) fn channel(&mut self, channel: B256, how_long: Duration) {
        self.channels.insert(channel, Instant::now() + how_long);
    }

    pub(super) fn expire(&mut self, state: &ChannelState) {
        let now = Instant::now();
        self.refused.retain(|request, _| state.hold(*request).is_some_and(|hold| matches!(hold.stage, Stage::Earned(_))));
        self.requests.retain(|_, until| now < *until);
        self.channels.retain(|_, until| now < *until);
    }

    pub(super) fn has(&self, state: &ChannelState, request: &RequestId) -> bool {
        self.requests.contains_key(request)
            || state.channel_of(*request).is_some_and(|channel| self.channels.contains_key(&channel))
    }
}

/// A channel that can be charged, and what requests so far bring the charge to.
pub(super) struct Chargeable {
    pub(super) chain: Channel,
    sum: Amount,
}

/// What the chain has of a channel when it can be charged now; else how long its requests are left alone.
pub(super) async fn chargeable(inner: &Inner, channel: B256) -> Result<Result<Chargeable, Duration>, Failure> {
    let account = inner.state().account(channel).cloned();
    let known = account.as_ref().map(|account| account.settled).unwrap_or_default();
    let soon = inner.options.resubmit_after.min(SET_ASIDE);
    let (chain, expiry) = match inner.chain.channel(channel).await {
        Ok(Some(chain)) => (Some(chain), chain.expiry),
        Ok(None) => (None, account.map_or(u64::MAX, |account| account.chain.expiry)),
        Err(error) if error.is_retryable() => return Err(error.into()),
        Err(error) => {
            tracing::error!(%channel, %error, "what the chain has of a channel cannot be read");
            return Ok(Err(SET_ASIDE));
        }
    };
    let now = unix_now();
    // What a reorganization can still change is waited for.
    if now > expiry.saturating_add(DEEP_AFTER) {
        write_off(inner, channel).await?;
        return Ok(Err(SET_ASIDE));
    }
    let Some(chain) = chain else {
        tracing::error!(%channel, "the chain does not know a channel any more that owes something");
        return Ok(Err(soon));
    };
    inner.state().refresh(channel, chain);
    if !chain.open || now > chain.expiry {
        tracing::error!(%channel, "a channel ended before what it owes was settled");
        return Ok(Err(SET_ASIDE));
    }
    if chain.settled < known {
        tracing::warn!(%channel, %known, chain = %chain.settled, "the chain has been charged less than the channel state says: waiting for it");
        return Ok(Err(soon));
    }
    if chain.settled > known {
        if inner.state().kept.is_reopened(channel, known) {
            tracing::warn!(%channel, %known, chain = %chain.settled, "a batch that counted as lost may have been charged: waiting");
            return Ok(Err(soon));
        }
        // A file that is older than the chain: what was charged since then was earned by requests that it does not know.
        tracing::warn!(%channel, %known, chain = %chain.settled, "the chain has been charged more than the channel state says");
        let charged = [(channel, ChargeStart { settled: chain.settled, numbers: chain.numbers })];
        inner.change(|state| Ok(((), Change { accounts: state.settle(&[], &charged).0, ..Change::default() }))).await?;
    }
    book_over(inner, channel, &chain).await?;
    Ok(Ok(Chargeable { chain, sum: chain.settled }))
}

/// Whether a request's channel can be charged, and it is not over, and the channel's deposit bears this one too: a top-up may have been taken back.
pub(super) fn fits(entry: &BatchEntry, channels: &mut BTreeMap<B256, Chargeable>, aside: &mut Aside) -> bool {
    let voucher = &entry.payment.voucher;
    let Some(known) = channels.get_mut(&voucher.channel) else { return false };
    if known.chain.numbers.contains(voucher.number) {
        return false;
    }
    let cost = entry.completion().map(|completion| completion.cost());
    match cost.ok().and_then(|cost| known.sum.checked_add(cost)).filter(|sum| *sum <= known.chain.deposit) {
        Some(sum) => {
            known.sum = sum;
            true
        }
        None => {
            let (channel, request) = (voucher.channel, voucher.request_id);
            tracing::error!(%channel, %request, deposit = %known.chain.deposit, "a channel's deposit does not bear what it owes");
            aside.request(request, SET_ASIDE);
            false
        }
    }
}

/// What a batch of these requests starts from. Takes out those that have to wait: a number that is too far above the lowest one in flight
/// cannot be told from it.
pub(super) fn numbered(
    inner: &Inner,
    entries: &mut Vec<BatchEntry>,
    channels: &BTreeMap<B256, Chargeable>,
    aside: &mut Aside,
) -> BTreeMap<B256, ChargeStart> {
    let mut numbers: BTreeMap<B256, BTreeSet<u64>> = BTreeMap::new();
    for voucher in entries.iter().map(|entry| &entry.payment.voucher) {
        numbers.entry(voucher.channel).or_default().insert(voucher.number);
    }
    let state = inner.state();
    let start = |(channel, numbers): (B256, BTreeSet<u64>)| {
        let chain = channels.get(&channel)?.chain;
        let open = state.open_numbers(channel).filter(|number| !numbers.contains(number));
        Some((channel, ChargeStart { settled: chain.settled, numbers: chain.numbers.with(numbers.iter().copied(), open) }))
    };
    let starts: BTreeMap<B256, ChargeStart> = numbers.into_iter().filter_map(start).collect();
    drop(state);
    entries.retain(|entry| {
        let voucher = &entry.payment.voucher;
        let told = starts.get(&voucher.channel).is_some_and(|start| start.numbers.contains(voucher.number));
        if !told {
            aside.request(voucher.request_id, NOT_YET);
        }
        told
    });
    starts
}

/// Books requests as settled that the chain says are over: they were charged by a batch that this gateway's file does not know.
async fn book_over(inner: &Inner, channel: B256, chain: &Channel) -> Result<(), Failure> {
    let over: Vec<RequestId> = {
        let state = inner.state();
        let is_over = |request: &RequestId| {
            let voucher = state.hold(*request).map(|hold| hold.payment.voucher);
            voucher.is_some_and(|voucher| voucher.channel == channel && chain.numbers.contains(voucher.number))
        };
        state.earned().map(|((_, request), _)| *request).filter(is_over).collect()
    };
    if over.is_empty() {
        return Ok(());
    }
    tracing::warn!(%channel, requests = over.len(), "earned requests are over on the chain: they count as settled");
    let change = |state: &mut ChannelState| {
        let (accounts, holds) = state.settle(&over, &[]);
        Ok(((), Change { accounts, holds, settled: over, ..Change::default() }))
    };
    Ok(inner.change(change).await?)
}

/// Gives up what a channel owes that has ended for good.
async fn write_off(inner: &Inner, channel: B256) -> Result<(), Failure> {
    let owed = |state: &ChannelState| -> Vec<(RequestId, Amount)> {
        let earned = state.earned().map(|((_, request), amount)| (*request, *amount));
        earned.filter(|(request, _)| state.channel_of(*request) == Some(channel)).collect()
    };
    let owed = owed(&inner.state());
    let (requests, amounts): (Vec<_>, Vec<_>) = owed.into_iter().unzip();
    let lost = Amount::checked_sum(amounts).unwrap_or(Amount::new(u128::MAX));
    tracing::error!(%channel, requests = requests.len(), %lost, "a channel ended for good before what it owes was settled: lost");
    let change = |state: &mut ChannelState| {
        let holds = state.write_off(&requests);
        Ok(((), Change { holds, settled: requests, ..Change::default() }))
    };
    Ok(inner.change(change).await?)
}
