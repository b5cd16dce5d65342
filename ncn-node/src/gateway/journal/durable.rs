//! A journal on disk.

use async_trait::async_trait;
use ncn_core::{Event, RequestId, Submission};
use redb::{ReadableTable as _, TableDefinition, TableError};

use super::{Journal, JournalError};
use crate::{
    channel::{decode, encode},
    store::{Store, StoreError},
};

const SUBMISSIONS: TableDefinition<'static, [u8; 32], &'static [u8]> = TableDefinition::new("journal.submissions");
const EVENTS: TableDefinition<'static, ([u8; 32], u32), &'static [u8]> = TableDefinition::new("journal.events");

/// A journal in a node's store: it outlives the process and the machine's power.
#[derive(Clone)]
pub struct StoredJournal(Store);

impl StoredJournal {
    /// The journal in this store.
    pub const fn new(store: Store) -> Self {
        Self(store)
    }
}

impl From<StoreError> for JournalError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

#[async_trait]
impl Journal for StoredJournal {
    async fn begin(&self, request_id: RequestId, submission: &Submission) -> Result<(), JournalError> {
        let submission = encode(submission)?;
        let begin = move |transaction: &redb::WriteTransaction| {
            let mut table = transaction.open_table(SUBMISSIONS)?;
            if table.get(request_id.0)?.is_none() {
                table.insert(request_id.0, submission.as_slice())?;
            }
            Ok(())
        };
        Ok(self.0.write(begin).await?)
    }

    async fn append(&self, request_id: RequestId, event: &Event) -> Result<(), JournalError> {
        let event = encode(event)?;
        let append = move |transaction: &redb::WriteTransaction| {
            let mut table = transaction.open_table(EVENTS)?;
            let last = table.range((request_id.0, 0)..=(request_id.0, u32::MAX))?.next_back();
            let next = last.transpose()?.map_or(0, |(key, _)| key.value().1.saturating_add(1));
            table.insert((request_id.0, next), event.as_slice())?;
            Ok(())
        };
        Ok(self.0.write(append).await?)
    }

    async fn forget(&self, request_id: RequestId) -> Result<(), JournalError> {
        let forget = move |transaction: &redb::WriteTransaction| {
            transaction.open_table(SUBMISSIONS)?.remove(request_id.0)?;
            let mut events = transaction.open_table(EVENTS)?;
            events.retain_in((request_id.0, 0)..=(request_id.0, u32::MAX), |_, _| false)?;
            Ok(())
        };
        Ok(self.0.write(forget).await?)
    }

    async fn replay(&self) -> Result<Vec<(Submission, Vec<Event>)>, JournalError> {
        let read = |transaction: &redb::ReadTransaction| {
            let submissions = match transaction.open_table(SUBMISSIONS) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                table => table?,
            };
            let events = match transaction.open_table(EVENTS) {
                Err(TableError::TableDoesNotExist(_)) => None,
                table => Some(table?),
            };
            let mut all = Vec::new();
            for row in submissions.iter()? {
                let (id, submission) = row?;
                let mut happened = Vec::new();
                if let Some(events) = &events {
                    for row in events.range((id.value(), 0)..=(id.value(), u32::MAX))? {
                        happened.push(decode(row?.1.value())?);
                    }
                }
                all.push((decode(submission.value())?, happened));
            }
            Ok(all)
        };
        Ok(self.0.read(read)?)
    }
}
