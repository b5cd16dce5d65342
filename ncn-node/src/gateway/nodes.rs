//! The compute nodes that a gateway works with: those that are attached, as long as the registry reports them as live.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use ncn_core::{
    Address, B256, Compute, Confinement, Directory, NodeChange, NodeChanges, NodeQuery, NodeRecord, RegistryError, Subnet,
    membership::MembershipLimits,
};
use tokio::{sync::watch, task::coop::consume_budget};

use super::reputation::Reputation;
use crate::measures;

/// How long a request waits for the first node that can run it: the registry may not have reported a new node yet.
const FIRST_NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a registry node may take to report the nodes that are live when a watch begins.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);

/// A model's index in the subnet. Strangers can register as many nodes as a registry takes, each with every model of the subnet, so an entry is small.
type ModelIndex = u16;

type Live = HashMap<Address, LiveNode>;

struct LiveNode {
    models: Box<[ModelIndex]>,
    confinement: Confinement,
}

/// An attached node, with what the registry says of it.
pub(super) struct SeenNode {
    pub(super) address: Address,
    pub(super) models: Vec<B256>,
    /// None while it is not live.
    pub(super) confinement: Option<Confinement>,
}

/// The known nodes.
pub(super) struct Nodes {
    models: HashMap<B256, ModelIndex>,
    known: watch::Sender<Known>,
    reputation: Mutex<Reputation>,
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
        Self { models, known: watch::Sender::default(), reputation: Mutex::default() }
    }

    /// Adds a node; one of the same address is replaced.
    pub(super) fn attach(&self, compute: Arc<dyn Compute>) {
        self.known.send_modify(|known| {
            known.attached.insert(compute.address(), compute);
            measures::attached(known.attached.len());
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
            measures::attached(known.attached.len());
        });
    }

    /// How nodes have served lately.
    pub(super) fn reputation(&self) -> MutexGuard<'_, Reputation> {
        self.reputation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How strongly a live node says that its models are confined.
    pub(super) fn confinement(&self, node: Address) -> Option<Confinement> {
        self.known.borrow().live.get(&node).map(|live| live.confinement)
    }

    /// The addresses of the attached nodes.
    pub(super) fn attached(&self) -> Vec<Address> {
        self.known.borrow().attached.keys().copied().collect()
    }

    /// How many nodes are attached, and at most so many of them.
    pub(super) fn seen(&self, most: usize) -> (usize, Vec<SeenNode>) {
        let digests: HashMap<ModelIndex, B256> = self.models.iter().map(|(digest, index)| (*index, *digest)).collect();
        let known = self.known.borrow();
        let mut nodes: Vec<_> = known.attached.keys().copied().collect();
        nodes.sort_unstable();
        let seen = nodes.into_iter().take(most).map(|node| {
            let live = known.live.get(&node);
            let models = live.iter().flat_map(|live| &live.models).filter_map(|index| digests.get(index).copied()).collect();
            SeenNode { address: node, models, confinement: live.map(|live| live.confinement) }
        });
        (known.attached.len(), seen.collect())
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
            let has_model = |node: &Address| known.live.get(node).is_some_and(|live| live.models.contains(model));
            found.extend(known.attached.iter().filter(|(node, _)| has_model(node)).map(|(_, compute)| compute.clone()));
            !found.is_empty()
        });
        // After a timeout, nothing was found.
        let _ = tokio::time::timeout(FIRST_NODE_TIMEOUT, some).await;
        found
    }

    /// Follows the live nodes that match, until the registry ends the watch.
    pub(super) async fn follow(&self, registry: &dyn Directory, query: NodeQuery) -> Result<(), RegistryError> {
        let mut changes = match registry.watch(query).await {
            Ok(changes) => changes,
            Err(error) => {
                // Strangers may have taken every place for watches: until one is free, the caller's next tries refresh the nodes.
                let mut live = Live::new();
                for record in registry.discover(query).await? {
                    self.apply(NodeChange::Live(record), &mut live)?;
                }
                self.known.send_modify(|known| known.live = live);
                return Err(error);
            }
        };
        let synced = tokio::time::timeout(SYNC_TIMEOUT, self.sync(&mut changes)).await;
        let late = |_| RegistryError::Unreachable(format!("it has not reported the live nodes within {SYNC_TIMEOUT:?}"));
        let live = synced.map_err(late)??;
        self.known.send_modify(|known| known.live = live);
        while let Some(change) = changes.next().await {
            let change = change?;
            let mut applied = Ok(());
            self.known.send_modify(|known| applied = self.apply(change, &mut known.live));
            applied?;
            consume_budget().await;
        }
        Ok(())
    }

    /// The nodes that are live when a watch begins.
    async fn sync(&self, changes: &mut NodeChanges) -> Result<Live, RegistryError> {
        let mut live = Live::new();
        while let Some(change) = changes.next().await {
            match change? {
                NodeChange::Synced => return Ok(live),
                change => self.apply(change, &mut live)?,
            }
            // A registry node that always has another change does not keep this task from its other work.
            consume_budget().await;
        }
        Err(RegistryError::Unreachable("it has ended the watch".into()))
    }

    fn apply(&self, change: NodeChange, live: &mut Live) -> Result<(), RegistryError> {
        let NodeRecord { node, models, confinement, .. } = match change {
            NodeChange::Live(record) => record.message,
            NodeChange::Gone(node) => {
                live.remove(&node);
                return Ok(());
            }
            NodeChange::Synced => return Ok(()),
        };
        // A record may repeat a model.
        let models: BTreeSet<_> = models.iter().filter_map(|model| self.models.get(model).copied()).collect();
        if models.is_empty() {
            live.remove(&node);
            return Ok(());
        }
        if live.len() >= MembershipLimits::default().nodes && !live.contains_key(&node) {
            return Err(RegistryError::Malformed(format!("more than {} nodes are live in one subnet", live.len())));
        }
        live.insert(node, LiveNode { models: models.into_iter().collect(), confinement });
        Ok(())
    }
}
