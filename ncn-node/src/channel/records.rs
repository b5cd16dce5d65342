//! Where the state is kept.

use std::collections::HashMap;

use ncn_core::{
    B256, QuorumCertificate, RequestId,
    channel::{Batch, BatchEntry},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    kept::{Kept, SettledBatch},
    state::{Account, ChannelState, Closing, Hold, Judged},
};
use crate::store::{Op, Row, Store, StoreError, Table, decode, encode};

/// By channel.
const ACCOUNTS: Table = "channel.accounts";
/// By request.
const HOLDS: Table = "channel.holds";
/// The channels that are being closed, or are.
const CLOSING: Table = "channel.closing";
/// What proves an earned request, until it is settled. By request.
const ENTRIES: Table = "channel.entries";
/// The settled batches that a reorganization can still take back, and what proves their requests. By number.
const KEPT: Table = "channel.kept";
const PROOFS: Table = "channel.kept.proofs";
/// The batch that is being settled, at most one, under no key.
const BATCH: Table = "channel.batch";

/// A batch on its way to the chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) batch: Batch,
    /// By which its channels are charged, in the order of the charges.
    pub(super) vouchers: Vec<Judged>,
    pub(super) certificate: Option<QuorumCertificate>,
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
    /// The rows that it changes.
    pub(super) fn ops(&self) -> Result<Vec<Op>, StoreError> {
        let mut ops = Vec::new();
        for account in &self.accounts {
            ops.push(Op::put(ACCOUNTS, account.highest.payment.voucher.channel, account)?);
        }
        for hold in &self.holds {
            ops.push(Op::put(HOLDS, hold.payment.voucher.request_id, hold)?);
        }
        ops.extend(self.forgotten.iter().map(|request| Op::delete(HOLDS, request)));
        if let Some((channel, closing)) = &self.closing {
            ops.push(Op::put(CLOSING, channel, closing)?);
        }
        for entry in &self.entries {
            ops.push(Op::put(ENTRIES, entry.quote.request_id, entry)?);
        }
        ops.extend(self.settled.iter().map(|request| Op::delete(ENTRIES, request)));
        match &self.batch {
            Some(BatchChange::Keep(pending)) => ops.push(Op::put(BATCH, [], pending)?),
            Some(BatchChange::Drop) => ops.push(Op::delete(BATCH, [])),
            None => {}
        }
        for change in &self.kept {
            match change {
                KeptChange::Keep(number, batch, new) => {
                    ops.push(Op::put(KEPT, number.to_be_bytes(), batch)?);
                    if let Some(entries) = new {
                        ops.push(Op::Put { table: PROOFS, key: number.to_be_bytes().into(), value: entries.clone() });
                    }
                }
                KeptChange::Drop(number) => {
                    ops.extend([KEPT, PROOFS].map(|table| Op::delete(table, number.to_be_bytes())));
                }
            }
        }
        Ok(ops)
    }
}

/// What proves the requests of a batch, as it is kept.
pub(super) fn encode_proofs(entries: &[BatchEntry]) -> Result<Vec<u8>, StoreError> {
    encode(PROOFS, &entries)
}

/// A table's values with their keys, which have this form.
fn all<K: for<'a> TryFrom<&'a [u8]>, T: DeserializeOwned>(store: &dyn Store, table: Table) -> Result<Vec<(K, T)>, StoreError> {
    let read = |(key, value): Row| {
        let key = K::try_from(&key).map_err(|_| StoreError::Key(table))?;
        Ok((key, decode(table, &value)?))
    };
    store.scan(table, &[])?.into_iter().map(read).collect()
}

/// The only value under a key.
fn one<T: DeserializeOwned>(store: &dyn Store, table: Table, key: &[u8]) -> Result<Option<T>, StoreError> {
    store.scan(table, key)?.first().map(|(_, value)| decode(table, value)).transpose()
}

/// The state as it was kept.
pub(super) fn load(store: &dyn Store) -> Result<ChannelState, StoreError> {
    let closing: HashMap<B256, Closing> = all(store, CLOSING)?.into_iter().collect();
    let kept = all(store, KEPT)?.into_iter().map(|(number, batch): ([u8; 8], SettledBatch)| (u64::from_be_bytes(number), batch));
    let accounts = all::<B256, Account>(store, ACCOUNTS)?.into_iter().map(|(_, account)| account).collect();
    let holds = all::<B256, Hold>(store, HOLDS)?.into_iter().map(|(_, hold)| hold).collect();
    Ok(ChannelState::load(accounts, holds, closing, Kept::load(kept)))
}

/// What proves the requests of a settled batch.
pub(super) fn proofs(store: &dyn Store, number: u64) -> Result<Vec<BatchEntry>, StoreError> {
    Ok(one(store, PROOFS, &number.to_be_bytes())?.unwrap_or_default())
}

/// The batch that was being settled.
pub(super) fn pending(store: &dyn Store) -> Result<Option<Pending>, StoreError> {
    one(store, BATCH, &[])
}

/// What proves these requests. One that was earned a moment ago may not be there yet: it comes with the next batch.
pub(super) fn entries(store: &dyn Store, requests: &[B256]) -> Result<Vec<BatchEntry>, StoreError> {
    let mut entries = Vec::with_capacity(requests.len());
    for request in requests {
        match one(store, ENTRIES, &request[..]) {
            Ok(entry) => entries.extend(entry),
            // One that cannot be read holds nobody else up.
            Err(error @ StoreError::Row { .. }) => {
                tracing::error!(%request, %error, "what proves an earned request cannot be read");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}
