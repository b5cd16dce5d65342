//! What a gateway keeps of its requests, so that it can go on after a crash. It acts on an event only once that is kept.

use std::collections::HashMap;

use ncn_core::{B256, Event, RequestId, Submission};

use crate::store::{Op, SharedStore, StoreError, Table, decode};

/// By request id.
const SUBMISSIONS: Table = "journal.submissions";
/// By request id and number, which begins at 0.
const EVENTS: Table = "journal.events";

/// The events of each request, in order. Every write may be repeated.
pub(crate) struct Journal(SharedStore);

/// A request, its salt, and what happened to it.
pub(crate) type Kept = (Submission, B256, Vec<Event>);

fn key(request_id: RequestId, number: u32) -> Vec<u8> {
    [&request_id[..], &number.to_be_bytes()].concat()
}

impl Journal {
    pub(crate) const fn new(store: SharedStore) -> Self {
        Self(store)
    }

    /// Keeps a new request, and the salt of its ticket.
    pub(crate) async fn begin(&self, request_id: RequestId, submission: Submission, salt: B256) -> Result<(), StoreError> {
        self.0.commit(vec![Op::put(SUBMISSIONS, request_id, &(submission, salt))?]).await
    }

    /// Keeps the `number`th event of a request.
    pub(crate) async fn append(&self, request_id: RequestId, number: u32, event: &Event) -> Result<(), StoreError> {
        self.0.commit(vec![Op::put(EVENTS, key(request_id, number), event)?]).await
    }

    /// Forgets a request.
    pub(crate) async fn forget(&self, request_id: RequestId) -> Result<(), StoreError> {
        let events = self.0.scan(EVENTS, request_id).await?;
        let mut ops = vec![Op::delete(SUBMISSIONS, request_id)];
        ops.extend(events.into_iter().map(|(key, _)| Op::delete(EVENTS, key)));
        self.0.commit(ops).await
    }

    /// All that is kept.
    pub(crate) async fn replay(&self) -> Result<Vec<Kept>, StoreError> {
        self.0
            .read(|store| {
                let mut events: HashMap<Vec<u8>, Vec<Event>> = HashMap::new();
                for (key, event) in store.scan(EVENTS, &[])? {
                    let request_id = key.get(..RequestId::len_bytes()).unwrap_or_default().to_vec();
                    events.entry(request_id).or_default().push(decode(EVENTS, &event)?);
                }
                let submissions = store.scan(SUBMISSIONS, &[])?.into_iter();
                submissions
                    .map(|(key, begun)| {
                        let (submission, salt) = decode(SUBMISSIONS, &begun)?;
                        Ok((submission, salt, events.remove(&key).unwrap_or_default()))
                    })
                    .collect()
            })
            .await
    }
}
