//! Where the book is kept.

use std::collections::HashMap;

use ncn_core::{
    B256, QuorumCertificate, RequestId,
    channel::{Batch, BatchEntry},
};
use redb::{ReadableTable as _, TableDefinition, TableError, WriteTransaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    book::{Account, ChannelState, Closing, Hold},
    kept::{Kept, SettledBatch},
};
use crate::store::{Store, StoreError};

type Table = TableDefinition<'static, [u8; 32], &'static [u8]>;

const ACCOUNTS: Table = TableDefinition::new("channel.accounts");
const HOLDS: Table = TableDefinition::new("channel.holds");
/// The channels that are being closed, or are.
const CLOSING: Table = TableDefinition::new("channel.closing");
/// What proves an earned request, until it is settled.
const ENTRIES: Table = TableDefinition::new("channel.entries");
/// The settled batches that a reorganization can still take back, and what proves their requests.
const KEPT: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("channel.kept");
const PROOFS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("channel.kept.proofs");
/// The batch that is being settled, at most one.
const BATCH: TableDefinition<'static, (), &'static [u8]> = TableDefinition::new("channel.batch");

/// A batch on its way to the chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) batch: Batch,
    pub(super) certificate: Option<QuorumCertificate>,
}

/// A value as it is kept.
pub(crate) fn encode(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    rmp_serde::to_vec_named(value).map_err(StoreError::new)
}

/// A value as it was kept.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    rmp_serde::from_slice(bytes).map_err(StoreError::new)
}

/// What becomes of the batch that is being settled.
pub(super) enum BatchChange {
    Keep(Box<Pending>),
    Drop,
}

/// What becomes of a settled batch.
pub(super) enum KeptChange {
    /// With what proves its requests when it is new.
    Keep(u64, Box<SettledBatch>, Option<Vec<u8>>),
    Drop(u64),
}

/// Changes that belong together.
#[derive(Default)]
pub(super) struct Change {
    pub(super) accounts: Vec<Account>,
    pub(super) holds: Vec<Hold>,
    pub(super) entries: Vec<BatchEntry>,
    pub(super) batch: Option<BatchChange>,
    pub(super) kept: Vec<KeptChange>,
    pub(super) settled: Vec<RequestId>,
    pub(super) forgotten: Vec<RequestId>,
    pub(super) closing: Option<(B256, Closing)>,
}

impl Change {
    pub(super) fn apply(&self, transaction: &WriteTransaction) -> Result<(), StoreError> {
        let mut accounts = transaction.open_table(ACCOUNTS)?;
        for account in &self.accounts {
            accounts.insert(account.highest.voucher.channel.0, encode(account)?.as_slice())?;
        }
        let mut holds = transaction.open_table(HOLDS)?;
        for hold in &self.holds {
            holds.insert(hold.payment.voucher.request_id.0, encode(hold)?.as_slice())?;
        }
        for request in &self.forgotten {
            holds.remove(request.0)?;
        }
        if let Some((channel, closing)) = &self.closing {
            transaction.open_table(CLOSING)?.insert(channel.0, encode(closing)?.as_slice())?;
        }
        let mut entries = transaction.open_table(ENTRIES)?;
        for entry in &self.entries {
            entries.insert(entry.quote.request_id.0, encode(entry)?.as_slice())?;
        }
        for request in &self.settled {
            entries.remove(request.0)?;
        }
        if let Some(batch) = &self.batch {
            let mut table = transaction.open_table(BATCH)?;
            match batch {
                BatchChange::Keep(pending) => drop(table.insert((), encode(pending)?.as_slice())?),
                BatchChange::Drop => drop(table.remove(())?),
            }
        }
        for change in &self.kept {
            let (mut kept, mut proofs) = (transaction.open_table(KEPT)?, transaction.open_table(PROOFS)?);
            match change {
                KeptChange::Keep(number, batch, new) => {
                    kept.insert(number, encode(batch)?.as_slice())?;
                    if let Some(new) = new {
                        proofs.insert(number, new.as_slice())?;
                    }
                }
                KeptChange::Drop(number) => {
                    kept.remove(number)?;
                    proofs.remove(number)?;
                }
            }
        }
        Ok(())
    }
}

/// Everything in a table; nothing when there is none yet.
fn all<T: DeserializeOwned>(store: &Store, table: Table) -> Result<Vec<T>, StoreError> {
    store.read(|transaction| {
        let table = match transaction.open_table(table) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table?,
        };
        table.iter()?.map(|row| decode(row?.1.value())).collect()
    })
}

/// The book as it was kept.
pub(super) fn load(store: &Store) -> Result<ChannelState, StoreError> {
    let closing = store.read(|transaction| {
        let table = match transaction.open_table(CLOSING) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(HashMap::new()),
            table => table?,
        };
        let mut closing = HashMap::new();
        for row in table.iter()? {
            let (channel, stage) = row?;
            closing.insert(B256::from(channel.value()), decode(stage.value())?);
        }
        Ok(closing)
    })?;
    let kept = store.read(|transaction| {
        let table = match transaction.open_table(KEPT) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(Kept::default()),
            table => table?,
        };
        let mut kept = Vec::new();
        for row in table.iter()? {
            let (number, batch) = row?;
            kept.push((number.value(), decode(batch.value())?));
        }
        Ok(Kept::load(kept))
    })?;
    Ok(ChannelState::load(all(store, ACCOUNTS)?, all(store, HOLDS)?, closing, kept))
}

/// What proves the requests of a settled batch.
pub(super) fn proofs(store: &Store, number: u64) -> Result<Vec<BatchEntry>, StoreError> {
    store.read(|transaction| match transaction.open_table(PROOFS) {
        Err(TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
        table => table?.get(number)?.map_or_else(|| Ok(Vec::new()), |row| decode(row.value())),
    })
}

/// The batch that was being settled.
pub(super) fn pending(store: &Store) -> Result<Option<Pending>, StoreError> {
    store.read(|transaction| match transaction.open_table(BATCH) {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        table => table?.get(())?.map(|row| decode(row.value())).transpose(),
    })
}

/// What proves these requests. One that was earned a moment ago may not be there yet: it comes with the next batch.
pub(super) fn entries(store: &Store, requests: &[B256]) -> Result<Vec<BatchEntry>, StoreError> {
    store.read(|transaction| {
        let table = transaction.open_table(ENTRIES)?;
        let mut entries = Vec::with_capacity(requests.len());
        for request in requests {
            let Some(entry) = table.get(request.0)? else { continue };
            match decode(entry.value()) {
                Ok(entry) => entries.push(entry),
                // One that cannot be read holds nobody else up.
                Err(error) => tracing::error!(%request, %error, "what proves an earned request cannot be read"),
            }
        }
        Ok(entries)
    })
}
