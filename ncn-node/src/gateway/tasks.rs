//! The requests that a gateway works on or remembers: how many there may be, and which is forgotten when there is no room for a new one.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use ncn_core::{Address, RequestId, State, TransportError};

use super::{GatewayOptions, redemption::RETRY_AFTER, task::Task};

/// How long a paid request is remembered at least, whatever others order: for a client that has lost its connection to come back for the output.
const LEAST_RETENTION: Duration = Duration::from_mins(1);

/// Orders of no more bytes are bounded by the number of requests alone, so that large ones do not take the place of small ones.
const SMALL_ORDER: usize = 8 << 10;
/// The most bytes of parameters of ended requests: their inputs are dropped, what was signed is not.
const MAX_ENDED_BYTES: usize = 32 << 20;

/// By request id, and by client. A task has a standing from when it comes until it is removed; its driver says when that may have changed.
#[derive(Default)]
pub(super) struct Tasks {
    all: HashMap<RequestId, (Arc<Task>, Standing)>,
    total: Standings,
    of_client: HashMap<Address, Standings>,
}

/// How much a gateway owes to a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It is not paid.
    Unpaid,
    /// It is paid, or was, and its client has not been told how it ended.
    Owed,
    /// Its client has been told how it ended.
    Ended { paid: bool, at: Instant },
}

/// How many requests have which standing, and those that have ended by when they may be forgotten: the unpaid ones come first.
#[derive(Default)]
struct Standings {
    unpaid: usize,
    /// Of these, the bytes of the orders that are not small.
    unpaid_bytes: usize,
    owed: usize,
    ended: BTreeSet<(Standing, RequestId)>,
    /// Of these, the bytes of their parameters.
    ended_bytes: usize,
}

impl Standing {
    fn of(task: &Task) -> Self {
        let (state, is_told) = (task.lifecycle().state(), task.is_told());
        match state {
            state if state.is_unpaid() => Self::Unpaid,
            State::Ended(outcome) if is_told => Self::Ended { paid: !outcome.is_unpaid(), at: Instant::now() },
            _ => Self::Owed,
        }
    }
}

/// How many bytes of an order count.
const fn counted(bytes: usize) -> usize {
    if bytes > SMALL_ORDER { bytes } else { 0 }
}

fn bytes(task: &Task) -> usize {
    counted(task.input_bytes + task.request.message.parameters.len())
}

impl Standings {
    fn len(&self) -> usize {
        self.unpaid + self.owed + self.ended.len()
    }

    fn add(&mut self, standing: Standing, task: &Task) {
        let request_id = task.request_id;
        match standing {
            Standing::Unpaid => {
                self.unpaid += 1;
                self.unpaid_bytes += bytes(task);
            }
            Standing::Owed => self.owed += 1,
            Standing::Ended { .. } => {
                self.ended_bytes += task.request.message.parameters.len();
                self.ended.insert((standing, request_id));
            }
        }
    }

    fn remove(&mut self, standing: Standing, task: &Task) {
        let request_id = task.request_id;
        match standing {
            Standing::Unpaid => {
                self.unpaid -= 1;
                self.unpaid_bytes -= bytes(task);
            }
            Standing::Owed => self.owed -= 1,
            Standing::Ended { .. } => {
                self.ended_bytes -= task.request.message.parameters.len();
                self.ended.remove(&(standing, request_id));
            }
        }
    }

    /// The one that matters least of those that have ended, when it may be forgotten: an unpaid one always, a paid one that ended by then.
    fn least(&self, paid_until: Option<Instant>) -> Option<RequestId> {
        let (standing, request_id) = self.ended.first()?;
        match standing {
            Standing::Ended { paid: true, at } if paid_until.is_none_or(|until| *at > until) => None,
            _ => Some(*request_id),
        }
    }
}

impl Tasks {
    pub(super) fn get(&self, request_id: &RequestId) -> Option<Arc<Task>> {
        self.all.get(request_id).map(|(task, _)| task.clone())
    }

    /// Takes one in that is not there.
    pub(super) fn insert(&mut self, task: Arc<Task>) {
        let standing = Standing::of(&task);
        self.total.add(standing, &task);
        self.of_client.entry(task.client()).or_default().add(standing, &task);
        self.all.insert(task.request_id, (task, standing));
    }

    /// The task's state may be another one.
    pub(super) fn update(&mut self, task: &Task) {
        // Not one that was removed, nor one that has ended and has its time.
        let known = self.all.get(&task.request_id).map(|(_, standing)| *standing);
        let same = |known: Standing| mem::discriminant(&known) == mem::discriminant(&Standing::of(task));
        if known.is_some_and(|known| !same(known))
            && let Some(task) = self.remove(task.request_id)
        {
            self.insert(task);
        }
    }

    pub(super) fn remove(&mut self, request_id: RequestId) -> Option<Arc<Task>> {
        let (task, standing) = self.all.remove(&request_id)?;
        self.total.remove(standing, &task);
        if let Some(of_client) = self.of_client.get_mut(&task.client()) {
            of_client.remove(standing, &task);
            if of_client.len() == 0 {
                self.of_client.remove(&task.client());
            }
        }
        Some(task)
    }

    /// Those that have not ended: at most so many.
    pub(super) fn pending(&self, most: usize) -> BTreeSet<RequestId> {
        let pending = self.all().filter(|task| !matches!(task.lifecycle().state(), State::Ended(_)));
        pending.map(|task| task.request_id).take(most).collect()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.all.values().map(|(task, _)| task)
    }

    /// Whether some may still be paid.
    pub(super) const fn has_unpaid(&self) -> bool {
        self.total.unpaid > 0
    }

    /// How many are paid, and have not told how they ended.
    pub(super) const fn owed(&self) -> usize {
        self.total.owed
    }

    /// Whether there is room for another request of this client, whose inputs and parameters have so many bytes, and which one has to go for it. A client's own one goes when it has too many. When all
    /// have, what has ended unpaid goes, since it cost nothing; what was paid, once its client had time to fetch it.
    pub(super) fn room(
        &self,
        client: &Address,
        bytes: usize,
        options: &GatewayOptions,
    ) -> Result<Option<RequestId>, TransportError> {
        let now = Instant::now();
        let of_client = self.of_client.get(client);
        let of_client_unpaid = of_client.map_or(0, |of_client| of_client.unpaid);
        if of_client_unpaid >= options.max_unpaid_of_one || self.total.unpaid >= options.max_unpaid {
            return Err(busy());
        }
        let (bytes, of_client_bytes) = (counted(bytes), of_client.map_or(0, |of_client| of_client.unpaid_bytes));
        let most_bytes = options.max_unpaid_bytes;
        if bytes > 0 && (self.total.unpaid_bytes + bytes > most_bytes || of_client_bytes + bytes > most_bytes / 4) {
            return Err(busy());
        }
        let goes = match of_client {
            Some(of_client) if of_client.len() >= options.max_tasks_of_one => of_client.least(Some(now)),
            _ if self.total.len() >= options.max_tasks || self.total.ended_bytes > MAX_ENDED_BYTES => {
                self.total.least(now.checked_sub(LEAST_RETENTION))
            }
            _ => return Ok(None),
        };
        goes.map(Some).ok_or_else(busy)
    }
}

/// The error where there is no room.
pub(super) const fn busy() -> TransportError {
    TransportError::Overloaded { retry_after: RETRY_AFTER }
}

#[cfg(test)]
mod tests {
    use ncn_core::{Amount, B256, Event, InferenceRequest, Outcome, Signature, Signed, Submission, TaskEvent, Values};

    use super::*;

    fn options() -> GatewayOptions {
        GatewayOptions { max_tasks: 5, max_tasks_of_one: 4, max_unpaid_of_one: 3, ..GatewayOptions::default() }
    }

    fn id(number: u8) -> RequestId {
        B256::repeat_byte(number)
    }

    fn task(number: u8, client: u8) -> Arc<Task> {
        task_with(number, client, 0)
    }

    fn task_with(number: u8, client: u8, bytes: usize) -> Arc<Task> {
        task_that(number, client, bytes, "{}".into())
    }

    fn task_that(number: u8, client: u8, bytes: usize, parameters: String) -> Arc<Task> {
        let message = InferenceRequest {
            client: Address::repeat_byte(client),
            subnet: B256::ZERO,
            model_digest: B256::ZERO,
            input_hash: B256::ZERO,
            parameters,
            max_price: Amount::new(1),
            deadline: 0,
            nonce: B256::ZERO,
            draw: B256::ZERO,
        };
        let inputs = if bytes == 0 { Values::new() } else { [("text", "x".repeat(bytes).as_str())].into() };
        let signature = [&[1; 64][..], &[27]].concat();
        let request = Signed { message, signature: Signature::try_from(&signature[..]).unwrap() };
        Task::new(id(number), Submission { request, inputs, ticket: B256::ZERO }, B256::ZERO)
    }

    /// It ends without a payment, and its client is told.
    fn refuse(tasks: &mut Tasks, number: u8) {
        let task = tasks.get(&id(number)).unwrap();
        task.apply(Event::Refused("no node".into())).unwrap();
        tasks.update(&task);
        assert!(tasks.owed() == 1 && tasks.total.ended.iter().all(|(_, ended)| *ended != id(number)), "it is not told");
        task.publish(TaskEvent::Failed { outcome: Outcome::Refused, reason: "no node".into() });
        tasks.update(&task);
    }

    fn room(tasks: &Tasks, client: u8) -> Result<Option<RequestId>, TransportError> {
        tasks.room(&Address::repeat_byte(client), 0, &options())
    }

    #[test]
    fn what_has_ended_gives_way_the_oldest_first() {
        let mut tasks = Tasks::default();
        for number in 0..3 {
            assert_eq!(room(&tasks, 1), Ok(None));
            tasks.insert(task(number, 1));
        }
        assert_eq!(room(&tasks, 1), Err(busy()), "too many of one client are not paid");
        refuse(&mut tasks, 1);
        refuse(&mut tasks, 0);
        assert_eq!((room(&tasks, 1), tasks.has_unpaid(), tasks.owed()), (Ok(None), true, 0));
        tasks.insert(task(3, 1));
        assert_eq!(room(&tasks, 1), Ok(Some(id(1))), "the client has too many: its own, that ended first");
        assert_eq!(room(&tasks, 2), Ok(None));
        tasks.insert(task(4, 2));
        assert_eq!(room(&tasks, 2), Ok(Some(id(1))), "all have too many");
        // To look again changes nothing.
        tasks.update(&tasks.get(&id(1)).unwrap());
        assert_eq!(tasks.remove(room(&tasks, 2).unwrap().unwrap()).unwrap().request_id, id(1));
        tasks.insert(task(5, 2));
        assert_eq!(tasks.remove(room(&tasks, 2).unwrap().unwrap()).unwrap().request_id, id(0));
        tasks.insert(task(6, 2));
        assert_eq!(room(&tasks, 3), Err(busy()), "nothing has ended");
        (2..=6).for_each(|number| drop(tasks.remove(id(number))));
        assert!(tasks.all.is_empty() && tasks.of_client.is_empty() && tasks.total.len() == 0);
    }

    #[test]
    fn large_inputs_that_nobody_has_paid_for_are_bounded_by_their_bytes() {
        let options = GatewayOptions { max_unpaid_bytes: 4 << 20, ..GatewayOptions::default() };
        let mut tasks = Tasks::default();
        let room = |tasks: &Tasks, client, bytes| tasks.room(&Address::repeat_byte(client), bytes, &options);
        for client in 0..4 {
            assert_eq!(room(&tasks, client, 1 << 20), Ok(None));
            tasks.insert(task_with(client, client, (1 << 20) - 200));
            assert_eq!(room(&tasks, client, SMALL_ORDER + 1), Err(busy()), "of this client");
        }
        assert_eq!(room(&tasks, 5, SMALL_ORDER + 1), Err(busy()), "of all");
        assert_eq!(room(&tasks, 0, SMALL_ORDER), Ok(None), "small ones have their place");
        refuse(&mut tasks, 0);
        assert_eq!(room(&tasks, 0, 1 << 20), Ok(None), "what has ended has no inputs any more");
        (0..4).for_each(|number| drop(tasks.remove(id(number))));
        assert_eq!(tasks.total.unpaid_bytes, 0);
    }

    #[test]
    fn what_ended_requests_keep_is_bounded_by_its_bytes() {
        let mut tasks = Tasks::default();
        tasks.insert(task_that(0, 0, 0, " ".repeat(MAX_ENDED_BYTES)));
        refuse(&mut tasks, 0);
        assert_eq!(room(&tasks, 1), Ok(None));
        tasks.insert(task(1, 1));
        refuse(&mut tasks, 1);
        assert_eq!(room(&tasks, 1), Ok(Some(id(0))));
        drop(tasks.remove(id(0)));
        assert_eq!((room(&tasks, 1), tasks.total.ended_bytes), (Ok(None), 2));
    }

    #[test]
    fn what_was_paid_stays_while_its_client_may_come_for_it() {
        let mut standings = Standings::default();
        let (before, at) = (Instant::now(), Instant::now() + Duration::from_millis(1));
        standings.add(Standing::Ended { paid: true, at }, &task(1, 0));
        assert_eq!(standings.least(None), None);
        assert_eq!(standings.least(Some(before)), None);
        assert_eq!(standings.least(Some(at)), Some(id(1)));
        let later = at + LEAST_RETENTION;
        standings.add(Standing::Ended { paid: false, at: later }, &task(2, 0));
        assert_eq!(standings.least(Some(later)), Some(id(2)), "what nobody paid for goes before it");
        standings.remove(Standing::Ended { paid: false, at: later }, &task(2, 0));
        standings.add(Standing::Ended { paid: true, at: before }, &task(3, 0));
        assert_eq!(standings.least(Some(at)), Some(id(3)));
    }
}
