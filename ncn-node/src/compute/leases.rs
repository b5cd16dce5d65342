//! Who holds a place at a compute node.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ncn_core::{B256, ComputeError, RequestId, Reservation, UnixTime};
use tokio_util::sync::CancellationToken;

/// The longest that a place is held without being used.
const MAX_LEASE_SECONDS: u64 = 10 * 60;

/// Who holds a place.
pub(super) struct Leases {
    places: usize,
    held: Mutex<HashMap<RequestId, Held>>,
}

struct Held {
    model_digest: B256,
    expires_at: UnixTime,
    running: bool,
    /// Ends what runs.
    stop: CancellationToken,
}

/// A place in use; free again when it is dropped.
pub(super) struct Lease {
    leases: Arc<Leases>,
    request_id: RequestId,
    pub(super) stop: CancellationToken,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.lock().remove(&self.request_id);
    }
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, held: Mutex::default() })
    }

    /// Holds a place, unless all are taken.
    pub(super) fn hold(&self, reservation: &Reservation, now: UnixTime) -> Result<(), ()> {
        let mut held = self.lock();
        held.retain(|_, held| held.running || held.expires_at >= now);
        if held.get(&reservation.request_id).is_some_and(|held| held.running) {
            return Ok(());
        }
        if held.len() >= self.places && !held.contains_key(&reservation.request_id) {
            return Err(());
        }
        let expires_at = reservation.expires_at.min(now + MAX_LEASE_SECONDS);
        held.insert(
            reservation.request_id,
            Held { model_digest: reservation.model_digest, expires_at, running: false, stop: CancellationToken::new() },
        );
        Ok(())
    }

    /// Gives a place back, and says whether it is free now. One in use is given back by the task that uses it.
    pub(super) fn release(&self, request_id: &RequestId) -> bool {
        let mut held = self.lock();
        let is_free = held.get(request_id).is_none_or(|held| !held.running);
        if is_free {
            held.remove(request_id);
        }
        is_free
    }

    /// Ends what runs in a place.
    pub(super) fn stop(&self, request_id: &RequestId) {
        if let Some(held) = self.lock().get(request_id) {
            held.stop.cancel();
        }
    }

    /// Turns a held place into one in use.
    pub(super) fn take(self: &Arc<Self>, request_id: RequestId, model_digest: B256, now: UnixTime) -> Result<Lease, ComputeError> {
        let invalid = |problem: &str| Err(ComputeError::InvalidTask(problem.to_owned()));
        let mut all = self.lock();
        let Some(held) = all.get_mut(&request_id).filter(|held| held.running || held.expires_at >= now) else {
            return invalid("lease: there is none for this request, or it has expired: reserve first");
        };
        if held.running {
            return invalid("lease: the request is running already");
        }
        if held.model_digest != model_digest {
            return invalid("lease: it was reserved for another model");
        }
        held.running = true;
        let stop = held.stop.clone();
        drop(all);
        Ok(Lease { leases: self.clone(), request_id, stop })
    }
}
