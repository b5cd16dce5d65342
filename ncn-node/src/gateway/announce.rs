//! Tells the registry which requests this gateway works on, and asks it for those that others have.

use std::{collections::BTreeSet, time::Duration};

use ncn_client::unix_now;
use ncn_core::{
    RequestId, Signed, TransportError,
    mempool::{MAX_PENDING, MAX_PENDING_SECONDS, PendingRequests},
};
use tokio::time::{Instant, timeout};

use super::Gateway;
use crate::registration::next_sequence;

/// How often it looks whether there is something to tell, and how often it tells the same again.
const LOOK: Duration = Duration::from_secs(2);
const REPEAT: Duration = Duration::from_mins(1);
/// How long the registry is waited for.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How many questions of that kind wait at once: strangers can make this gateway ask. Others are answered without.
pub(super) const MAX_ASKING: usize = 16;

/// Says what there is, whenever it has changed, at most so often. What is not heard comes again.
pub(super) async fn announce(gateway: &Gateway) {
    lost(gateway).await;
    let (mut said, mut at, mut sequence) = (BTreeSet::new(), Instant::now(), 0);
    loop {
        tokio::time::sleep(LOOK).await;
        let requests = gateway.tasks().pending(MAX_PENDING);
        if requests == said && (said.is_empty() || at.elapsed() < REPEAT) {
            continue;
        }
        sequence = next_sequence(sequence);
        match say(gateway, &requests, sequence).await {
            Ok(()) => (said, at) = (requests, Instant::now()),
            Err(problem) => tracing::debug!(problem, "pending requests are not announced"),
        }
    }
}

async fn say(gateway: &Gateway, requests: &BTreeSet<RequestId>, sequence: u64) -> Result<(), String> {
    let pending = PendingRequests {
        gateway: gateway.address(),
        subnet: gateway.subnet_id(),
        requests: requests.iter().copied().collect(),
        sequence,
        expires_at: unix_now() + MAX_PENDING_SECONDS,
    };
    let signed = Signed::sign(pending, &gateway.domain, &*gateway.signer).await.map_err(|error| error.to_string())?;
    gateway.registry.announce(signed).await.map_err(|error| error.to_string())
}

/// Says which requests this gateway had before it was started that its journal does not have: their payments come back when they expire.
async fn lost(gateway: &Gateway) {
    let Ok(Some(before)) = gateway.registry.pending_of(gateway.address()).await else { return };
    for request in before.message.requests {
        if gateway.task(request).is_err() {
            tracing::error!(%request, "the journal lacks a request that this gateway had announced: its client gets its payment back when it expires");
        }
    }
}

impl Gateway {
    /// The error that a call about a request ends with, where this gateway does not have that: whether another one of the subnet has.
    pub(super) async fn elsewhere(&self, request_id: RequestId, error: TransportError) -> TransportError {
        let is_absent = match &error {
            TransportError::UnknownTask(_) => true,
            TransportError::InvalidRequest { field, .. } => field == "request.draw",
            _ => false,
        };
        if !is_absent {
            return error;
        }
        let Ok(_place) = self.asking.try_acquire() else { return error };
        let asked = timeout(ASK_TIMEOUT, self.registry.pending(self.subnet_id(), request_id)).await;
        let Ok(Ok(Some(pending))) = asked else { return error };
        let gateway = pending.message.gateway;
        let is_others = gateway != self.address() && self.subnet.message.has_gateway(&gateway);
        if is_others && pending.message.requests.contains(&request_id) && pending.verify(&self.domain).is_ok() {
            TransportError::TakenElsewhere { request_id, gateway }
        } else {
            error
        }
    }
}
