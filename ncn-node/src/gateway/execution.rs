//! Has a compute node run a paid request, and takes what it gives: all of it, or what it had given when it was cut short.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use ncn_client::{Backoff, unix_now};
use ncn_core::{
    Address, Compute, ComputeError, ComputeEvent, ComputeTask, Delivery, Event, FinishReason, InferenceResult, Manifest, Quote,
    Reservation, Resume, Signed, Step, StreamChain, TaskEvent, Values, compute::MAX_OUTPUT_BYTES, lifecycle::MAX_ATTEMPTS,
};

use super::{
    Gateway,
    effects::{reserve_at, reserve_node},
    task::{Progress, Task},
};

/// How long the gateway waits for a node that can run what is paid for, before it gives the payment back.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a node gets on top of the model's own deadline before it is given up.
const DEADLINE_SLACK: Duration = Duration::from_secs(5);
/// What it gets on top of the time at which the request has to be at its end.
const FINISH_SLACK: Duration = Duration::from_secs(1);
/// How long a node may take to end an output that its client wants no more of.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// The beginning of an output, with the word of those who gave it.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefix {
    output: Values,
    results: Vec<Signed<InferenceResult>>,
}

impl Prefix {
    /// How much of the output it is.
    pub(super) fn parts(&self) -> u64 {
        self.results.last().map_or(0, |result| result.message.parts)
    }

    /// Whether the output is the one that was signed. That of a whole output is looked at when it comes.
    fn is_signed(&self) -> bool {
        self.results.last().is_some_and(|result| result.message.fits_output(&self.output).is_ok())
    }

    /// Where another node goes on.
    fn end(&self) -> Option<Resume> {
        let InferenceResult { parts, chain, .. } = self.results.last()?.message;
        let units = self.results.iter().map(|result| result.message.usage.output_units);
        Some(Resume { parts, chain, output_units: units.fold(0, u64::saturating_add) })
    }
}

pub(super) async fn dispatch(gateway: &Gateway, task: &Task, progress: &Progress, attempt: u8) -> Option<Event> {
    let quote = progress.quote.as_ref()?;
    let error = match attempt_at(gateway, task, quote, attempt).await {
        Ok(event) => return Some(event),
        Err(error) => error,
    };
    let stopped = task.is_stopped();
    // A node that is lost after its last word has given all.
    let ended = task.prefix().and_then(|prefix| prefix.results.last()?.message.finish);
    let retryable = error.is_retryable() && !stopped && ended.is_none();
    if retryable && attempt + 1 < MAX_ATTEMPTS {
        return Some(Event::ExecutionFailed { reason: error.to_string(), retryable });
    }
    // Nobody goes on: what was given is what the request comes to.
    if let Some(prefix) = task.prefix().filter(Prefix::is_signed) {
        let Prefix { output, results } = prefix;
        if let (true, Some(first)) = (task.begins_anew(), results.first()) {
            // Followers have another one's parts.
            task.publish(TaskEvent::Attempt(first.message.compute));
        }
        let finish = match error {
            _ if let Some(ended) = ended => ended,
            _ if stopped => FinishReason::Cancelled,
            ComputeError::DeadlineExceeded => FinishReason::Deadline,
            _ => FinishReason::NodeLost,
        };
        tracing::warn!(request = %task.request_id, %error, %finish, "an output is cut short");
        return Some(Event::Executed { output, delivery: Box::new(Delivery { results, finish }) });
    }
    if stopped {
        return Some(Event::Cancelled);
    }
    Some(Event::ExecutionFailed { reason: error.to_string(), retryable })
}

async fn attempt_at(gateway: &Gateway, task: &Task, quote: &Quote, attempt: u8) -> Result<Event, ComputeError> {
    let compute = node_for(gateway, task, quote, attempt).await.map_err(ComputeError::Failed)?;
    task.try_node(compute.address());
    let before = task.prefix().filter(|_| !task.begins_anew()).unwrap_or_default();
    task.publish(match before.end() {
        Some(_) => TaskEvent::Takeover(compute.address()),
        // Whatever another node has said of the output is void from here on.
        None => TaskEvent::Attempt(compute.address()),
    });
    let unknown = ComputeError::UnknownModel(quote.model_digest);
    let manifest = gateway.models.get(&quote.model_digest).ok_or(unknown)?.model.manifest();
    let last = before.results.last();
    let chain = last.map_or_else(|| StreamChain::new(task.request_id), |last| StreamChain::of(&last.message));
    let node = compute.address();
    let mut received = Received { gateway, task, quote, manifest, node, chain, before, own: None, unsigned: Vec::new() };
    let executed = received.all(&*compute).await;
    if let Err(error) = &executed {
        compute.release(task.request_id).await;
        if let Some(prefix) = received.own {
            task.keep_prefix(prefix);
        }
        if matches!(error, ComputeError::CannotResume(_)) {
            task.begin_anew();
        }
    }
    executed
}

/// The node that was reserved, when it is still there with a place for the request; another one otherwise. Nodes may be on their
/// way back, as after a restart of this gateway: they are waited for, a little.
async fn node_for(gateway: &Gateway, task: &Task, quote: &Quote, attempt: u8) -> Result<Arc<dyn Compute>, String> {
    let Quote { request_id, model_digest, expiry: expires_at, .. } = *quote;
    let started = Instant::now();
    let mut backoff = Backoff::new();
    loop {
        // The lease may have run out while the client thought about paying: reserving again renews it.
        if attempt == 0
            && let Some(compute) = gateway.nodes.get(quote.compute)
            && reserve_at(&*compute, Reservation { request_id, model_digest, expires_at }).await.is_ok()
        {
            return Ok(compute);
        }
        match reserve_node(gateway, task, expires_at).await {
            Ok(compute) => return Ok(compute),
            Err(reason) if started.elapsed() >= NODE_TIMEOUT => {
                let before = task.progress().failure.map(|failure| format!("; before that: {failure}"));
                return Err(reason + &before.unwrap_or_default());
            }
            Err(_) => backoff.pause().await,
        }
    }
}

/// What a node has given of an output.
struct Received<'a> {
    gateway: &'a Gateway,
    task: &'a Task,
    quote: &'a Quote,
    manifest: &'a Manifest,
    node: Address,
    chain: StreamChain,
    /// What others have given.
    before: Prefix,
    /// The same and what the node has signed, and the parts since then.
    own: Option<Prefix>,
    unsigned: Vec<Values>,
}

impl Received<'_> {
    fn dishonest<T>(&self, what: &str) -> Result<T, ComputeError> {
        Err(ComputeError::Unavailable(format!("{} {what}", self.node)))
    }

    /// Runs the task at this node, until its output ends or has to.
    async fn all(&mut self, compute: &dyn Compute) -> Result<Event, ComputeError> {
        let task = self.task;
        let finish_by = self.gateway.finish_by(self.quote);
        let job = ComputeTask {
            request: task.submission.request.clone(),
            quote: self.quote.clone(),
            voucher: task.progress().voucher(),
            inputs: task.submission.inputs.clone(),
            finish_by,
            resume: self.before.end(),
        };
        let started = Instant::now();
        let left = Duration::from_secs(finish_by.saturating_sub(unix_now())).saturating_add(FINISH_SLACK);
        let limit = left.min(Duration::from_millis(self.manifest.limits.deadline_ms).saturating_add(DEADLINE_SLACK));
        let mut late = pin!(tokio::time::sleep(limit));
        let mut events = tokio::select! {
            events = compute.execute(job) => events?,
            () = &mut late => return self.dishonest("does not begin"),
        };
        task.report(Step::Dispatch, self.gateway.address(), started.elapsed());
        let started = Instant::now();
        let mut stopping = false;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = task.stopped(), if !stopping => {
                    stopping = true;
                    compute.stop(task.request_id).await;
                    late.as_mut().reset(tokio::time::Instant::now() + STOP_TIMEOUT);
                    continue;
                }
                // It has had its time; what it has signed is as good as an end.
                () = &mut late => {
                    let in_part = (self.output().parts() > 0).then_some(ComputeError::DeadlineExceeded);
                    return in_part.map_or_else(|| self.dishonest("did not deliver in time"), Err);
                }
            };
            match event {
                Some(event) => {
                    if let Some(event) = self.take(event?, started)? {
                        return Ok(event);
                    }
                }
                None => return self.dishonest("ended the output without its result"),
            }
        }
    }

    /// Takes what came next; gives the end. A node that streams something else than it signs would be paid for an answer that its client has
    /// to doubt.
    fn take(&mut self, event: ComputeEvent, started: Instant) -> Result<Option<Event>, ComputeError> {
        match event {
            ComputeEvent::Chunk(chunk) => {
                if self.manifest.check_part(&chunk.values).is_err() {
                    return self.dishonest("streams what its model does not give");
                }
                self.chain.extend(&chunk.values);
                self.unsigned.push(chunk.values.clone());
                self.task.publish(TaskEvent::Chunk(chunk));
                Ok(None)
            }
            ComputeEvent::Checkpoint(checkpoint) => {
                self.check(&checkpoint, started)?;
                let mut output = self.output().output.clone();
                self.unsigned.drain(..).for_each(|part| output.append(part));
                if output.size() > MAX_OUTPUT_BYTES {
                    return self.dishonest("streams more than an output has");
                }
                let ends_whole = checkpoint.message.finish.is_some_and(FinishReason::is_whole);
                if ends_whole && self.manifest.check_delivered(&output).is_err() {
                    return self.dishonest("signed that it is done, and is not");
                }
                self.own = Some(Prefix { output, results: self.with(checkpoint.clone()) });
                self.task.publish(TaskEvent::Checkpoint(Box::new(checkpoint)));
                Ok(None)
            }
            ComputeEvent::Finished { output, result } => {
                if self.chain.parts() == 0 {
                    // It came in one part.
                    self.chain.extend(&output);
                } else {
                    let mut streamed = self.output().output.clone();
                    self.unsigned.iter().for_each(|part| streamed.append(part.clone()));
                    if streamed != output {
                        return self.dishonest("streamed something else than it gives");
                    }
                }
                self.check(&result, started)?;
                let Some(finish) = result.message.finish else { return self.dishonest("does not say why the output ends") };
                let delivery = Delivery { results: self.with(result), finish };
                let word = delivery.last().filter(|word| {
                    let whole = !delivery.finish.is_whole() || self.manifest.check_delivered(&output).is_ok();
                    whole
                        && self.manifest.check_part(&output).is_ok()
                        && output.size() <= MAX_OUTPUT_BYTES
                        && word.fits_output(&output).is_ok()
                });
                let Some(word) = word else { return self.dishonest("signed something else than it ran") };
                let running = Duration::from_micros(word.usage.duration_micros);
                self.task.report(Step::Execute, self.node, running);
                self.task.report(Step::Result, self.node, started.elapsed().saturating_sub(running));
                Ok(Some(Event::Executed { output, delivery: Box::new(delivery) }))
            }
            _ => Ok(None),
        }
    }

    /// What is signed of the output.
    fn output(&self) -> &Prefix {
        self.own.as_ref().unwrap_or(&self.before)
    }

    /// The results of all nodes, with this one's newest.
    fn with(&self, own: Signed<InferenceResult>) -> Vec<Signed<InferenceResult>> {
        self.before.results.iter().cloned().chain([own]).collect()
    }

    /// Checks a node's word on what it has given so far.
    fn check(&self, word: &Signed<InferenceResult>, started: Instant) -> Result<(), ComputeError> {
        let order = &self.task.submission.request.message;
        let result = &word.message;
        let finish = result.finish.unwrap_or(FinishReason::NodeLost);
        let honest = result.compute == self.node
            && self.chain.fits(result).is_ok()
            && result.fits(order, self.quote).is_ok()
            && u128::from(result.usage.duration_micros) <= started.elapsed().as_micros()
            && Delivery { results: self.with(word.clone()), finish }.completion(self.quote).is_ok()
            && word.verify(&self.gateway.domain).is_ok();
        if honest { Ok(()) } else { self.dishonest("signed something else than it ran") }
    }
}
