//! Which requests a validator has approved for settlement, so that none is settled twice.

use std::collections::{BTreeSet, HashMap};

use ncn_core::{Amount, RegistryError, RequestId, UnixTime, channel::Batch, validation::MAX_ESCROW_SECONDS};

/// How long after its quote's expiry a request can still be settled, in seconds; as long it is remembered.
const WINDOW: u64 = MAX_ESCROW_SECONDS;
/// How many requests are remembered.
const MAX_REQUESTS: usize = 4_000_000;

/// The requests of the batches that were approved.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// With what their channel had been charged before: until the batch is settled, the same request may be in another one that
    /// starts from there, because only one of them can be settled.
    requests: HashMap<RequestId, Amount>,
    /// When they can be forgotten.
    ends: BTreeSet<(UnixTime, RequestId)>,
}

impl Record {
    /// Takes a batch in, all of it or nothing.
    pub(super) fn enter(&mut self, batch: &Batch, now: UnixTime) -> Result<(), RegistryError> {
        self.forget(now);
        let refuse = |request: RequestId, problem: &str| RegistryError::Refused(format!("request {request}: {problem}"));
        let before: HashMap<_, _> = batch.settlement.charges.iter().map(|charge| (charge.channel, charge.settled_before)).collect();
        let mut new = Vec::new();
        for entry in &batch.entries {
            let request = entry.quote.request_id;
            let end = entry.quote.expiry.saturating_add(WINDOW);
            if end < now {
                return Err(refuse(request, "its quote expired too long ago"));
            }
            let before = before.get(&entry.payment.voucher.channel).copied().unwrap_or_default();
            match self.requests.get(&request) {
                Some(known) if *known != before => return Err(refuse(request, "was settled in an earlier batch")),
                Some(_) => {}
                None => new.push((request, before, end)),
            }
        }
        if self.requests.len() + new.len() > MAX_REQUESTS {
            return Err(RegistryError::Overloaded(format!("{MAX_REQUESTS} settled requests are remembered: try again later")));
        }
        for (request, before, end) in new {
            self.requests.insert(request, before);
            self.ends.insert((end, request));
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
