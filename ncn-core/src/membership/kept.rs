//! What of a membership survives a restart.

use serde::{Deserialize, Serialize};

use super::{HEARTBEAT_SECONDS, LIVENESS_SECONDS, Member, Membership, Origin};
use crate::{Address, ApprovedSubnet, NodeRecord, Signed, UnixTime};

/// What is kept of a node: enough to refuse what it has sent before, and to find it while it has not been heard again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownNode {
    /// Its newest record.
    pub record: Signed<NodeRecord>,
    /// The newest sequence seen, of the record or of a heartbeat before its latest change.
    pub sequence: u64,
    /// Whether it has left.
    pub departed: bool,
}

impl Membership {
    /// The nodes that have changed after the change of this number, in the order of their changes, at most so many; and the number of the
    /// latest change among them.
    pub fn changed_after(&self, number: u64, most: usize) -> (u64, Vec<KnownNode>) {
        let changed = || self.by_change.range(number + 1..).take(most);
        let known = changed().filter_map(|(_, node)| {
            let Member { record, sequence, departed, .. } = self.members.get(node)?;
            Some(KnownNode { record: record.clone(), sequence: *sequence, departed: *departed })
        });
        (changed().last().map_or(number, |(latest, _)| *latest), known.collect())
    }

    /// Takes a node in as it was kept: its signature was checked then. It counts as live for as long as two of its heartbeats take, and then
    /// only if it is heard.
    pub fn restore(&mut self, known: KnownNode, origin: Origin, now: UnixTime) {
        let KnownNode { record, sequence, departed } = known;
        let node = record.message.node;
        let place = self.place(&record, origin);
        if record.message.expires_at < now || self.members.contains_key(&node) || self.move_to(node, place, now).is_err() {
            return;
        }
        let last_seen = now.saturating_sub(LIVENESS_SECONDS - 2 * HEARTBEAT_SECONDS);
        let member =
            Member { record, sequence, last_seen, departed, origin, place: Some(place), live: !departed, changed: 0, moved: 0 };
        self.members.insert(node, member);
        self.has_changed(node);
    }

    /// Whether anything is known of a node: also of one that is not live.
    pub fn is_known(&self, node: &Address) -> bool {
        self.members.contains_key(node)
    }

    /// How many nodes something is known of.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether no node is known.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Every subnet that is known.
    pub fn all_subnets(&self) -> impl Iterator<Item = &ApprovedSubnet> {
        self.subnets.values().map(|subnet| &**subnet)
    }
}
