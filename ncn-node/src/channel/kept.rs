//! Settled batches that a reorganization can still take back. Pure; the driver persists what it returns.

use std::{collections::BTreeMap, sync::Arc};

use ncn_core::{Amount, B256, ChannelCharge, ChannelSettlement, QuorumCertificate, UnixTime};
use serde::{Deserialize, Serialize};

use super::state::Judged;

/// How long after its settlement, in seconds of the chain's time, a batch counts as deep: longer than any chain that is in use takes to
/// make a block final.
pub(super) const DEEP_AFTER: u64 = 3_600;
/// How many batches are kept, and how many bytes of their proofs; the oldest is dropped first, since reorganizations take the newest.
const MAX_BATCHES: usize = 256;
const MAX_BYTES: u64 = 256 << 20;

/// A batch that the chain was charged for, as it is presented again. Its proofs are on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SettledBatch {
    pub(super) settlement: ChannelSettlement,
    pub(super) vouchers: Vec<Judged>,
    /// Absent when the chain was found to be charged after the approval had been dropped.
    pub(super) certificate: Option<QuorumCertificate>,
    /// The chain's time when the charge was seen.
    pub(super) at: UnixTime,
    /// The size of its proofs.
    pub(super) bytes: u64,
    /// Taken back by the chain, and its requests are earned anew.
    pub(super) reopened: bool,
}

impl SettledBatch {
    /// The charge by which is seen whether the chain has the batch: it has all of it or nothing.
    pub(super) fn first(&self) -> Option<&ChannelCharge> {
        self.settlement.charges.first()
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = B256> {
        self.settlement.charges.iter().map(|charge| charge.channel)
    }

    pub(super) fn is_deep(&self, now: UnixTime) -> bool {
        now >= self.at.saturating_add(DEEP_AFTER)
    }
}

/// All of them, in the order of their settlement.
#[derive(Debug, Default)]
pub(super) struct Kept {
    batches: BTreeMap<u64, Arc<SettledBatch>>,
    bytes: u64,
}

impl Kept {
    pub(super) fn load(batches: impl IntoIterator<Item = (u64, SettledBatch)>) -> Self {
        let mut kept = Self::default();
        for (number, batch) in batches {
            kept.replace(number, batch);
        }
        kept
    }

    /// Takes a batch in; returns its number, and the numbers of those that had to go. One that is kept already keeps its number.
    pub(super) fn push(&mut self, batch: SettledBatch) -> (u64, Vec<u64>) {
        let same = |(_, kept): &(&u64, &Arc<SettledBatch>)| kept.settlement == batch.settlement;
        let known = self.batches.iter().rev().find(same).map(|(number, _)| *number);
        let next = || self.batches.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
        let number = known.unwrap_or_else(next);
        self.replace(number, batch);
        let mut dropped = Vec::new();
        while (self.batches.len() > MAX_BATCHES || self.bytes > MAX_BYTES) && self.batches.len() > 1 {
            let Some((oldest, _)) = self.batches.first_key_value() else { break };
            let oldest = *oldest;
            self.remove(oldest);
            dropped.push(oldest);
        }
        (number, dropped)
    }

    pub(super) fn replace(&mut self, number: u64, batch: SettledBatch) {
        self.bytes = self.bytes.saturating_add(batch.bytes);
        if let Some(before) = self.batches.insert(number, Arc::new(batch)) {
            self.bytes = self.bytes.saturating_sub(before.bytes);
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        if let Some(batch) = self.batches.remove(&number) {
            self.bytes = self.bytes.saturating_sub(batch.bytes);
        }
    }

    /// The batches, the oldest first.
    pub(super) fn list(&self) -> Vec<(u64, Arc<SettledBatch>)> {
        self.batches.iter().map(|(number, batch)| (*number, batch.clone())).collect()
    }

    /// Whether a batch was reopened that starts from this sum of the channel: the chain may have been charged for it after all.
    pub(super) fn is_reopened(&self, channel: B256, settled_before: Amount) -> bool {
        let starts = |charge: &ChannelCharge| (charge.channel, charge.settled_before) == (channel, settled_before);
        self.batches.values().any(|batch| batch.reopened && batch.settlement.charges.iter().any(starts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(bytes: u64) -> SettledBatch {
        let settlement = ChannelSettlement { root: B256::random(), count: 1, charges: Vec::new(), payouts: Vec::new() };
        SettledBatch { settlement, vouchers: Vec::new(), certificate: None, at: 5, bytes, reopened: false }
    }

    #[test]
    fn what_is_kept_is_bounded_in_number_and_size() {
        let mut kept = Kept::default();
        for number in 0..MAX_BATCHES as u64 {
            assert_eq!(kept.push(batch(1)), (number, Vec::new()));
        }
        assert_eq!(kept.push(batch(1)), (MAX_BATCHES as u64, vec![0]), "the oldest goes");
        let (_, dropped) = kept.push(batch(MAX_BYTES));
        assert_eq!((dropped.len(), kept.list().len(), kept.bytes), (MAX_BATCHES, 1, MAX_BYTES));
        let (_, dropped) = kept.push(batch(MAX_BYTES + 1));
        assert_eq!((dropped.len(), kept.list().len()), (1, 1), "the newest is kept in any case");
        let newest = kept.list().pop().unwrap().1;
        let number = kept.push((*newest).clone()).0;
        assert_eq!((kept.list().len(), kept.list()[0].0), (1, number), "the same one is kept once");
        assert!(!batch(1).is_deep(DEEP_AFTER + 4) && batch(1).is_deep(DEEP_AFTER + 5));
    }
}
