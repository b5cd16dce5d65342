//! Follows the chain, to report payments to the drivers, and the registry, for the live nodes.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use ncn_core::{LedgerError, NodeQuery, NodeRole, PaymentStatus, RegistryError};

use super::Gateway;

/// How long to wait before the chain or the registry is followed again that gave an error.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);
/// How often the subnet and its manifests are registered again: validators that have approved it may have left.
const REGISTER_EVERY: Duration = Duration::from_mins(10);
/// A problem that comes back after so long is logged again.
const REPEATED: Duration = Duration::from_secs(30);

/// What ended the last try to follow something.
struct Ended<E> {
    problem: Option<E>,
    at: Instant,
}

impl<E: Display + PartialEq> Ended<E> {
    fn new() -> Self {
        Self { problem: None, at: Instant::now() }
    }

    /// Waits before the next try. A problem that repeats at once is logged once.
    async fn pause(&mut self, what: &str, ended: Result<(), E>) {
        let problem = ended.err();
        if let Some(error) = &problem
            && (problem != self.problem || self.at.elapsed() > REPEATED)
        {
            tracing::warn!(%error, "{what} cannot be followed; trying again");
        }
        tokio::time::sleep(FOLLOW_PAUSE).await;
        *self = Self { problem, at: Instant::now() };
    }
}

pub(super) async fn chain(gateway: &Gateway) {
    let (mut from_block, mut last) = (0, Ended::new());
    loop {
        let ended = follow_changes(gateway, &mut from_block).await;
        last.pause("the chain", ended).await;
    }
}

pub(super) async fn registry(gateway: &Gateway) {
    let mut last = Ended::new();
    loop {
        let ended = follow_nodes(gateway).await;
        last.pause("the registry's nodes", ended).await;
    }
}

/// Follows which compute nodes are live. A registry node that has ended the watch may have restarted, so the subnet is registered again.
async fn follow_nodes(gateway: &Gateway) -> Result<(), RegistryError> {
    match gateway.registry.register_subnet(gateway.subnet.clone()).await {
        // Those that approve it are missing, and it may be known already.
        Err(error @ RegistryError::TooFewApprovals { .. }) => tracing::warn!(%error, "the subnet is not approved"),
        Err(error) if error.is_retryable() => return Err(error),
        Err(RegistryError::Stale { .. }) if has_its_terms(gateway).await => register_manifests(gateway).await,
        Err(RegistryError::Stale { .. }) => {
            tracing::error!("the subnet's owner has changed its terms: this gateway's quotes are refused: start it again");
        }
        Err(error) => tracing::warn!(%error, "the registry does not take the subnet"),
        Ok(()) => register_manifests(gateway).await,
    }
    let query = NodeQuery { role: Some(NodeRole::Compute), subnet: Some(gateway.subnet_id()), ..NodeQuery::default() };
    let following = gateway.nodes.follow(&*gateway.registry, query);
    tokio::time::timeout(REGISTER_EVERY, following).await.unwrap_or(Ok(()))
}

/// Whether the newest definition of the subnet has the terms by which this gateway quotes.
async fn has_its_terms(gateway: &Gateway) -> bool {
    let (own, newest) = (&gateway.subnet.message, gateway.registry.subnet(gateway.subnet_id()).await);
    newest.is_ok_and(|newest| {
        let newest = newest.subnet();
        newest.has_gateway(&gateway.address()) && (&newest.models, newest.split) == (&own.models, own.split)
    })
}

/// So that a compute node finds them by their digests. One that the registry does not take, the gateway still has.
async fn register_manifests(gateway: &Gateway) {
    for model in gateway.models.values() {
        let registered = gateway.registry.register_manifest(gateway.subnet_id(), model.model.bytes().clone()).await;
        if let Err(error) = registered {
            tracing::warn!(model = %model.model.digest(), %error, "the registry does not take a manifest");
        }
    }
}

/// Tells the drivers what the chain says.
async fn follow_changes(gateway: &Gateway, from_block: &mut u64) -> Result<(), LedgerError> {
    let mut changes = gateway.ledger.changes(*from_block).await?;
    while let Some(change) = changes.next().await {
        let change = change?;
        *from_block = change.block;
        if let PaymentStatus::Held { .. } = change.status
            && let Ok(task) = gateway.task(change.request_id)
        {
            task.hint();
        }
    }
    Ok(())
}
