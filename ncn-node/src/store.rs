//! A node's own database: tables of rows, changed by one writer, with one commit for all that waits.

#[cfg(feature = "redb")]
mod disk;
mod memory;
mod shared;

use std::{error::Error, path::PathBuf, sync::Arc};

#[cfg(feature = "redb")]
pub use disk::RedbStore;
pub use memory::MemoryStore;
use serde::{Serialize, de::DeserializeOwned};
pub use shared::{Sequence, SharedStore, Slot};

/// A table's name.
pub type Table = &'static str;

/// A row's key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// What went wrong beneath.
type Source = Arc<dyn Error + Send + Sync>;

/// A change of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a row, whatever was there.
    Put {
        /// In which table; made when it is not there.
        table: Table,
        /// The row's key.
        key: Vec<u8>,
        /// Its new value.
        value: Vec<u8>,
    },
    /// Deletes a row; does nothing when there is none.
    Delete {
        /// In which table.
        table: Table,
        /// The row's key.
        key: Vec<u8>,
    },
}

impl Op {
    /// Sets a row to an encoded value.
    pub fn put(table: Table, key: impl AsRef<[u8]>, value: &impl Serialize) -> Result<Self, StoreError> {
        Ok(Self::Put { table, key: key.as_ref().into(), value: encode(table, value)? })
    }

    /// Deletes a row.
    pub fn delete(table: Table, key: impl AsRef<[u8]>) -> Self {
        Self::Delete { table, key: key.as_ref().into() }
    }

    /// Which table is changed.
    pub const fn table(&self) -> Table {
        match self {
            Self::Put { table, .. } | Self::Delete { table, .. } => table,
        }
    }
}

/// Why something was not kept, or cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the file open.
    #[error("store: {}: another process has it open: end that one", .0.display())]
    InUse(PathBuf),
    /// The file cannot be opened.
    #[error("store: {}: {source}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Source,
    },
    /// The store failed: its disk may be full.
    #[error("store: {0}")]
    Failed(#[source] Source),
    /// A change that this one builds on was not kept.
    #[error("store: an earlier change was not kept, on which this one builds: try again")]
    Outdated,
    /// A row is not of this program's making, or of another version's.
    #[error("store: a row of `{table}` cannot be used: {source}")]
    Row {
        /// Of which table.
        table: Table,
        /// What is wrong with it.
        source: Source,
    },
    /// A row's key is not of this program's making, or of another version's.
    #[error("store: a key of `{0}` cannot be used")]
    Key(Table),
    /// There is no writer any more.
    #[error("store: is closed")]
    Closed,
}

impl StoreError {
    /// The store failed for this reason.
    pub fn failed(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Failed(Arc::new(error))
    }
}

/// Tables whose rows are in the order of their keys. It blocks: [`SharedStore`] gives it a thread.
///
/// # For the implementer
/// - [`commit`](Self::commit) makes all of its changes or none, and returns once they survive a crash. Later changes of a row win.
/// - After an error nobody knows whether the changes were made; the next commit may succeed, or another scan.
/// - Several threads may scan while one commits; each sees all of a commit or nothing.
pub trait Store: Send + Sync {
    /// Makes these changes, in their order.
    fn commit(&self, ops: &[Op]) -> Result<(), StoreError>;

    /// The rows whose keys begin with `prefix`, by ascending key; none when there is no such table.
    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<Row>, StoreError>;
}

/// So that a store can outlive those that share it.
impl<T: Store + ?Sized> Store for Arc<T> {
    fn commit(&self, ops: &[Op]) -> Result<(), StoreError> {
        (**self).commit(ops)
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<Row>, StoreError> {
        (**self).scan(table, prefix)
    }
}

#[cfg(test)]
#[cfg(feature = "redb")]
mod tests;

/// A value as a row has it.
pub(crate) fn encode(table: Table, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    rmp_serde::to_vec_named(value).map_err(|error| StoreError::Row { table, source: Arc::new(error) })
}

/// A row's value.
pub(crate) fn decode<T: DeserializeOwned>(table: Table, value: &[u8]) -> Result<T, StoreError> {
    rmp_serde::from_slice(value).map_err(|error| StoreError::Row { table, source: Arc::new(error) })
}
