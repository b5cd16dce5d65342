//! A membership that is shared by tasks, and whose watchers wait for its changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{
    StreamExt as _,
    channel::mpsc,
    stream::{self, BoxStream},
};

use super::{Membership, Watch};
use crate::{NodeChange, NodeChanges, NodeQuery, RegistryError, UnixTime};

/// A [`Membership`] that tasks share. Its changes wake its watchers.
#[derive(Debug)]
pub struct SharedMembership(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    membership: Membership,
    watchers: Vec<mpsc::Sender<()>>,
}

impl SharedMembership {
    /// Shares a membership.
    pub fn new(membership: Membership) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner { membership, watchers: Vec::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads it, under its lock.
    pub fn read<T>(&self, read: impl FnOnce(&Membership) -> T) -> T {
        read(&self.lock().membership)
    }

    /// Changes it, under its lock, and wakes the watchers if there is anything to report.
    pub fn update<T>(&self, change: impl FnOnce(&mut Membership) -> T) -> T {
        let Inner { membership, watchers } = &mut *self.lock();
        let before = membership.changes;
        let changed = change(membership);
        if membership.changes != before {
            // A full channel is that of a watcher that was woken before and has not run yet.
            watchers.retain_mut(|watcher| watcher.try_send(()).is_ok() || !watcher.is_closed());
        }
        changed
    }

    /// Implements [`Directory::watch`](crate::Directory::watch). The watcher wakes when the membership changes and, to notice silence and expiry,
    /// at each of the `ticks`. Dropping the stream ends the watch.
    pub fn watch(
        self: &Arc<Self>,
        query: NodeQuery,
        clock: impl Fn() -> UnixTime + Send + 'static,
        ticks: BoxStream<'static, ()>,
    ) -> NodeChanges {
        let (watcher, woken) = mpsc::channel(0);
        let mut inner = self.lock();
        inner.watchers.retain(|watcher| !watcher.is_closed());
        inner.watchers.push(watcher);
        let watch = inner.membership.watch(query);
        drop(inner);
        let watcher = Watcher { shared: self.clone(), watch, clock, wakes: stream::select(woken, ticks).boxed() };
        let next = async |mut watcher: Watcher<_>| Some((watcher.next().await?, watcher));
        stream::unfold(watcher, next).boxed()
    }
}

struct Watcher<C> {
    shared: Arc<SharedMembership>,
    watch: Watch,
    clock: C,
    wakes: BoxStream<'static, ()>,
}

impl<C: Fn() -> UnixTime> Watcher<C> {
    async fn next(&mut self) -> Option<Result<NodeChange, RegistryError>> {
        loop {
            let now = (self.clock)();
            let (next, caught_up) = self.shared.update(|membership| {
                membership.sweep(now);
                let next = membership.next_change(&mut self.watch);
                (next, self.watch.is_caught_up(membership))
            });
            match next.transpose() {
                Some(next) => return Some(next),
                None if caught_up => self.wakes.next().await?,
                None => {}
            }
        }
    }
}
