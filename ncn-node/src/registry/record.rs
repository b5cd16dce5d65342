//! Which requests a validator has approved for settlement, so that none is settled twice.

use std::collections::{BTreeSet, HashMap, HashSet};

use ncn_core::{Amount, B256, RegistryError, RequestId, UnixTime, channel::Batch, validation::MAX_ESCROW_SECONDS};

/// How long after its quote's expiry a request can still be settled, in seconds; as long it is remembered.
const WINDOW: u64 = MAX_ESCROW_SECONDS;
/// How many requests are remembered.
const MAX_REQUESTS: usize = 4_000_000;
/// In how many batches one request may be that were approved and not settled.
const MAX_APPROVALS: usize = 32;

/// A batch that was approved, as one of its channels sees it. Whether it was settled, the chain knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Approved {
    pub(super) channel: B256,
    pub(super) settled_before: Amount,
    pub(super) root: B256,
}

/// The requests of the batches that were approved.
#[derive(Debug, Default)]
pub(super) struct Record {
    requests: HashMap<RequestId, Vec<Approved>>,
    /// When they can be forgotten.
    ends: BTreeSet<(UnixTime, RequestId)>,
}

/// What a batch is to each of its channels.
fn approvals(batch: &Batch) -> HashMap<B256, Approved> {
    let root = batch.settlement.root;
    let approved = |channel, settled_before| (channel, Approved { channel, settled_before, root });
    batch.settlement.charges.iter().map(|charge| approved(charge.channel, charge.settled_before)).collect()
}

impl Record {
    /// The batches that some of these requests were in, and that may have been settled since: those that did not start from where the
    /// channel is now.
    pub(super) fn earlier(&self, batch: &Batch) -> HashSet<Approved> {
        let now = approvals(batch);
        let known = batch.entries.iter().filter_map(|entry| self.requests.get(&entry.quote.request_id)).flatten();
        let elsewhere = |approved: &&Approved| {
            now.get(&approved.channel).is_none_or(|present| present.settled_before != approved.settled_before)
        };
        known.filter(elsewhere).copied().collect()
    }

    /// Takes a batch in, all of it or nothing; `charged` are those of the earlier batches that the chain was charged for.
    pub(super) fn enter(&mut self, batch: &Batch, charged: &HashSet<Approved>, now: UnixTime) -> Result<(), RegistryError> {
        self.forget(now);
        let refuse = |request: RequestId, problem: &str| RegistryError::Refused(format!("request {request}: {problem}"));
        let present = approvals(batch);
        for entry in &batch.entries {
            let request = entry.quote.request_id;
            if entry.quote.expiry.saturating_add(WINDOW) < now {
                return Err(refuse(request, "its quote expired too long ago"));
            }
            let known = self.requests.get(&request).map(Vec::as_slice).unwrap_or_default();
            if known.iter().any(|approved| charged.contains(approved)) {
                return Err(refuse(request, "was settled in an earlier batch"));
            }
            if known.iter().any(|approved| approved.channel != entry.payment.voucher.channel) {
                return Err(refuse(request, "was approved for another channel"));
            }
            if known.len() >= MAX_APPROVALS {
                return Err(refuse(request, "was approved too often without being settled"));
            }
        }
        if self.requests.len() + batch.entries.len() > MAX_REQUESTS {
            return Err(RegistryError::Overloaded(format!("{MAX_REQUESTS} settled requests are remembered: try again later")));
        }
        for entry in &batch.entries {
            let request = entry.quote.request_id;
            let Some(approved) = present.get(&entry.payment.voucher.channel) else { continue };
            let known = self.requests.entry(request).or_default();
            // What started elsewhere and was not charged by now never will be.
            known.retain(|earlier| earlier.settled_before == approved.settled_before);
            if !known.contains(approved) {
                known.push(*approved);
            }
            self.ends.insert((entry.quote.expiry.saturating_add(WINDOW), request));
        }
        Ok(())
    }

    fn forget(&mut self, now: UnixTime) {
        while let Some((end, request)) = self.ends.first().copied()
            && end < now
        {
            self.ends.pop_first();
            self.requests.remove(&request);
        }
    }
}
