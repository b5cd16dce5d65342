//! The compute nodes that a gateway works with: those that are attached, as long as the registry reports them as live.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use ncn_core::{
    Address, B256, Compute, Directory, NodeChange, NodeQuery, NodeRecord, RegistryError, Subnet, membership::MembershipLimits,
};
use tokio::sync::watch;

/// How long a request waits for the first node that can run it: the registry may not have reported a new node yet.
const FIRST_NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// A model's index in the subnet. Strangers can register as many nodes as a registry takes, each with every model of the subnet, so an entry is small.
type ModelIndex = u16;

type Live = HashMap<Address, Box<[ModelIndex]>>;

/// The known nodes.
pub(super) struct Nodes {
    models: HashMap<B256, ModelIndex>,
    known: watch::Sender<Known>,
}

#[derive(Default)]
struct Known {
    attached: HashMap<Address, Arc<dyn Compute>>,
    live: Live,
}

impl Nodes {
    /// None yet.
    pub(super) fn new(subnet: &Subnet) -> Self {
        let models = subnet.models.iter().map(|model| model.digest).zip(0..).collect();
        Self { models, known: watch::Sender::default() }
    }

    /// Adds a node; one of the same address is replaced.
    pub(super) fn attach(&self, compute: Arc<dyn Compute>) {
        self.known.send_modify(|known| {
            known.attached.insert(compute.address(), compute);
        });
    }

    /// Takes a node away, unless it has been replaced in the meantime.
    pub(super) fn detach(&self, compute: &Arc<dyn Compute>) {
        self.known.send_modify(|known| {
            if let Entry::Occupied(entry) = known.attached.entry(compute.address())
                && Arc::ptr_eq(entry.get(), compute)
            {
                entry.remove();
            }
        });
    }

    /// The addresses of the attached nodes.
    pub(super) fn attached(&self) -> Vec<Address> {
        self.known.borrow().attached.keys().copied().collect()
    }

    /// The attached node with this address.
    pub(super) fn get(&self, address: Address) -> Option<Arc<dyn Compute>> {
        self.known.borrow().attached.get(&address).cloned()
    }

    /// The attached, live nodes with this model, in no particular order. Waits a second for the first one, and returns none after that.
    pub(super) async fn with_model(&self, model: &B256) -> Vec<Arc<dyn Compute>> {
        let Some(model) = self.models.get(model) else { return Vec::new() };
        let mut known = self.known.subscribe();
        let mut found = Vec::new();
        let some = known.wait_for(|known| {
            let has_model = |node: &Address| known.live.get(node).is_some_and(|models| models.contains(model));
            found.extend(known.attached.iter().filter(|(node, _)| has_model(node)).map(|(_, compute)| compute.clone()));
            !found.is_empty()
        });
        // After a timeout, nothing was found.
        let _ = tokio::time::timeout(FIRST_NODE_TIMEOUT, some).await;
        found
    }

    /// Follows the live nodes that match, until the registry ends the watch.
    pub(super) async fn follow(&self, registry: &dyn Directory, query: NodeQuery) -> Result<(), RegistryError> {
        let mut changes = registry.watch(query).await?;
        // The known nodes are replaced once all live ones are reported, not before.
        let mut syncing = Some(Live::new());
        while let Some(change) = changes.next().await {
            match (change?, &mut syncing) {
                (NodeChange::Synced, syncing) => {
                    if let Some(live) = syncing.take() {
                        self.known.send_modify(|known| known.live = live);
                    }
                }
                (change, Some(live)) => self.apply(change, live)?,
                (change, None) => {
                    let mut applied = Ok(());
                    self.known.send_modify(|known| applied = self.apply(change, &mut known.live));
                    applied?;
                }
            }
        }
        Ok(())
    }

    fn apply(&self, change: NodeChange, live: &mut Live) -> Result<(), RegistryError> {
        let (node, models) = match change {
            NodeChange::Live(record) => {
                let NodeRecord { node, models, .. } = record.message;
                (node, models.iter().filter_map(|model| self.models.get(model).copied()).collect())
            }
            NodeChange::Gone(node) => (node, Box::default()),
            NodeChange::Synced => return Ok(()),
        };
        if models.is_empty() {
            live.remove(&node);
            return Ok(());
        }
        if live.len() >= MembershipLimits::default().nodes && !live.contains_key(&node) {
            return Err(RegistryError::Malformed(format!("more than {} nodes are live in one subnet", live.len())));
        }
        live.insert(node, models);
        Ok(())
    }
}
