//! What a compute node has signed on the way, and its gateway has not acknowledged yet.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ncn_core::{Acknowledgement, Address, B256, ComputeError, Domain, RequestId, Signed, UnixTime};
use tokio::sync::Notify;

use super::claims::Claim;

/// How long a gateway may take to acknowledge a checkpoint: it does so at once.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many requests may wait for it, besides those that run: each is somebody's who has paid.
const MAX_WAITING: usize = 4_096;

/// All newest checkpoints that wait for their gateway's word.
#[derive(Default)]
pub(super) struct Unacknowledged {
    waiting: Mutex<HashMap<RequestId, Checkpoint>>,
    come: Notify,
}

/// A checkpoint that waits.
pub(super) struct Checkpoint {
    pub(super) gateway: Address,
    /// The struct hash of the node's result.
    pub(super) result: B256,
    /// What the node can claim by it, where that is kept.
    pub(super) claim: Option<Claim>,
    /// Nothing can be claimed for the quote after that.
    pub(super) expiry: UnixTime,
}

impl Unacknowledged {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Checkpoint>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another request may be taken.
    pub(super) fn has_room(&self, now: UnixTime) -> bool {
        let mut waiting = self.lock();
        waiting.retain(|_, checkpoint| checkpoint.expiry >= now);
        waiting.len() < MAX_WAITING
    }

    pub(super) fn expect(&self, request_id: RequestId, checkpoint: Checkpoint) {
        self.lock().insert(request_id, checkpoint);
    }

    /// The request is over.
    pub(super) fn forget(&self, request_id: &RequestId) {
        self.lock().remove(request_id);
    }

    /// Takes the gateway's word; gives what can be claimed by it.
    pub(super) fn take(&self, request_id: RequestId, acknowledgement: Signed<Acknowledgement>, domain: &Domain) -> Option<Claim> {
        let Acknowledgement { gateway, result } = acknowledgement.message;
        let fits = |checkpoint: &Checkpoint| (checkpoint.gateway, checkpoint.result) == (gateway, result);
        if !self.lock().get(&request_id).is_some_and(fits) || acknowledgement.verify(domain).is_err() {
            tracing::warn!(request = %request_id, "an acknowledgement is not one of what was given");
            return None;
        }
        let mut waiting = self.lock();
        // Another one may wait by now.
        let checkpoint = waiting.get(&request_id).is_some_and(fits).then(|| waiting.remove(&request_id)).flatten();
        drop(waiting);
        self.come.notify_waiters();
        checkpoint?.claim.map(|claim| Claim { acknowledgement: Some(acknowledgement), ..claim })
    }

    /// Waits until nothing of a request waits for its gateway's word.
    pub(super) async fn none_of(self: &Arc<Self>, request_id: RequestId) -> Result<(), ComputeError> {
        let none = async {
            loop {
                let come = self.come.notified();
                tokio::pin!(come);
                // From here on it is noticed.
                come.as_mut().enable();
                if !self.lock().contains_key(&request_id) {
                    return;
                }
                come.await;
            }
        };
        let late = |_| ComputeError::Unavailable("the gateway does not acknowledge what it is given".into());
        tokio::time::timeout(TIMEOUT, none).await.map_err(late)
    }
}
