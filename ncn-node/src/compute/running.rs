//! A task that runs at a compute node: gives its parts, and signs what came out.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::StreamExt as _;
use ncn_core::{
    Collected, ComputeError, ComputeEvent, Continuation, Delivery, Domain, DynSigner, ExecutorError, FinishReason, InferenceResult,
    Message as _, Model, OutputChunk, Quote, Resume, Signed, StreamBudget, StreamChain, Units, Usage, Values,
    compute::{MAX_OUTPUT_BYTES, MAX_OUTPUT_VALUES},
    delivery::most_units,
    executor::Outputs,
    stream::{CHECKPOINT_MILLIS, CHECKPOINT_PARTS},
};
use tokio::time::Instant;

use super::{
    Assignment, compute_error,
    finished::{Finished, Waiting},
    leases::Lease,
    unacknowledged::{Checkpoint, Unacknowledged},
};

/// A task that runs. It is always one part ahead of what it gives: the last one waits for the certificate that pays for it.
pub(super) struct Running {
    outputs: Outputs,
    started: Instant,
    /// The executor ends a run by then; should it not, this node does.
    deadline: Instant,
    model: Arc<Model>,
    budget: StreamBudget,
    /// The newest part, which is not given yet.
    held: Option<OutputChunk>,
    /// What has been given.
    output: Values,
    usage: Usage,
    signing: Signing,
    chain: StreamChain,
    /// Where this node's own parts begin, until they do.
    resume: Option<Resume>,
    /// What was there when they began.
    before: Before,
    /// How many parts the last checkpoint covers, and since when there are more.
    signed_parts: u64,
    unsigned_since: Option<Instant>,
    /// What is to be told next; nothing comes after it once the output has ended.
    events: VecDeque<ComputeEvent>,
    ended: bool,
    lease: Lease,
    assignment: Assignment,
    unacknowledged: Arc<Unacknowledged>,
    finished: Arc<Finished>,
}

/// What another node has given of an output.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    parts: u64,
    bytes: u64,
    /// By this node's count.
    units: u64,
}

/// What comes next of an output.
enum Next {
    Part(OutputChunk),
    /// The parts since the last checkpoint are to be signed.
    Sign,
    /// The output is cut short.
    Cut(FinishReason),
}

pub(super) struct Signing {
    pub(super) signer: DynSigner,
    pub(super) domain: Domain,
    pub(super) unsigned: InferenceResult,
    /// The most that the request is charged for.
    pub(super) max_units: Units,
}

impl Running {
    #[allow(clippy::too_many_arguments, reason = "what a task needs, put together once")]
    pub(super) fn new(
        outputs: Outputs,
        started: Instant,
        deadline: Instant,
        model: Arc<Model>,
        signing: Signing,
        lease: Lease,
        assignment: Assignment,
        (unacknowledged, finished): (Arc<Unacknowledged>, Arc<Finished>),
    ) -> Self {
        Self {
            outputs,
            started,
            deadline,
            model,
            budget: StreamBudget::default(),
            held: None,
            output: Values::new(),
            usage: Usage::default(),
            chain: StreamChain::new(signing.unsigned.request_id),
            signing,
            resume: Resume::after(&assignment.before),
            before: Before::default(),
            signed_parts: 0,
            unsigned_since: None,
            events: VecDeque::new(),
            ended: false,
            lease,
            assignment,
            unacknowledged,
            finished,
        }
    }

    /// Goes on after what others have given, which the model has taken as context.
    pub(super) fn go_on(&mut self, prefix: Values) {
        let Some(last) = self.assignment.before.last() else { return };
        self.chain = StreamChain::of(&last.message);
        self.before = Before { parts: self.chain.parts(), bytes: prefix.content_bytes(), units: 0 };
        (self.output, self.resume, self.signed_parts) = (prefix, None, self.chain.parts());
    }

    /// The next event, and what is left to run after it.
    pub(super) async fn next(mut self) -> Option<(Result<ComputeEvent, ComputeError>, Option<Self>)> {
        loop {
            if let Some(event) = self.events.pop_front() {
                let more = !self.ended || !self.events.is_empty();
                return Some((Ok(event), more.then_some(self)));
            }
            if let Err(error) = self.advance().await {
                return Some((Err(error), None));
            }
        }
    }

    /// Waits until there is something to tell.
    async fn advance(&mut self) -> Result<(), ComputeError> {
        match self.wait().await? {
            Next::Part(part) => self.take(part).await,
            Next::Sign => self.sign_parts().await,
            Next::Cut(finish) if self.has_own() => self.finish(finish).await,
            Next::Cut(FinishReason::Cancelled) => Err(ComputeError::Cancelled),
            Next::Cut(_) => Err(ComputeError::DeadlineExceeded),
        }
    }

    /// How many parts are this node's own.
    const fn own_parts(&self) -> u64 {
        if self.resume.is_some() { 0 } else { self.chain.parts() - self.before.parts }
    }

    /// Whether there are parts of its own, with the one that is held.
    fn has_own(&self) -> bool {
        let repeats = |resume: Resume| self.chain.parts() < resume.parts;
        self.held.is_some() && !self.resume.is_some_and(repeats) || self.own_parts() > 0
    }

    /// Whether a part, which has just been added, is one that another node has given.
    fn is_repeated(&mut self) -> Result<bool, ComputeError> {
        let Some(resume) = self.resume else { return Ok(false) };
        if self.chain.parts() < resume.parts {
            return Ok(true);
        }
        if self.chain.hash() != resume.chain {
            return Err(ComputeError::CannotResume("the parts that are there are others than the model gives here".into()));
        }
        let units = self.usage.output_units;
        self.before = Before { parts: resume.parts, bytes: self.output.content_bytes(), units };
        (self.resume, self.signed_parts) = (None, resume.parts);
        Ok(true)
    }

    async fn wait(&mut self) -> Result<Next, ComputeError> {
        let sign_by = self.unsigned_since.map(|since| since + Duration::from_millis(CHECKPOINT_MILLIS));
        let sign = async {
            match sign_by {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let part = tokio::select! {
            biased;
            () = self.lease.stop.cancelled() => return Ok(Next::Cut(FinishReason::Cancelled)),
            part = self.outputs.next() => part,
            () = sign => return Ok(Next::Sign),
            () = tokio::time::sleep_until(self.deadline) => return Ok(Next::Cut(FinishReason::Deadline)),
        };
        match part {
            Some(Ok(part)) => Ok(Next::Part(part)),
            Some(Err(ExecutorError::TimedOut(_) | ExecutorError::Cancelled)) => Ok(Next::Cut(FinishReason::Deadline)),
            Some(Err(error)) => Err(match compute_error(error) {
                // What was there may be what the model does not take.
                ComputeError::Failed(problem) if self.signing.takes_context() && !self.has_own() => {
                    ComputeError::CannotResume(problem)
                }
                error => error,
            }),
            None => Err(ComputeError::Failed("the output broke off".into())),
        }
    }

    async fn take(&mut self, part: OutputChunk) -> Result<(), ComputeError> {
        // What is signed has to be what the manifest promises, no matter who made it.
        let broken = |problem: String| compute_error(ExecutorError::InvalidOutput(problem));
        self.budget.take(&part.values).map_err(|limit| broken(limit.to_string()))?;
        self.model.manifest().check_part(&part.values).map_err(|error| broken(error.to_string()))?;
        let finish = part.finish;
        if let Some(given) = self.held.replace(part)
            && !self.add(&given)?
        {
            self.unsigned_since.get_or_insert_with(Instant::now);
            self.events.push_back(ComputeEvent::Chunk(given));
        }
        match finish {
            Some(finish) => self.finish(finish).await,
            None if self.resume.is_none() && self.chain.parts() - self.signed_parts >= CHECKPOINT_PARTS => self.sign_parts().await,
            None => Ok(()),
        }
    }

    /// Adds a part to what has been given. True when another node had given it.
    fn add(&mut self, part: &OutputChunk) -> Result<bool, ComputeError> {
        self.output.append(part.values.clone());
        check_size(&self.output)?;
        self.usage = part.usage;
        self.chain.extend(&part.values);
        self.is_repeated()
    }

    /// Tells a checkpoint of the parts so far, once the gateway has acknowledged the one before: it never has more than two for nothing.
    async fn sign_parts(&mut self) -> Result<(), ComputeError> {
        let Quote { request_id, gateway, expiry, .. } = self.assignment.quote;
        self.unacknowledged.none_of(request_id).await?;
        self.unsigned_since = None;
        self.signed_parts = self.chain.parts();
        let checkpoint = self.signing.sign(self.result(None)).await?;
        self.assignment.owe(&checkpoint);
        let claim = self.assignment.claims.is_some().then(|| self.assignment.claim(&checkpoint));
        let result = checkpoint.message.struct_hash();
        self.unacknowledged.expect(request_id, Checkpoint { gateway, result, claim, expiry });
        self.events.push_back(ComputeEvent::Checkpoint(checkpoint));
        Ok(())
    }

    /// Tells the end of the output, and keeps it until it is paid for.
    async fn finish(&mut self, finish: FinishReason) -> Result<(), ComputeError> {
        self.ended = true;
        let last = self.held.take().map(|last| OutputChunk { finish: Some(finish), ..last });
        if self.unsigned_since.is_some() {
            // The end is signed over a part that nobody has yet.
            self.sign_parts().await?;
        }
        if let Some(last) = &last
            && self.add(last)?
        {
            return Err(ComputeError::CannotResume("the output ends before the parts that are there".into()));
        }
        if finish.is_whole() {
            let broken = |problem: String| compute_error(ExecutorError::InvalidOutput(problem));
            self.model.manifest().check_delivered(&self.output).map_err(|error| broken(error.to_string()))?;
        }
        let result = self.signing.sign(self.result(Some(finish))).await?;
        self.assignment.owe(&result);
        let Assignment { quote, committee, before, is_voucher, claims, .. } = &self.assignment;
        if let Some(claims) = claims {
            claims.persist(quote.request_id).await;
        }
        let results = before.iter().cloned().chain([result.clone()]).collect();
        let completion = Delivery { results, finish }.completion(quote);
        let completion = completion.map_err(|error| ComputeError::Failed(format!("the output cannot be paid for: {error}")))?;
        // What comes in one part is no stream.
        let last = last.filter(|_| self.chain.parts() > 1);
        let output = Collected { output: std::mem::take(&mut self.output), last };
        let (digest, completion) = (completion.digest(&self.signing.domain), completion.struct_hash());
        let committee = committee.clone();
        let claim = claims.is_some().then(|| self.assignment.claim(&result));
        let (quote, is_voucher) = (quote.clone(), *is_voucher);
        let result_hash = result.message.struct_hash();
        let waiting = Waiting { completion, digest, result: result_hash, committee, output, claim, quote, is_voucher };
        self.finished.keep(waiting.quote.request_id, waiting);
        self.events.push_back(ComputeEvent::Finished(result));
        Ok(())
    }

    /// The node's word on what was given so far. A model counts for itself: it is not believed beyond what the request may be charged for,
    /// what the output has room for, and the time that has passed.
    fn result(&self, finish: Option<FinishReason>) -> InferenceResult {
        let elapsed = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let Units { input, output } = self.signing.max_units;
        let bytes = self.output.content_bytes().saturating_sub(self.before.bytes);
        let usage = Usage {
            input_units: self.usage.input_units.min(input),
            output_units: self
                .usage
                .output_units
                .saturating_sub(self.before.units)
                .min(output)
                .min(most_units(bytes, self.own_parts())),
            duration_micros: self.usage.duration_micros.min(elapsed),
        };
        self.chain.describe(&self.output, InferenceResult { usage, finish, ..self.signing.unsigned.clone() })
    }
}

impl Signing {
    fn takes_context(&self) -> bool {
        self.unsigned.continuation == Some(Continuation::Context)
    }

    async fn sign(&self, message: InferenceResult) -> Result<Signed<InferenceResult>, ComputeError> {
        let signed = Signed::sign(message, &self.domain, &*self.signer).await;
        signed.map_err(|error| ComputeError::Unavailable(error.to_string()))
    }
}

fn check_size(output: &Values) -> Result<(), ComputeError> {
    if output.len() > MAX_OUTPUT_VALUES {
        let problem = format!("the output has {} values, at most {MAX_OUTPUT_VALUES} are delivered", output.len());
        return Err(ComputeError::Failed(problem));
    }
    if output.size() <= MAX_OUTPUT_BYTES {
        return Ok(());
    }
    Err(ComputeError::Failed(format!("the output has {} bytes, at most {MAX_OUTPUT_BYTES} are delivered", output.size())))
}
