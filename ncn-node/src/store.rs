//! A node's own database: one file, one writer, and one commit for all that waits.

use std::{path::Path, sync::Arc, thread};

use redb::{Database, Durability, ReadTransaction, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

/// How many changes wait for a commit; more wait to be taken.
const QUEUE: usize = 1_024;

/// Why something could not be kept or read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("store: {0}")]
pub struct StoreError(String);

impl StoreError {
    /// What went wrong.
    #[allow(clippy::needless_pass_by_value, reason = "for map_err")]
    pub fn new(problem: impl ToString) -> Self {
        Self(problem.to_string())
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::new(error)
            }
        }
    )*};
}

from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError, SetDurabilityError);

type Change = Box<dyn FnOnce(&WriteTransaction) -> Result<(), StoreError> + Send>;

struct Job {
    change: Change,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// A database file. Whoever has a clone may change it; it is closed with the last one.
#[derive(Clone)]
pub struct Store {
    database: Arc<Database>,
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// Opens the file, or makes it. One process at a time can have it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let problem = |error: redb::DatabaseError| StoreError::new(format!("{}: {error}", path.display()));
        let database = Arc::new(Database::create(path).map_err(problem)?);
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let writing = database.clone();
        let writer = thread::Builder::new().name("store".into()).spawn(move || write_all(&writing, inbox));
        writer.map_err(StoreError::new)?;
        Ok(Self { database, jobs })
    }

    /// Makes a change, and returns once it survives a crash. Changes that come together share one commit, and are made in their order.
    pub async fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        self.slot().await?.write(change).await
    }

    /// A place in the queue. Who takes it before a lock, and uses it under the lock, has changes kept in the order of the lock.
    pub async fn slot(&self) -> Result<Slot<'_>, StoreError> {
        self.jobs.reserve().await.map(Slot).map_err(|_| StoreError::new("is closed"))
    }

    /// Reads what is kept.
    pub fn read<T>(&self, read: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        use redb::ReadableDatabase as _;
        read(&self.database.begin_read()?)
    }
}

/// A place in a store's queue.
pub struct Slot<'a>(mpsc::Permit<'a, Job>);

impl Slot<'_> {
    /// Makes a change, at once; what is returned ends once the change survives a crash.
    pub fn write(
        self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), StoreError> + Send + 'static,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
        let (done, kept) = oneshot::channel();
        self.0.send(Job { change: Box::new(change), done });
        async { kept.await.map_err(|_| StoreError::new("is closed"))? }
    }
}

/// While one commit is on its way to the disk, the next one's changes gather.
fn write_all(database: &Database, mut inbox: mpsc::Receiver<Job>) {
    let mut jobs = Vec::with_capacity(QUEUE);
    while inbox.blocking_recv_many(&mut jobs, QUEUE) > 0 {
        let (changes, waiting): (Vec<_>, Vec<_>) = jobs.drain(..).map(|job| (job.change, job.done)).unzip();
        let kept = commit(database, changes);
        if let Err(error) = &kept {
            tracing::error!(%error, "a commit failed");
        }
        for done in waiting {
            // Who does not wait any more, does not want to know.
            let _ = done.send(kept.clone());
        }
    }
}

/// All changes or none.
fn commit(database: &Database, changes: Vec<Change>) -> Result<(), StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    for change in changes {
        change(&transaction)?;
    }
    Ok(transaction.commit()?)
}

#[cfg(test)]
mod tests {
    use redb::{ReadableTable as _, TableDefinition};

    use super::*;

    const NUMBERS: TableDefinition<'_, u64, u64> = TableDefinition::new("numbers");

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_kept_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.redb");
        let store = Store::open(&path).unwrap();
        let writes = (0..500u64).map(|n| {
            store.write(move |transaction| {
                transaction.open_table(NUMBERS)?.insert(n, n * n)?;
                Ok(())
            })
        });
        futures::future::try_join_all(writes).await.unwrap();
        assert!(Store::open(&path).is_err(), "one process at a time");
        drop(store);
        // The writer lets go of the file once it has seen that nobody is left.
        let reopened = loop {
            match Store::open(&path) {
                Ok(store) => break store,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            }
        };
        let sum = reopened.read(|transaction| {
            let table = transaction.open_table(NUMBERS)?;
            let mut sum = 0;
            for row in table.iter()? {
                sum += row?.1.value();
            }
            Ok(sum)
        });
        assert_eq!(sum.unwrap(), (0..500u64).map(|n| n * n).sum::<u64>());
    }
}
