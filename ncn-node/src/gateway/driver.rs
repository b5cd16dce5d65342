//! Moves one request through its life: journal an event, let the lifecycle say what follows, do it.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use ncn_core::{Effect, Event, State};
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::{Gateway, effects, log, task::Task};
use crate::{
    measures::{Journey, name_of_state},
    store::StoreError,
};

/// How long to wait before the journal is tried again.
const JOURNAL_PAUSE: Duration = Duration::from_millis(200);

/// Inputs of more bytes are taken out of the journal at a request's end, which costs a commit.
const LARGE_INPUTS: usize = 4 << 10;

/// Drives a task to its end, and forgets it a while after.
pub(super) fn spawn(gateway: &Arc<Gateway>, task: Arc<Task>) {
    let Some(inbox) = task.inbox() else { return };
    let gateway = gateway.clone();
    // Boxed: it would be large in whatever holds it.
    let span = tracing::info_span!(parent: None, "gateway", request = %task.request_id);
    let driving = async move {
        let to_its_end = async {
            let ended = drive(&gateway, &task, inbox).instrument(span).await;
            forget(&gateway, &task, ended).await;
        };
        gateway.stopped.clone().run_until_cancelled_owned(Box::pin(to_its_end)).await
    };
    tokio::spawn(driving);
}

/// Returns when it ended.
async fn drive(gateway: &Gateway, task: &Task, mut inbox: mpsc::Receiver<Event>) -> Instant {
    // Idempotent: a task that was taken up again has begun already.
    keep(task, || gateway.journal.begin(task.request_id, task.submission(), task.salt)).await;
    let mut journey = Journey::begin(task.began, task.lifecycle().state(), task.total());
    loop {
        let effect = task.lifecycle().effect();
        let event = if effect == Effect::Finish {
            effects::finish(gateway, task).await;
            let ended = Instant::now();
            gateway.tasks().update(task);
            forget_inputs(gateway, task).await;
            match late_payment(gateway, task).await {
                Some(event) => {
                    task.reopen();
                    event
                }
                None => return ended,
            }
        } else {
            perform(gateway, task, effect, &mut inbox).await
        };
        record(gateway, task, event).await;
        gateway.tasks().update(task);
        if let Some((outcome, took)) = journey.see(task.lifecycle().state(), task.total()) {
            task.end(took);
            log::ended(task, outcome, took);
            gateway.history.ended(outcome, took, task.total());
        }
    }
}

/// Does what the state asks for, until that or something else brings an event that means something.
async fn perform(gateway: &Gateway, task: &Task, effect: Effect, inbox: &mut mpsc::Receiver<Event>) -> Event {
    let lifecycle = task.lifecycle();
    let span = tracing::info_span!("state", name = name_of_state(lifecycle.state()));
    let mut working = pin!(effects::perform(gateway, task, effect).instrument(span));
    let mut expiry = pin!(tokio::time::sleep(time_left(gateway, task)));
    loop {
        let event = tokio::select! {
            event = &mut working => return event,
            Some(event) = inbox.recv() => event,
            // In a state where it means nothing, the chain has the last word: it is not waited for again.
            () = &mut expiry, if lifecycle.step(&Event::Expired).is_ok() => {
                // What is on its way to the chain is worth waiting for.
                if gateway.redemptions.is_underway(task.request_id) && !hope(gateway, task).is_zero() {
                    expiry.set(tokio::time::sleep(time_left(gateway, task)));
                    continue;
                }
                Event::Expired
            }
        };
        // What means nothing now must not interrupt the work.
        if lifecycle.step(&event).is_ok() {
            return event;
        }
    }
}

/// How long the gateway hopes to finish.
fn hope(gateway: &Gateway, task: &Task) -> Duration {
    let end = task.quote().map_or(task.request.message.deadline, |quote| quote.expiry);
    Duration::from_secs(end.saturating_sub(gateway.clock.last())).saturating_sub(gateway.options.finish_margin)
}

/// The same, or how long it waits for the payment.
fn time_left(gateway: &Gateway, task: &Task) -> Duration {
    let hope = hope(gateway, task);
    if task.lifecycle().state().is_unpaid() { hope.min(gateway.options.payment_window) } else { hope }
}

/// Keeps an event, then takes it in. An event that cannot be kept is not acted upon; nor does it stop the clock.
async fn record(gateway: &Gateway, task: &Task, event: Event) {
    let number = task.recorded();
    let append = |event| keep(task, move || gateway.journal.append(task.request_id, number, event));
    let expires = event != Event::Expired && task.lifecycle().step(&Event::Expired).is_ok();
    let event = tokio::select! {
        () = append(&event) => event,
        () = tokio::time::sleep(time_left(gateway, task)), if expires => {
            // In the place of the other one, which was never acted upon.
            append(&Event::Expired).await;
            Event::Expired
        }
    };
    take_in(task, event);
}

/// Keeps that a part of the output is about to be given away: who has got one cannot withdraw as if it had got none.
pub(super) async fn stream(gateway: &Gateway, task: &Task) {
    if task.has_streamed() {
        return;
    }
    let number = task.recorded();
    keep(task, || gateway.journal.append(task.request_id, number, &Event::Streamed)).await;
    take_in(task, Event::Streamed);
}

/// Takes an event in that is kept.
fn take_in(task: &Task, event: Event) {
    task.record();
    if task.lifecycle().step(&event).is_ok() {
        log::moved(task, &event);
    }
    if let Err(error) = task.apply(event) {
        tracing::debug!(request = %task.request_id, %error, "an event came too late");
    }
}

/// Has the journal keep something, however often that takes.
async fn keep<F: Future<Output = Result<(), StoreError>>>(task: &Task, write: impl Fn() -> F) {
    while let Err(error) = write().await {
        tracing::error!(request = %task.request_id, %error, "the journal does not keep what happened; trying again");
        tokio::time::sleep(JOURNAL_PAUSE).await;
    }
}

/// A request that ended unpaid may be paid all the same, until its quote expires: that money is given back at once, while the request is
/// remembered. After that, its client has it back from the chain.
async fn late_payment(gateway: &Gateway, task: &Task) -> Option<Event> {
    let State::Ended(outcome) = task.lifecycle().state() else { return None };
    // A quote that was never approved was never shown to anyone.
    let quote = task.progress().preprocessing.and(task.quote()).filter(|_| outcome.is_unpaid())?;
    let left = Duration::from_secs(quote.expiry.saturating_sub(gateway.clock.last())).min(gateway.options.retention);
    let paid = tokio::time::timeout(left, effects::paid(gateway, task));
    task.displaced().run_until_cancelled(paid).await?.ok()
}

/// Late money is given back; nothing runs any more.
async fn forget_inputs(gateway: &Gateway, task: &Task) {
    task.forget_inputs();
    if task.input_bytes > LARGE_INPUTS {
        keep(task, || gateway.journal.begin(task.request_id, task.submission(), task.salt)).await;
    }
}

/// Remembers the end for a while, for those who ask again, or until there is no room.
async fn forget(gateway: &Gateway, task: &Task, ended: Instant) {
    let left = gateway.options.retention.saturating_sub(ended.elapsed());
    task.displaced().run_until_cancelled(tokio::time::sleep(left)).await;
    gateway.tasks().remove(task.request_id);
    if let Err(error) = gateway.journal.forget(task.request_id).await {
        tracing::warn!(request = %task.request_id, %error, "the journal does not forget");
    }
}
