//! What a registry node knows, as it survives a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ncn_client::unix_now;
use ncn_core::{
    Address, ApprovedSubnet, B256,
    evidence::Equivocation,
    membership::{KnownNode, Origin, SharedMembership},
};

use super::witness::Witness;
use crate::store::{Op, SharedStore, StoreError, Table, decode};

const NODES: Table = "registry.nodes";
const SUBNETS: Table = "registry.subnets";
const EVIDENCE: Table = "registry.evidence";
/// How many rows one commit has at the most.
const ROWS: usize = 1_024;

/// Writes a membership down as it changes. It is behind by as much as has changed since the last [`save`](Self::save): nodes repeat their
/// heartbeats, and gateways and other registry nodes their subnets.
pub(super) struct State {
    store: SharedStore,
    membership: Arc<SharedMembership>,
    /// The number of the latest change that is in the store.
    saved: u64,
    nodes: BTreeSet<Address>,
    subnets: BTreeMap<B256, (u64, B256)>,
    witness: Arc<Witness>,
    /// How much evidence is in the store.
    convicting: usize,
}

/// What differs when a subnet was defined anew, or approved by others.
fn key(subnet: &ApprovedSubnet) -> (u64, B256) {
    (subnet.subnet().version, subnet.approvals.hash())
}

impl State {
    /// Reads what was saved into the membership: subnets first, by which nodes have their standing.
    pub(super) async fn open(
        store: SharedStore,
        membership: Arc<SharedMembership>,
        witness: Arc<Witness>,
        is_validator: impl Fn(&Address) -> bool,
    ) -> Result<Self, StoreError> {
        let rows = store.scan(EVIDENCE, []).await?;
        let evidence: Vec<Equivocation> = rows.iter().map(|(_, row)| decode(EVIDENCE, row)).collect::<Result<_, _>>()?;
        let (nodes, subnets, convicting) = (BTreeSet::new(), BTreeMap::new(), evidence.len());
        witness.restore(evidence);
        let mut state = Self { store, membership, saved: 0, nodes, subnets, witness, convicting };
        for (_, row) in state.store.scan(SUBNETS, []).await? {
            let subnet: ApprovedSubnet = match decode(SUBNETS, &row) {
                Ok(subnet) => subnet,
                Err(error) => {
                    // Its gateway brings it again.
                    tracing::warn!(%error, "a subnet that was kept is left out");
                    continue;
                }
            };
            state.subnets.insert(subnet.subnet().id(), key(&subnet));
            let restored = state.membership.update(|membership| membership.register_subnet(subnet, unix_now()));
            if let Err(error) = restored {
                tracing::warn!(%error, "a subnet that was kept is refused");
            }
        }
        for (_, row) in state.store.scan(NODES, []).await? {
            let known: KnownNode = decode(NODES, &row)?;
            let node = known.record.message.node;
            let origin = Origin { is_validator: is_validator(&node), ..Origin::default() };
            state.nodes.insert(node);
            state.membership.update(|membership| membership.restore(known, origin, unix_now()));
        }
        Ok(state)
    }

    /// Writes down what has changed. After an error, the next call does it again.
    pub(super) async fn save(&mut self) -> Result<(), StoreError> {
        loop {
            let (upto, changed) = self.membership.read(|membership| membership.changed_after(self.saved, ROWS));
            let known = |known: &KnownNode| Op::put(NODES, known.record.message.node, known);
            let mut ops = changed.iter().map(known).collect::<Result<Vec<_>, _>>()?;
            let gone = self.gone(&changed);
            ops.extend(gone.iter().map(|node| Op::delete(NODES, node)));
            let subnets = self.new_subnets();
            for subnet in &subnets {
                ops.push(Op::put(SUBNETS, subnet.subnet().id(), subnet)?);
            }
            let evidence = self.witness.after(self.convicting);
            for found in &evidence {
                let key = [found.first.approval.validator.as_slice(), found.request_id().as_slice()].concat();
                ops.push(Op::put(EVIDENCE, key, found)?);
            }
            if ops.is_empty() {
                return Ok(());
            }
            self.store.commit(ops).await?;
            self.saved = upto;
            self.convicting += evidence.len();
            self.nodes.extend(changed.iter().map(|known| known.record.message.node));
            for node in gone {
                self.nodes.remove(&node);
            }
            self.subnets.extend(subnets.iter().map(|subnet| (subnet.subnet().id(), key(subnet))));
        }
    }

    /// Whose rows are of no use any more: their records have expired.
    fn gone(&self, changed: &[KnownNode]) -> Vec<Address> {
        self.membership.read(|membership| {
            // As a rule there are none, which needs no search: every node that was kept, or has changed, is a member.
            let new = changed.iter().filter(|known| !self.nodes.contains(&known.record.message.node)).count();
            if self.nodes.len() + new <= membership.len() {
                return Vec::new();
            }
            self.nodes.iter().filter(|node| !membership.is_known(node)).take(ROWS).copied().collect()
        })
    }

    fn new_subnets(&self) -> Vec<ApprovedSubnet> {
        self.membership.read(|membership| {
            let is_new = |subnet: &&ApprovedSubnet| self.subnets.get(&subnet.subnet().id()) != Some(&key(subnet));
            membership.all_subnets().filter(is_new).take(ROWS).cloned().collect()
        })
    }
}
