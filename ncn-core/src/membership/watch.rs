//! Watching a [`Membership`]: which change a watcher receives next.
//!
//! Each member has one position in the order of changes, that of its latest change, and a watcher is a position in the same order. A slow watcher
//! therefore takes no more memory than a fast one: it receives the latest change of each node, and not those before it.

use super::Membership;
use crate::{NodeChange, NodeQuery, RegistryError};

/// How many members one call looks at: it holds the membership's lock.
const SCAN: usize = 1_024;

/// A watcher's position.
#[derive(Clone, Debug)]
pub struct Watch {
    query: NodeQuery,
    /// The number of the latest change that was reported or skipped.
    seen: u64,
    /// The number of the latest change when the watch began, or when every change had last been reported.
    caught_up: u64,
    synced: bool,
}

impl Watch {
    /// Whether every change of this membership has been reported or skipped.
    pub const fn is_caught_up(&self, membership: &Membership) -> bool {
        self.synced && self.seen == membership.changes
    }
}

impl Membership {
    /// Begins to watch the nodes that match.
    pub const fn watch(&self, query: NodeQuery) -> Watch {
        Watch { query, seen: 0, caught_up: self.changes, synced: false }
    }

    /// The watcher's next change; `None` when there is none among the next thousand members. Call [`sweep`](Self::sweep) first, so that silence
    /// and expiry are among the changes.
    ///
    /// # Errors
    /// [`RegistryError::Overloaded`]: members were removed whose latest change the watcher has not received. It has to begin again.
    pub fn next_change(&self, watch: &mut Watch) -> Result<Option<NodeChange>, RegistryError> {
        if self.forgotten > watch.seen.max(watch.caught_up) {
            return Err(RegistryError::Overloaded("the watch fell behind: watch again".into()));
        }
        for (&number, node) in self.by_change.range(watch.seen + 1..).take(SCAN) {
            if !watch.synced && number > watch.caught_up {
                break;
            }
            watch.seen = number;
            let Some(member) = self.members.get(node).filter(|member| member.live || watch.synced) else { continue };
            let matches = watch.query.matches(&member.record.message);
            if matches && member.live {
                return Ok(Some(NodeChange::Live(member.record.clone())));
            }
            // A node that did not match before either was never reported.
            if watch.synced && (matches || member.moved > watch.caught_up) {
                return Ok(Some(NodeChange::Gone(*node)));
            }
        }
        if self.by_change.range(watch.seen + 1..).next().is_some_and(|(number, _)| watch.synced || *number <= watch.caught_up) {
            return Ok(None);
        }
        if !watch.synced {
            watch.synced = true;
            return Ok(Some(NodeChange::Synced));
        }
        (watch.seen, watch.caught_up) = (self.changes, self.changes);
        Ok(None)
    }
}
