//! Has a compute node run a paid request, and takes what it gives: all of it, or what it had given when it was cut short.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use ncn_client::Backoff;
use ncn_core::{
    Acknowledgement, Address, B256, Collected, Compute, ComputeError, ComputeEvent, ComputeTask, Delivery, Dispatch, Event,
    FinishReason, InferenceResult, Manifest, Message as _, QuorumCertificate, Quote, Reservation, Resume, Signed, Step,
    StreamChain, TaskEvent, Values,
    compute::{MAX_OUTPUT_BYTES, MAX_PREFIX_BYTES},
    lifecycle::MAX_ATTEMPTS,
};

use super::{
    Gateway, driver,
    reserve::{reserve_at, reserve_node},
    task::{Progress, Task},
};

/// How long the gateway waits for a node that can run what is paid for, before it gives the payment back.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a node gets on top of the model's own deadline before it is given up.
const DEADLINE_SLACK: Duration = Duration::from_secs(5);
/// What it gets on top of the time at which the request has to be at its end.
const FINISH_SLACK: Duration = Duration::from_secs(1);
/// How long a node may take to hand a finished output over.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node may take to end an output that its client wants no more of.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// The beginning of an output, with the word of those who gave it.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefix {
    output: Values,
    results: Vec<Signed<InferenceResult>>,
    /// This gateway's word that these nodes were to serve.
    dispatches: Vec<Signed<Dispatch>>,
}

/// What was streamed of an output whose last part is still to come.
#[derive(Clone, Debug)]
pub(super) struct Tail {
    chain: StreamChain,
    streamed: Values,
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

    /// What another node may take as context: a text that is not too long for that.
    fn context(&self) -> Values {
        let is_text = self.output.iter().all(|(_, value)| value.as_text().is_some());
        if is_text && self.output.size() <= MAX_PREFIX_BYTES { self.output.clone() } else { Values::new() }
    }

    /// Where another node goes on.
    fn end(&self) -> Option<Resume> {
        Resume::after(&self.results)
    }
}

pub(super) async fn dispatch(gateway: &Gateway, task: &Task, progress: &Progress, attempt: u8) -> Option<Event> {
    let (quote, preprocessing) = (progress.quote.as_ref()?, progress.preprocessing.clone()?);
    let attempted = match dispatched(gateway, task, quote, progress, attempt).await {
        Ok(Dispatched::Now(event)) => return Some(event),
        Ok(Dispatched::Before(dispatch)) => attempt_at(gateway, task, quote, preprocessing, dispatch).await,
        Err(error) => Err(error),
    };
    let error = match attempted {
        Ok(event) => return Some(event),
        Err(error) => error,
    };
    let stopped = task.is_stopped();
    let retryable = error.is_retryable() && !stopped;
    if retryable && attempt + 1 < MAX_ATTEMPTS {
        return Some(Event::ExecutionFailed { reason: error.to_string(), retryable });
    }
    // Nobody goes on: what was given is what the request comes to.
    if let Some(prefix) = task.prefix().filter(Prefix::is_signed) {
        let Prefix { output, results, dispatches } = prefix;
        if let (true, Some(first)) = (task.begins_anew(), results.first()) {
            // Followers have another one's parts.
            task.publish(TaskEvent::Attempt(first.message.compute));
        }
        let finish = match error {
            _ if stopped => FinishReason::Cancelled,
            ComputeError::DeadlineExceeded => FinishReason::Deadline,
            _ => FinishReason::NodeLost,
        };
        tracing::warn!(request = %task.request_id, %error, %finish, "an output is cut short");
        return Some(Event::Executed { output: Some(output), delivery: Box::new(Delivery { results, finish }), dispatches });
    }
    if stopped {
        return Some(Event::Cancelled);
    }
    Some(Event::ExecutionFailed { reason: error.to_string(), retryable })
}

/// This gateway's word about who makes an attempt.
enum Dispatched {
    /// It is given, and kept.
    Before(Signed<Dispatch>),
    /// It is to be kept before it is given: after a restart, no other node must have it.
    Now(Event),
}

/// Who makes this attempt. The first is that of the quote's node, and needs no memory.
async fn dispatched(
    gateway: &Gateway,
    task: &Task,
    quote: &Quote,
    progress: &Progress,
    attempt: u8,
) -> Result<Dispatched, ComputeError> {
    if attempt >= MAX_ATTEMPTS {
        return Err(ComputeError::Unavailable(progress.failure.clone().unwrap_or_else(|| "no more nodes are tried".into())));
    }
    if let Some(dispatch) = progress.dispatch.as_ref().filter(|dispatch| dispatch.message.attempt == attempt) {
        return Ok(Dispatched::Before(dispatch.clone()));
    }
    let (compute, resumed_from) = if attempt == 0 {
        (quote.compute, B256::ZERO)
    } else {
        let compute = node_for(gateway, task, quote).await.map_err(ComputeError::Failed)?;
        (compute.address(), start(task).end().map(|end| end.chain).unwrap_or_default())
    };
    let dispatch = Dispatch { gateway: quote.gateway, compute, quote: quote.struct_hash(), attempt, resumed_from };
    let dispatch = Signed::sign(dispatch, &gateway.domain, &*gateway.signer).await;
    let dispatch = dispatch.map_err(|error| ComputeError::Failed(format!("the gateway's key: {error}")))?;
    Ok(if attempt == 0 { Dispatched::Before(dispatch) } else { Dispatched::Now(Event::Dispatched(Box::new(dispatch))) })
}

/// What the next node goes on from.
fn start(task: &Task) -> Prefix {
    task.prefix().filter(|_| !task.begins_anew()).unwrap_or_default()
}

async fn attempt_at(
    gateway: &Gateway,
    task: &Task,
    quote: &Quote,
    preprocessing: QuorumCertificate,
    dispatch: Signed<Dispatch>,
) -> Result<Event, ComputeError> {
    let compute = reserved(gateway, quote, &dispatch.message).await?;
    task.try_node(compute.address());
    let before = start(task);
    if before.end().map(|end| end.chain).unwrap_or_default() != dispatch.message.resumed_from {
        return Err(ComputeError::Unavailable("what the node was to go on from is lost".into()));
    }
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
    let mut received = Received { gateway, task, quote, manifest, node, chain, before, dispatch, own: None, unsigned: Vec::new() };
    let executed = received.all(&*compute, preprocessing).await;
    // Should the end not be handed over, this is what there is.
    if let Some(prefix) = received.own {
        task.keep_prefix(prefix);
    }
    if let Err(error) = &executed {
        if matches!(error, ComputeError::Unavailable(_) | ComputeError::Failed(_)) && !task.is_stopped() {
            gateway.nodes.reputation().failed(node);
        }
        compute.release(task.request_id).await;
        if matches!(error, ComputeError::CannotResume(_)) {
            task.begin_anew();
        }
    }
    executed
}

/// The dispatched node, with a place for the request. It may be on its way back, as after a restart of this gateway: unless there are others,
/// it is waited for, a little.
async fn reserved(gateway: &Gateway, quote: &Quote, dispatch: &Dispatch) -> Result<Arc<dyn Compute>, ComputeError> {
    let Quote { request_id, model_digest, expiry: expires_at, .. } = *quote;
    let started = Instant::now();
    let mut backoff = Backoff::new();
    loop {
        let error = match gateway.nodes.get(dispatch.compute) {
            // The lease may have run out while the client thought about paying: reserving again renews it.
            Some(compute) => match reserve_at(&*compute, Reservation { request_id, model_digest, expires_at }).await {
                Ok(()) => return Ok(compute),
                Err(error) => error,
            },
            None => ComputeError::Unavailable(format!("{} is not attached", dispatch.compute)),
        };
        let others = gateway.nodes.with_model(&model_digest).await.iter().any(|node| node.address() != dispatch.compute);
        if others || started.elapsed() >= NODE_TIMEOUT {
            return Err(ComputeError::Unavailable(error.to_string()));
        }
        backoff.pause().await;
    }
}

/// Another node than those that have been tried, where there is one, with a place for the request. Nodes may be on their way back: they are
/// waited for, a little.
async fn node_for(gateway: &Gateway, task: &Task, quote: &Quote) -> Result<Arc<dyn Compute>, String> {
    let expires_at = quote.expiry;
    let started = Instant::now();
    let mut backoff = Backoff::new();
    loop {
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
    dispatch: Signed<Dispatch>,
    /// The same and what the node has signed, and the parts since then.
    own: Option<Prefix>,
    unsigned: Vec<Values>,
}

impl Received<'_> {
    fn dishonest<T>(&self, what: &str) -> Result<T, ComputeError> {
        Err(ComputeError::Unavailable(format!("{} {what}", self.node)))
    }

    /// Runs the task at this node, until its output ends or has to.
    async fn all(&mut self, compute: &dyn Compute, preprocessing: QuorumCertificate) -> Result<Event, ComputeError> {
        let task = self.task;
        let finish_by = self.gateway.finish_by(self.quote);
        let job = ComputeTask {
            request: task.request.clone(),
            quote: self.quote.clone(),
            voucher: task.progress().voucher(),
            inputs: (*task.inputs()).clone(),
            finish_by,
            preprocessing,
            before: self.before.results.clone(),
            prefix: self.before.context(),
            dispatches: self.dispatches(),
        };
        let started = Instant::now();
        let left = Duration::from_secs(finish_by.saturating_sub(self.gateway.clock.last())).saturating_add(FINISH_SLACK);
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
                    let event = event?;
                    if matches!(event, ComputeEvent::Chunk(_)) {
                        driver::stream(self.gateway, task).await;
                    }
                    let checkpoint =
                        if let ComputeEvent::Checkpoint(word) = &event { Some(word.message.struct_hash()) } else { None };
                    if let Some(event) = self.take(event, started)? {
                        return Ok(event);
                    }
                    // What its client can have is what the node can claim.
                    if let Some(result) = checkpoint {
                        let word = acknowledged(self.gateway, result).await?;
                        // A node that does not read holds up neither its end nor its stop.
                        tokio::select! {
                            () = compute.acknowledge(task.request_id, word) => {}
                            () = task.stopped(), if !stopping => {}
                            () = &mut late => return Err(ComputeError::DeadlineExceeded),
                        }
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
                // One that adds nothing would be acknowledged all the same, as often as the node likes.
                let is_new = !self.unsigned.is_empty();
                if !is_new || self.chain.fits(&checkpoint.message).is_err() || checkpoint.message.finish.is_some() {
                    return self.dishonest("signed something else than it gave");
                }
                self.check(&checkpoint, started)?;
                let mut output = self.output().output.clone();
                self.unsigned.drain(..).for_each(|part| output.append(part));
                if output.size() > MAX_OUTPUT_BYTES {
                    return self.dishonest("streams more than an output has");
                }
                // Units are held against what is signed of the output: no word of this gateway may be had for another one.
                if checkpoint.message.fits_output(&output).is_err() {
                    return self.dishonest("signed another output than it gave");
                }
                self.own = Some(Prefix { output, results: self.with(checkpoint.clone()), dispatches: self.dispatches() });
                self.task.publish(TaskEvent::Checkpoint(Box::new(checkpoint)));
                Ok(None)
            }
            ComputeEvent::Finished(result) => {
                // What it gave before is paid for by that word, should it keep the end to itself.
                if !self.unsigned.is_empty() {
                    return self.dishonest("signed the end before what it had given");
                }
                // The last part is still to come.
                if result.message.parts != self.chain.parts() + 1 || result.message.output_bytes > MAX_OUTPUT_BYTES as u64 {
                    return self.dishonest("signed another output than it gave the beginning of");
                }
                self.check(&result, started)?;
                let Some(finish) = result.message.finish else { return self.dishonest("does not say why the output ends") };
                let running = Duration::from_micros(result.message.usage.duration_micros);
                self.task.report(Step::Execute, self.node, running);
                self.task.report(Step::Result, self.node, started.elapsed().saturating_sub(running));
                self.task.keep_tail(Tail { chain: self.chain, streamed: self.output().output.clone() });
                let (delivery, dispatches) = (Delivery { results: self.with(result), finish }, self.dispatches());
                Ok(Some(Event::Executed { output: None, delivery: Box::new(delivery), dispatches }))
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

    /// The words that all nodes were to serve, with this one's.
    fn dispatches(&self) -> Vec<Signed<Dispatch>> {
        self.before.dispatches.iter().cloned().chain([self.dispatch.clone()]).collect()
    }

    /// Checks a node's word on what it has given so far.
    fn check(&self, word: &Signed<InferenceResult>, started: Instant) -> Result<(), ComputeError> {
        let order = &self.task.request.message;
        let result = &word.message;
        let finish = result.finish.unwrap_or(FinishReason::NodeLost);
        let honest = result.compute == self.node
            && result.request_id == self.task.request_id
            && result.fits(order, self.quote).is_ok()
            && u128::from(result.usage.duration_micros) <= started.elapsed().as_micros()
            // What validators do not mind in what has no end yet.
            && (result.finish.is_none()
                || self.gateway.nodes.confinement(self.node).is_none_or(|most| result.confinement <= most))
            && Delivery { results: self.with(word.clone()), finish }.completion(self.quote).is_ok()
            && word.verify(&self.gateway.domain).is_ok();
        if honest { Ok(()) } else { self.dishonest("signed something else than it ran") }
    }
}

/// This gateway's word that it has got what the result with this struct hash says.
async fn acknowledged(gateway: &Gateway, result: B256) -> Result<Signed<Acknowledgement>, ComputeError> {
    let message = Acknowledgement { gateway: gateway.address(), result };
    let signed = Signed::sign(message, &gateway.domain, &*gateway.signer).await;
    signed.map_err(|error| ComputeError::Failed(format!("the gateway's key: {error}")))
}

/// Has the node that has signed the end of an output hand it over, for the certificate that pays for it. A node that is on its way back is
/// waited for, a little.
pub(super) async fn collect(
    gateway: &Gateway,
    task: &Task,
    delivery: &Delivery,
    certificate: &QuorumCertificate,
) -> Result<Values, ComputeError> {
    let missing = || ComputeError::Failed("the journal is incomplete".into());
    let (word, quote) = (delivery.results.last().ok_or_else(missing)?, task.quote().ok_or_else(missing)?);
    let node = word.message.compute;
    let dishonest = |what: &str| Err(ComputeError::Unavailable(format!("{node} {what}")));
    let acknowledgement = acknowledged(gateway, word.message.struct_hash()).await?;
    let (started, mut backoff) = (Instant::now(), Backoff::new());
    let Collected { output, last } = loop {
        let collecting = async {
            let compute = gateway.nodes.get(node).ok_or_else(|| ComputeError::Unavailable(format!("{node} is not attached")))?;
            compute.collect(task.request_id, certificate.clone(), acknowledgement.clone()).await
        };
        match tokio::time::timeout(COLLECT_TIMEOUT, collecting).await {
            Ok(Ok(collected)) => break collected,
            Ok(Err(error)) if started.elapsed() >= NODE_TIMEOUT => return Err(error),
            Ok(Err(_)) => backoff.pause().await,
            Err(_) => return dishonest("does not hand its output over"),
        }
    };
    let unknown = ComputeError::UnknownModel(quote.model_digest);
    let manifest = gateway.models.get(&quote.model_digest).ok_or(unknown)?.model.manifest();
    let promised = if delivery.finish.is_whole() { manifest.check_delivered(&output) } else { manifest.check_part(&output) };
    if promised.is_err() || output.size() > MAX_OUTPUT_BYTES || word.message.fits_output(&output).is_err() {
        return dishonest("signed something else than it hands over");
    }
    if let Some(Tail { mut chain, mut streamed }) = task.tail() {
        // What comes in one part is no stream.
        let end = last.as_ref().map_or(&output, |last| &last.values);
        chain.extend(end);
        streamed.append(end.clone());
        if chain.fits(&word.message).is_err() || streamed != output {
            return dishonest("streamed something else than it hands over");
        }
        if let Some(last) = last {
            task.publish(TaskEvent::Chunk(last));
            task.publish(TaskEvent::Checkpoint(Box::new(word.clone())));
        }
    }
    Ok(output)
}
