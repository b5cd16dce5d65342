use std::{
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::sync::{mpsc, oneshot};

use super::{Op, Row, Store, StoreError, Table};

/// How many changes wait for a commit; more wait to be taken.
const QUEUE: usize = 1_024;

struct Job {
    ops: Vec<Op>,
    sequence: Option<Sequence>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// A store that many share. Changes are made in the order in which they come; while one commit is on its way, the next one's changes
/// gather. A change that cannot be kept fails alone. It is closed with its last clone.
#[derive(Clone)]
pub struct SharedStore {
    store: Arc<dyn Store>,
    jobs: mpsc::Sender<Job>,
}

impl SharedStore {
    /// Shares a store.
    ///
    /// # Errors
    /// When there can be no thread for it.
    pub fn new(store: impl Store + 'static) -> Result<Self, StoreError> {
        let store: Arc<dyn Store> = Arc::new(store);
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let writing = store.clone();
        let writer = thread::Builder::new().name("store".into()).spawn(move || write_all(&*writing, inbox));
        writer.map_err(StoreError::failed)?;
        Ok(Self { store, jobs })
    }

    /// Shares a file of redb, which is made when it is not there. One process at a time can have it open.
    #[cfg(feature = "redb")]
    pub fn open(path: &std::path::Path) -> Result<Self, StoreError> {
        Self::new(super::RedbStore::open(path)?)
    }

    /// Makes these changes, all or none, and returns once they survive a crash. Dropping the future does not take them back.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        self.slot().await?.commit(ops, None).await
    }

    /// Waits for all changes that have come before.
    pub async fn idle(&self) -> Result<(), StoreError> {
        self.commit(Vec::new()).await
    }

    /// A place in the queue. Who takes it before a lock, and uses it under the lock, has changes made in the order of the lock.
    pub async fn slot(&self) -> Result<Slot<'_>, StoreError> {
        self.jobs.reserve().await.map(Slot).map_err(|_| StoreError::Closed)
    }

    /// The rows whose keys begin with `prefix`, by ascending key.
    pub async fn scan(&self, table: Table, prefix: impl AsRef<[u8]>) -> Result<Vec<Row>, StoreError> {
        let prefix = prefix.as_ref().to_vec();
        self.read(move |store| store.scan(table, &prefix)).await
    }

    /// Reads from the store, in a thread that may block.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || read(&*store)).await.map_err(StoreError::failed)?
    }

    /// The store itself, which blocks.
    pub fn inner(&self) -> &dyn Store {
        &*self.store
    }
}

/// Changes that build on each other: once one of them was not kept, none that comes after it is. Who keeps a picture of the store in
/// memory makes it anew then, and begins another sequence.
#[derive(Clone, Debug, Default)]
pub struct Sequence(Arc<AtomicBool>);

impl PartialEq for Sequence {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Sequence {}

impl Sequence {
    /// Whether a change was not kept.
    pub fn is_broken(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// What comes after it is not kept.
    pub fn abandon(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A place in a store's queue.
pub struct Slot<'a>(mpsc::Permit<'a, Job>);

impl Slot<'_> {
    /// Makes these changes, all or none, from now on; what is returned ends once they survive a crash.
    pub fn commit(
        self,
        ops: Vec<Op>,
        sequence: Option<&Sequence>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
        let (done, kept) = oneshot::channel();
        self.0.send(Job { ops, sequence: sequence.cloned(), done });
        async { kept.await.map_err(|_| StoreError::Closed)? }
    }
}

fn write_all(store: &dyn Store, mut inbox: mpsc::Receiver<Job>) {
    let mut jobs = Vec::with_capacity(QUEUE);
    while inbox.blocking_recv_many(&mut jobs, QUEUE) > 0 {
        let (outdated, jobs): (Vec<_>, Vec<_>) = jobs.drain(..).partition(is_outdated);
        for job in outdated {
            answer(job.done, Err(StoreError::Outdated));
        }
        let (idle, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.ops.is_empty());
        if !jobs.is_empty() {
            write(store, jobs);
        }
        for job in idle {
            answer(job.done, Ok(()));
        }
    }
}

/// Changes of several callers, by one commit if that can be.
fn write(store: &dyn Store, jobs: Vec<Job>) {
    let (mut ops, mut waiting) = (Vec::new(), Vec::with_capacity(jobs.len()));
    for Job { ops: mut more, sequence, done } in jobs {
        let from = ops.len();
        ops.append(&mut more);
        waiting.push((from..ops.len(), sequence, done));
    }
    let kept = commit(store, &ops);
    if let Err(error) = &kept {
        tracing::error!(%error, "a commit failed");
    }
    let alone = waiting.len() == 1;
    for (range, sequence, done) in waiting {
        let kept = match &kept {
            Err(_) if sequence.as_ref().is_some_and(Sequence::is_broken) => Err(StoreError::Outdated),
            // One of them may be at fault: each by itself, so that it takes nobody along.
            Err(_) if !alone => commit(store, ops.get(range).unwrap_or_default()),
            kept => kept.clone(),
        };
        if let (Err(_), Some(sequence)) = (&kept, sequence) {
            sequence.abandon();
        }
        answer(done, kept);
    }
}

/// A panic of the store's is an error like any other: the writer goes on.
fn commit(store: &dyn Store, ops: &[Op]) -> Result<(), StoreError> {
    let committed = panic::catch_unwind(AssertUnwindSafe(|| store.commit(ops)));
    committed.unwrap_or_else(|_| Err(StoreError::failed(std::io::Error::other("the store panicked"))))
}

fn is_outdated(job: &Job) -> bool {
    job.sequence.as_ref().is_some_and(Sequence::is_broken)
}

fn answer(done: oneshot::Sender<Result<(), StoreError>>, kept: Result<(), StoreError>) {
    // Who does not wait any more, does not want to know.
    let _ = done.send(kept);
}
