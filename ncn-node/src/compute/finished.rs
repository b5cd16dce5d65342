//! What a compute node has finished: an output waits for the certificate that pays for it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::claims::Claim;
use ncn_core::{
    Acknowledgement, B256, Collected, Committee, ComputeError, Domain, QuorumCertificate, Quote, RequestId, Signed, UnixTime,
};

/// How many outputs wait, and how many bytes they have together. With more, the node takes no further request; those that run may
/// add to them: 8 MiB each.
const MAX_WAITING: usize = 4_096;
const MAX_WAITING_BYTES: usize = 64 << 20;
/// What an output takes beside its values and its order's parameters: mostly the certificate and the committee of its claim.
const OVERHEAD: usize = 8 << 10;

/// All that wait.
#[derive(Default)]
pub(super) struct Finished(Mutex<HashMap<RequestId, Waiting>>);

/// An output that waits.
pub(super) struct Waiting {
    /// The struct hash and the digest of the completion that pays for it, and who approves that.
    pub(super) completion: B256,
    pub(super) digest: B256,
    /// The struct hash of the node's word on it.
    pub(super) result: B256,
    pub(super) committee: Committee,
    pub(super) output: Collected,
    /// What the node can have paid by itself, with the certificate.
    pub(super) claim: Option<Claim>,
    /// What it is paid by, and whether out of a channel.
    pub(super) quote: Quote,
    pub(super) is_voucher: bool,
}

impl Waiting {
    fn size(&self) -> usize {
        let last = self.output.last.as_ref().map_or(0, |last| last.values.size());
        let claim = self.claim.as_ref().map_or(0, |claim| claim.request.message.parameters.len());
        self.output.output.size() + last + claim + OVERHEAD
    }
}

impl Finished {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another request may be taken.
    pub(super) fn room(&self, now: UnixTime) -> Result<(), ()> {
        let mut all = self.lock();
        all.retain(|_, waiting| waiting.quote.expiry >= now);
        let bytes: usize = all.values().map(Waiting::size).sum();
        if all.len() < MAX_WAITING && bytes < MAX_WAITING_BYTES { Ok(()) } else { Err(()) }
    }

    pub(super) fn keep(&self, request_id: RequestId, waiting: Waiting) {
        self.lock().insert(request_id, waiting);
    }

    /// Whether a request's output is at its end, and waits.
    pub(super) fn has(&self, request_id: &RequestId) -> bool {
        self.lock().contains_key(request_id)
    }

    /// The request is over.
    pub(super) fn forget(&self, request_id: &RequestId) {
        self.lock().remove(request_id);
    }

    /// What the chain has to hold of a request, whose certificate this is, and gateway's word: with it the node can have others approve the
    /// completion, should one of these not count on chain. And the completion that it pays: none where a voucher does.
    pub(super) fn check(
        &self,
        request_id: RequestId,
        certificate: &QuorumCertificate,
        acknowledgement: &Signed<Acknowledgement>,
        domain: &Domain,
    ) -> Result<Option<(Quote, B256)>, ComputeError> {
        let (digest, committee, paid_by, word) = {
            let all = self.lock();
            let waiting = all.get(&request_id).ok_or_else(|| missing(request_id))?;
            let paid_by = (!waiting.is_voucher).then(|| (waiting.quote.clone(), waiting.completion));
            let word = Acknowledgement { gateway: waiting.quote.gateway, result: waiting.result };
            (waiting.digest, waiting.committee.clone(), paid_by, word)
        };
        if acknowledgement.message != word {
            return Err(ComputeError::InvalidTask("acknowledgement: is not the gateway's of this output".into()));
        }
        let signed = acknowledgement.verify(domain);
        signed.map_err(|error| ComputeError::InvalidTask(format!("acknowledgement: {error}")))?;
        let paid = certificate.verify(&digest, &committee);
        paid.map_err(|error| ComputeError::InvalidTask(format!("certificate: {error}")))?;
        Ok(paid_by)
    }

    /// Hands an output over, once [`Self::check`] has passed. It stays: the answer may get lost.
    pub(super) fn collect(
        &self,
        request_id: RequestId,
        certificate: QuorumCertificate,
        acknowledgement: Signed<Acknowledgement>,
    ) -> Result<(Collected, Option<Claim>), ComputeError> {
        let all = self.lock();
        let waiting = all.get(&request_id).ok_or_else(|| missing(request_id))?;
        let (acknowledgement, certificate) = (Some(acknowledgement), Some(certificate));
        let claim = waiting.claim.clone().map(|claim| Claim { acknowledgement, certificate, ..claim });
        Ok((waiting.output.clone(), claim))
    }
}

fn missing(request_id: RequestId) -> ComputeError {
    ComputeError::Unavailable(format!("there is no output of request {request_id}, or no longer"))
}
