//! The requests that a gateway works on or remembers, and how many of them one client may have.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ncn_core::{Address, RequestId, State, TransportError};

use super::{GatewayOptions, redemption::RETRY_AFTER, task::Task};

/// By request id, and by client.
#[derive(Default)]
pub(super) struct Tasks {
    all: HashMap<RequestId, Arc<Task>>,
    of_client: HashMap<Address, HashSet<RequestId>>,
}

impl Tasks {
    pub(super) fn get(&self, request_id: &RequestId) -> Option<Arc<Task>> {
        self.all.get(request_id).cloned()
    }

    pub(super) fn insert(&mut self, task: Arc<Task>) {
        self.of_client.entry(task.client()).or_default().insert(task.request_id);
        self.all.insert(task.request_id, task);
    }

    pub(super) fn remove(&mut self, task: &Task) {
        self.all.remove(&task.request_id);
        if let Some(requests) = self.of_client.get_mut(&task.client()) {
            requests.remove(&task.request_id);
            if requests.is_empty() {
                self.of_client.remove(&task.client());
            }
        }
    }

    /// Those that have not ended: at most so many.
    pub(super) fn pending(&self, most: usize) -> BTreeSet<RequestId> {
        let pending = self.all.values().filter(|task| !matches!(task.lifecycle().state(), State::Ended(_)));
        pending.map(|task| task.request_id).take(most).collect()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.all.values()
    }

    /// Whether some may still be paid.
    pub(super) fn has_unpaid(&self) -> bool {
        self.all.values().any(|task| is_unpaid(task.lifecycle().state()))
    }

    /// How many are paid, and have not told how they ended.
    pub(super) fn owed(&self) -> usize {
        self.all.values().filter(|task| !is_unpaid(task.lifecycle().state()) && !task.is_told()).count()
    }

    /// Whether there is room for another request of this client.
    pub(super) fn room(&self, client: &Address, options: &GatewayOptions) -> Result<(), TransportError> {
        let unpaid = |request: &&RequestId| {
            let state = self.all.get(*request).map(|task| task.lifecycle().state());
            state.is_some_and(is_unpaid)
        };
        let full = self.all.len() >= options.max_tasks
            || self.of_client.get(client).is_some_and(|requests| {
                requests.len() >= options.max_tasks_of_one || requests.iter().filter(unpaid).count() >= options.max_unpaid_of_one
            });
        if full { Err(busy()) } else { Ok(()) }
    }
}

/// The error where there is no room.
pub(super) const fn busy() -> TransportError {
    TransportError::Overloaded { retry_after: RETRY_AFTER }
}

const fn is_unpaid(state: State) -> bool {
    matches!(state, State::Reserving | State::Preprocessing | State::AwaitingPayment)
}
