//! What a compute node has finished: an output waits for the certificate that pays for it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::claims::Claim;
use ncn_core::{B256, Collected, Committee, ComputeError, QuorumCertificate, Quote, RequestId, UnixTime};

/// How many outputs wait, and how many bytes they have together. With more, the node takes no further request; those that run may
/// add to them: 8 MiB each.
const MAX_WAITING: usize = 4_096;
const MAX_WAITING_BYTES: usize = 64 << 20;
/// What an output takes beside its values.
const OVERHEAD: usize = 1 << 10;

/// All that wait.
#[derive(Default)]
pub(super) struct Finished(Mutex<HashMap<RequestId, Waiting>>);

/// An output that waits.
pub(super) struct Waiting {
    /// The digest of the completion that pays for it, and who approves that.
    pub(super) digest: B256,
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
        self.output.output.size() + last + OVERHEAD
    }
}

impl Finished {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What pays for the output of a request.
    pub(super) fn quote(&self, request_id: &RequestId) -> Option<(Quote, bool)> {
        self.lock().get(request_id).map(|waiting| (waiting.quote.clone(), waiting.is_voucher))
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

    /// The request is over.
    pub(super) fn forget(&self, request_id: &RequestId) {
        self.lock().remove(request_id);
    }

    /// Hands an output over for the certificate that pays for it. It stays: the answer may get lost.
    pub(super) fn collect(
        &self,
        request_id: RequestId,
        certificate: QuorumCertificate,
    ) -> Result<(Collected, Option<Claim>), ComputeError> {
        let (digest, committee) = {
            let all = self.lock();
            let waiting = all.get(&request_id).ok_or_else(|| missing(request_id))?;
            (waiting.digest, waiting.committee.clone())
        };
        let paid = certificate.verify(&digest, &committee);
        paid.map_err(|error| ComputeError::InvalidTask(format!("certificate: {error}")))?;
        let all = self.lock();
        let waiting = all.get(&request_id).ok_or_else(|| missing(request_id))?;
        let claim = waiting.claim.clone().map(|claim| Claim { certificate: Some(certificate), ..claim });
        Ok((waiting.output.clone(), claim))
    }
}

fn missing(request_id: RequestId) -> ComputeError {
    ComputeError::Unavailable(format!("there is no output of request {request_id}, or no longer"))
}
