//! What a watcher of a [`Membership`] has been told, and what comes next.
//!
//! Each member stands once in the order of changes, at its latest one, and a watcher is a place in that order. So a watcher that reads slowly
//! takes no more memory than another: it is told the latest of each node, and not the steps that led there.

use super::Membership;
use crate::{NodeChange, NodeQuery, RegistryError};

/// How far a watcher is.
#[derive(Clone, Debug)]
pub struct Watch {
    query: NodeQuery,
    /// The number of the change that it has come to.
    seen: u64,
    /// The number of the latest change when the watch began, or when the watcher last knew everything.
    caught_up: u64,
    synced: bool,
}

impl Membership {
    /// Begins to watch the nodes that fit.
    pub const fn watch(&self, query: NodeQuery) -> Watch {
        Watch { query, seen: 0, caught_up: self.changes, synced: false }
    }

    /// What the watcher is told next; `None` when it knows everything. Without [`sweep`](Self::sweep) before, it does not hear of silence.
    ///
    /// # Errors
    /// [`RegistryError::Overloaded`]: the watcher is so far behind that nodes were forgotten in between. It has to begin again.
    pub fn next_change(&self, watch: &mut Watch) -> Result<Option<NodeChange>, RegistryError> {
        if self.forgotten > watch.seen.max(watch.caught_up) {
            return Err(RegistryError::Overloaded("the watch fell behind: watch again".into()));
        }
        for (&number, node) in self.by_change.range(watch.seen + 1..) {
            if !watch.synced && number > watch.caught_up {
                break;
            }
            watch.seen = number;
            let Some(member) = self.members.get(node) else { continue };
            let fits = watch.query.fits(&member.record.message);
            if fits && member.live {
                return Ok(Some(NodeChange::Live(member.record.clone())));
            }
            // One that did not fit before either was never told of.
            if watch.synced && (fits || member.moved > watch.caught_up) {
                return Ok(Some(NodeChange::Gone(*node)));
            }
        }
        if !watch.synced {
            watch.synced = true;
            return Ok(Some(NodeChange::Synced));
        }
        (watch.seen, watch.caught_up) = (self.changes, self.changes);
        Ok(None)
    }
}
