//! Where a gateway keeps what happened, so that it can go on after a crash.

mod durable;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
pub use durable::StoredJournal;
use ncn_core::{Event, RequestId, Submission};

/// Why something could not be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct JournalError(pub String);

/// The events of each request, in order.
///
/// # For the implementer
/// `begin` and `append` return once what they were given survives a crash. A gateway acts on an event only after that.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Keeps a new request; does nothing when it is kept already.
    async fn begin(&self, request_id: RequestId, submission: &Submission) -> Result<(), JournalError>;

    /// Keeps what happened to it.
    async fn append(&self, request_id: RequestId, event: &Event) -> Result<(), JournalError>;

    /// Lets go of a request.
    async fn forget(&self, request_id: RequestId) -> Result<(), JournalError>;

    /// All that is kept.
    async fn replay(&self) -> Result<Vec<(Submission, Vec<Event>)>, JournalError>;
}

/// A journal in memory: it outlives a gateway, not the process.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<HashMap<RequestId, (Submission, Vec<Event>)>>);

impl MemoryJournal {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, (Submission, Vec<Event>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn begin(&self, request_id: RequestId, submission: &Submission) -> Result<(), JournalError> {
        self.lock().entry(request_id).or_insert_with(|| (submission.clone(), Vec::new()));
        Ok(())
    }

    async fn append(&self, request_id: RequestId, event: &Event) -> Result<(), JournalError> {
        let mut kept = self.lock();
        let (_, events) = kept.get_mut(&request_id).ok_or_else(|| JournalError(format!("{request_id} was never begun")))?;
        events.push(event.clone());
        Ok(())
    }

    async fn forget(&self, request_id: RequestId) -> Result<(), JournalError> {
        self.lock().remove(&request_id);
        Ok(())
    }

    async fn replay(&self) -> Result<Vec<(Submission, Vec<Event>)>, JournalError> {
        Ok(self.lock().values().cloned().collect())
    }
}
