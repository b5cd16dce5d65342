//! One request at its gateway: what is known of it, and who is told.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use ncn_core::{
    Address, Amount, B256, Effect, Event, InferenceRequest, Lifecycle, Outcome, Quote, Receipt, RequestId, Signature, Signed,
    State, Step, StepTiming, Submission, TaskEvent, TaskStatus, Update, Values, lifecycle::Unexpected, transport::Updates,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

mod progress;

use super::execution::{Prefix, Tail};
pub(super) use progress::Progress;

/// How many events from outside wait for the driver.
const QUEUE: usize = 16;
/// How many bytes of a streamed output's parts are remembered for those who follow late; all of it is in the final output. With the
/// output, 8 MiB, and until it ends with the inputs, 8 MiB, a request is remembered in at most 20 MiB: all of `GatewayOptions::max_tasks` in 200 GB, if as
/// many are paid for within `GatewayOptions::retention`. What is not paid for is within `GatewayOptions::max_unpaid_bytes`.
const MAX_CHUNK_BYTES: usize = 4 << 20;
/// What a part costs beside its values: mostly the map that they are in.
const CHUNK_OVERHEAD: usize = 1 << 10;

/// One request. The driver alone changes [`Progress`]; everyone else watches.
pub(super) struct Task {
    pub(super) request_id: RequestId,
    /// The order.
    pub(super) request: Signed<InferenceRequest>,
    /// Empty once the request has ended.
    inputs: Mutex<Arc<Values>>,
    pub(super) input_bytes: usize,
    ticket: B256,
    /// The gateway's part in the draw of the committee.
    pub(super) salt: B256,
    /// Since when this process knows of it.
    pub(super) began: Instant,
    progress: Mutex<Progress>,
    has_forgotten: bool,
    /// How many events the journal has.
    recorded: AtomicU32,
    /// The index of the first news.
    first: u64,
    news: Mutex<Vec<TaskEvent>>,
    /// Ticks with every change of `progress` or `news`.
    changed: watch::Sender<()>,
    /// The newest step that was reported, by its number.
    step: AtomicU8,
    /// How long it took, once it has ended.
    took: Mutex<Option<Duration>>,
    events: mpsc::Sender<Event>,
    inbox: Mutex<Option<mpsc::Receiver<Event>>>,
    hinted: Notify,
    chunk_bytes: AtomicUsize,
    tried: Mutex<BTreeSet<Address>>,
    /// The longest beginning of the output that a node has signed and not finished.
    prefix: Mutex<Option<Prefix>>,
    /// What is there of the output cannot be continued.
    anew: AtomicBool,
    /// What was streamed of an output whose last part its node keeps until it is paid for.
    tail: Mutex<Option<Tail>>,
    /// The client wants no more of the output.
    stop: CancellationToken,
    /// Another request has its place.
    displaced: CancellationToken,
    /// The gateway has brought the payment to the chain.
    relayed: AtomicBool,
    /// The client's word that its payment may come back at once.
    consent: watch::Sender<Option<Signature>>,
}

impl Task {
    pub(super) fn new(request_id: RequestId, submission: Submission, salt: B256) -> Arc<Self> {
        Self::begin(request_id, submission, salt, Vec::new(), 0)
    }

    /// A task as its events left it.
    pub(super) fn recover(request_id: RequestId, submission: Submission, salt: B256, events: Vec<Event>) -> Arc<Self> {
        // Its news are not those that were told before, and have other indices, whenever that was.
        let first = B256::random().0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes) >> 2);
        Self::begin(request_id, submission, salt, events, first)
    }

    fn begin(request_id: RequestId, submission: Submission, salt: B256, events: Vec<Event>, first: u64) -> Arc<Self> {
        let mut progress = Progress::default();
        let recorded = AtomicU32::new(u32::try_from(events.len()).unwrap_or(u32::MAX));
        for event in events {
            // Only events that meant something were kept.
            if let Err(error) = progress.apply(event) {
                tracing::error!(request = %request_id, %error, "the journal holds an event that makes no sense");
            }
        }
        let (events, inbox) = mpsc::channel(QUEUE);
        let Submission { request, inputs, ticket } = submission;
        Arc::new(Self {
            request_id,
            request,
            input_bytes: inputs.size(),
            inputs: Mutex::new(Arc::new(inputs)),
            ticket,
            salt,
            began: Instant::now(),
            has_forgotten: progress.streamed,
            progress: Mutex::new(progress),
            recorded,
            first,
            news: Mutex::default(),
            changed: watch::Sender::new(()),
            step: AtomicU8::new(0),
            took: Mutex::default(),
            events,
            inbox: Mutex::new(Some(inbox)),
            hinted: Notify::new(),
            chunk_bytes: AtomicUsize::new(0),
            tried: Mutex::default(),
            prefix: Mutex::default(),
            anew: AtomicBool::new(false),
            tail: Mutex::default(),
            stop: CancellationToken::new(),
            displaced: CancellationToken::new(),
            relayed: AtomicBool::new(false),
            consent: watch::Sender::default(),
        })
    }

    /// How many events the journal has.
    pub(super) fn recorded(&self) -> u32 {
        self.recorded.load(Ordering::Relaxed)
    }

    /// The journal has another event.
    pub(super) fn record(&self) {
        self.recorded.fetch_add(1, Ordering::Relaxed);
    }

    /// Who ordered it.
    pub(super) fn client(&self) -> Address {
        self.request.message.client
    }

    /// What the model is asked about.
    pub(super) fn inputs(&self) -> Arc<Values> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the inputs, which nobody needs any more.
    pub(super) fn forget_inputs(&self) {
        *self.inputs.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    /// What the client has sent, as far as it is there.
    pub(super) fn submission(&self) -> Submission {
        Submission { request: self.request.clone(), inputs: (*self.inputs()).clone(), ticket: self.ticket }
    }

    /// The gateway has brought the payment to the chain.
    pub(super) fn relay(&self) {
        self.relayed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_relayed(&self) -> bool {
        self.relayed.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self) -> MutexGuard<'_, Vec<TaskEvent>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver's end of [`Task::tell`]; there is one driver.
    pub(super) fn inbox(&self) -> Option<mpsc::Receiver<Event>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where it is now.
    pub(super) fn progress(&self) -> Progress {
        self.lock().clone()
    }

    pub(super) fn lifecycle(&self) -> Lifecycle {
        self.lock().lifecycle
    }

    pub(super) fn quote(&self) -> Option<Quote> {
        self.lock().quote.clone()
    }

    /// Takes an event in that the journal has.
    pub(super) fn apply(&self, event: Event) -> Result<Effect, Unexpected> {
        let applied = self.lock().apply(event);
        self.changed.send_replace(());
        applied
    }

    /// Lets the driver know of something that happened elsewhere.
    pub(super) fn tell(&self, event: Event) {
        // A full queue holds such an event already; a closed one means that the driver is done.
        let _ = self.events.try_send(event);
    }

    /// Remembers that a node was asked to run it, so that the next attempt asks another.
    pub(super) fn try_node(&self, node: Address) {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
    }

    pub(super) fn has_tried(&self, node: Address) -> bool {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    pub(super) fn tried(&self) -> BTreeSet<Address> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the beginning of an output, unless a longer one is kept.
    pub(super) fn keep_prefix(&self, prefix: Prefix) {
        let mut kept = self.prefix.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|kept| kept.parts() < prefix.parts()) {
            *kept = Some(prefix);
        }
    }

    /// The longest beginning of the output that a node has signed.
    pub(super) fn prefix(&self) -> Option<Prefix> {
        self.prefix.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps what was streamed of an output whose last part is still to come.
    pub(super) fn keep_tail(&self, tail: Tail) {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner) = Some(tail);
    }

    /// What was streamed of the output, unless that was before a restart.
    pub(super) fn tail(&self) -> Option<Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The next node begins anew, since one could not go on.
    pub(super) fn begin_anew(&self) {
        self.anew.store(true, Ordering::Relaxed);
    }

    pub(super) fn begins_anew(&self) -> bool {
        self.anew.load(Ordering::Relaxed)
    }

    /// The client wants no more of the output than it has.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits until the client wants no more.
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Cancelled once another request has its place, which has ended.
    pub(super) const fn displaced(&self) -> &CancellationToken {
        &self.displaced
    }

    /// The client agrees that its payment comes back.
    pub(super) fn agree(&self, consent: Signature) {
        self.consent.send_replace(Some(consent));
    }

    /// The client's word that its payment may come back at once, when it has given it.
    pub(super) fn consent(&self) -> Option<Signature> {
        *self.consent.borrow()
    }

    /// Waits for the client's word.
    pub(super) async fn agreed(&self) {
        let mut consent = self.consent.subscribe();
        // The task holds the other end.
        let _ = consent.wait_for(Option::is_some).await;
    }

    /// Says that the chain may hold the payment.
    pub(super) fn hint(&self) {
        self.hinted.notify_one();
    }

    /// Waits for a hint.
    pub(super) async fn hinted(&self) {
        self.hinted.notified().await;
    }

    /// Tells whoever follows.
    pub(super) fn publish(&self, update: TaskEvent) {
        let size = match &update {
            TaskEvent::Chunk(chunk) => chunk.values.size() + CHUNK_OVERHEAD,
            TaskEvent::Checkpoint(_) => CHUNK_OVERHEAD,
            _ => 0,
        };
        // Once a part was left out, none of the rest makes sense.
        if size > 0 && self.chunk_bytes.fetch_add(size, Ordering::Relaxed) + size > MAX_CHUNK_BYTES {
            return;
        }
        let mut news = self.news();
        // A driver that was started again may finish again: the end is told once.
        if !news.last().is_some_and(TaskEvent::is_last) || !update.is_last() {
            news.push(update);
        }
        drop(news);
        self.changed.send_replace(());
    }

    /// Tells of a step, to the microsecond: what is told has the same form in this process as on a wire.
    pub(super) fn report(&self, step: Step, actor: Address, took: Duration) {
        self.step.store(step as u8, Ordering::Relaxed);
        let took = Duration::from_micros(took.as_micros().try_into().unwrap_or(u64::MAX));
        self.publish(TaskEvent::Step(StepTiming { step, actor, took }));
    }

    /// The steps that were reported.
    pub(super) fn steps(&self) -> Vec<StepTiming> {
        let step = |event: &TaskEvent| if let TaskEvent::Step(timing) = event { Some(*timing) } else { None };
        self.news().iter().filter_map(step).collect()
    }

    /// The newest step that was reported.
    pub(super) fn last_step(&self) -> Option<Step> {
        Step::from_code(self.step.load(Ordering::Relaxed))
    }

    /// In which of the twelve steps it is; in none when it was given up.
    pub(super) fn step(&self) -> Option<Step> {
        let state = self.lifecycle().state();
        let least = match state {
            State::Reserving => Step::Discover,
            State::Preprocessing => Step::Preprocessing,
            State::AwaitingPayment => Step::Pay,
            State::Executing => Step::Dispatch,
            State::Completing => Step::Completion,
            State::Settling => Step::Finalize,
            State::Ended(Outcome::Completed) => Step::Deliver,
            _ => return None,
        };
        let next = Step::from_code(self.step.load(Ordering::Relaxed) + 1);
        Some(next.map_or(least, |next| next.max(least)))
    }

    /// Which node serves it, as far as is known.
    pub(super) fn compute(&self) -> Option<Address> {
        let progress = self.lock();
        let word = progress.dispatch.as_ref().map(|word| word.message.compute);
        word.or_else(|| progress.quote.as_ref().map(|quote| quote.compute))
    }

    /// The most that it costs, once it has a quote.
    pub(super) fn total(&self) -> Amount {
        self.lock().quote.as_ref().map_or(Amount::ZERO, |quote| quote.total)
    }

    /// It has ended, after so long.
    pub(super) fn end(&self, took: Duration) {
        *self.took.lock().unwrap_or_else(PoisonError::into_inner) = Some(took);
    }

    /// How long it took, once it has ended in this process.
    pub(super) fn took(&self) -> Option<Duration> {
        *self.took.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it took, once it has ended, or has been there.
    pub(super) fn age(&self) -> Option<Duration> {
        let has_ended = matches!(self.lifecycle().state(), State::Ended(_));
        if has_ended { self.took() } else { Some(self.began.elapsed()) }
    }

    /// The receipt, once it is delivered.
    pub(super) fn receipt(&self) -> Option<Receipt> {
        match self.news().last() {
            Some(TaskEvent::Delivered { receipt, .. }) => Some((**receipt).clone()),
            _ => None,
        }
    }

    /// Whether its last news is told.
    pub(super) fn is_told(&self) -> bool {
        self.news().last().is_some_and(TaskEvent::is_last)
    }

    /// Whether a part of the output may have been given away.
    pub(super) fn has_streamed(&self) -> bool {
        self.lock().streamed
    }

    /// Whether what was given away, and what its node can claim for it, is no longer known: a restart has forgotten it.
    pub(super) const fn has_forgotten(&self) -> bool {
        self.has_forgotten
    }

    /// Forgets the end that was told: late money has come, and another end will follow.
    pub(super) fn reopen(&self) {
        self.news().retain(|update| !update.is_last());
    }

    pub(super) fn status(&self) -> TaskStatus {
        let progress = self.lock();
        let approved = progress.preprocessing.is_some();
        TaskStatus {
            request_id: self.request_id,
            state: progress.lifecycle.state(),
            quote: progress.quote.clone().filter(|_| approved),
            preprocessing: progress.preprocessing.clone(),
            failure: progress.failure.clone(),
        }
    }

    /// Waits for a state.
    pub(super) async fn wait_for(&self, fits: impl Fn(State) -> bool) -> TaskStatus {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let status = self.status();
            if fits(status.state) || changed.changed().await.is_err() {
                return status;
            }
        }
    }

    /// Whether there are news at this place, or they are the next ones to come.
    fn will_have(&self, place: usize) -> bool {
        let news = self.news();
        place < news.len() || (place == news.len() && !news.last().is_some_and(TaskEvent::is_last))
    }

    /// All news from this index on, or all that there is when none has it.
    pub(super) fn updates(self: Arc<Self>, from: u64) -> Updates {
        let changed = self.changed.subscribe();
        let known = from.checked_sub(self.first).and_then(|skipped| usize::try_from(skipped).ok());
        let next = known.filter(|skipped| self.will_have(*skipped)).unwrap_or(0);
        let follow = stream::unfold(Some((self, changed, next)), |state| async {
            let (task, mut changed, next) = state?;
            loop {
                changed.mark_unchanged();
                let event = task.news().get(next).cloned();
                let Some(event) = event else {
                    changed.changed().await.ok()?;
                    continue;
                };
                let update = Update { index: task.first.saturating_add(next as u64), event };
                let rest = (!update.event.is_last()).then(|| (task, changed, next + 1));
                return Some((Ok(update), rest));
            }
        });
        follow.boxed()
    }
}
