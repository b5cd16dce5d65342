//! The compute node: holds places for requests, runs models, signs what came out.

#[cfg(feature = "grpc")]
mod attach;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
#[cfg(feature = "grpc")]
pub use attach::GatewaySessions;
use futures::{StreamExt as _, stream};
use ncn_core::{Address, B256};
use ncn_core::{
    ChainView, Compute, ComputeError, ComputeEvent, ComputeTask, Domain, DynSigner, Execution, Executor, ExecutorError,
    FinishReason, InferenceResult, Message as _, Model, OutputChunk, RequestId, Reservation, Resume, Signed, StreamBudget,
    StreamChain, Units, UnixTime, Usage, Values,
    compute::{ComputeEvents, MAX_ERROR_CHARS, MAX_OUTPUT_BYTES, MAX_OUTPUT_VALUES},
    delivery::most_units,
    executor::{ModelPackage, Outputs},
    stream::{CHECKPOINT_MILLIS, CHECKPOINT_PARTS},
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    payments::{PaymentCheckError, PaymentVerifier},
    registration::NodeDescriptor,
};
use ncn_client::unix_now;

/// How often, and with what pause, the chain is looked at for a payment.
const PAYMENT_LOOKS: u32 = 10;
const PAYMENT_PAUSE: Duration = Duration::from_millis(200);
/// The longest that a place is held without being used.
const MAX_LEASE_SECONDS: u64 = 10 * 60;

/// A compute node.
pub struct ComputeNode {
    signer: DynSigner,
    domain: Domain,
    subnet: B256,
    executor: Arc<dyn Executor>,
    ledger: Arc<dyn ChainView>,
    payments: PaymentVerifier,
    models: HashMap<B256, ModelPackage>,
    leases: Arc<Leases>,
}

impl ComputeNode {
    /// A compute node in this subnet, with `places` places. It believes a gateway's word on payment only when `ledger` confirms it.
    pub fn new(
        signer: DynSigner,
        domain: Domain,
        subnet: B256,
        executor: Arc<dyn Executor>,
        ledger: Arc<dyn ChainView>,
        places: usize,
    ) -> Self {
        let leases = Arc::new(Leases { places, held: Mutex::default() });
        let payments = PaymentVerifier::new(ledger.clone());
        Self { signer, domain, subnet, executor, ledger, payments, models: HashMap::new(), leases }
    }

    /// Makes a model ready to run.
    pub async fn add_model(&mut self, package: ModelPackage) -> Result<(), ExecutorError> {
        self.executor.load(&package).await?;
        self.models.insert(package.model.digest(), package);
        Ok(())
    }

    /// What this node says of itself.
    pub fn descriptor(&self) -> NodeDescriptor {
        NodeDescriptor {
            role: ncn_core::NodeRole::Compute,
            subnet: self.subnet,
            endpoint: String::new(),
            models: self.models.keys().copied().collect(),
            confinement: self.models.keys().map(|digest| self.executor.confinement(digest)).min().unwrap_or_default(),
        }
    }

    /// Everything that has to be true before a model runs.
    async fn check(&self, task: &ComputeTask) -> Result<(), ComputeError> {
        let (order, quote) = (&task.request.message, &task.quote);
        let invalid = |problem: &str| Err(ComputeError::InvalidTask(problem.to_owned()));
        let fits = quote.fits(order, &order.digest(&self.domain)).and_then(|()| order.fits_inputs(&task.inputs));
        fits.map_err(|mismatch| ComputeError::InvalidTask(mismatch.to_string()))?;
        let history = self.ledger.trust(quote.epoch).await.map_err(|error| ComputeError::Unavailable(error.to_string()))?;
        let (trust, _) = history.of(quote).map_err(|mismatch| ComputeError::InvalidTask(mismatch.to_string()))?;
        if let Some(voucher) = &task.voucher {
            voucher.verify(quote, &trust).map_err(|error| ComputeError::InvalidTask(error.to_string()))?;
        }
        let mut looks = 0;
        loop {
            looks += 1;
            match self.payments.check(quote, task.voucher.as_ref()).await {
                Ok(()) => return Ok(()),
                // This node's view of the chain may be a block behind the gateway's.
                Err(PaymentCheckError::NotYet(_)) if looks < PAYMENT_LOOKS => tokio::time::sleep(PAYMENT_PAUSE).await,
                Err(error @ PaymentCheckError::NotYet(_)) => return Err(ComputeError::Unavailable(error.to_string())),
                Err(error @ PaymentCheckError::Refused(_)) => return invalid(&error.to_string()),
            }
        }
    }
}

#[async_trait]
impl Compute for ComputeNode {
    fn address(&self) -> Address {
        self.signer.address()
    }

    async fn reserve(&self, reservation: Reservation) -> Result<(), ComputeError> {
        if !self.models.contains_key(&reservation.model_digest) {
            return Err(ComputeError::UnknownModel(reservation.model_digest));
        }
        self.leases.hold(&reservation, unix_now()).map_err(|()| ComputeError::Busy(self.address()))
    }

    async fn release(&self, request_id: RequestId) {
        // A place in use is given back by the task that uses it.
        self.leases.lock().retain(|id, held| *id != request_id || held.running);
    }

    async fn execute(&self, task: ComputeTask) -> Result<ComputeEvents, ComputeError> {
        let request_id = task.quote.request_id;
        let lease = self.leases.take(request_id, task.quote.model_digest, unix_now())?;
        self.check(&task).await?;
        let package = self.models.get(&task.quote.model_digest).ok_or(ComputeError::UnknownModel(task.quote.model_digest))?;
        if task.resume.is_some() && !self.executor.is_deterministic(&task.quote.model_digest) {
            return Err(ComputeError::CannotResume("the model may give other parts each time".into()));
        }
        let left = Duration::from_secs(task.finish_by.min(task.quote.expiry).saturating_sub(unix_now()));
        if left.is_zero() {
            return Err(ComputeError::DeadlineExceeded);
        }
        let time_limit = left.min(Duration::from_millis(package.model.manifest().limits.deadline_ms));
        let execution = Execution {
            model_digest: task.quote.model_digest,
            inputs: task.inputs,
            parameters: task.request.message.parameters.clone(),
            time_limit,
        };
        let started = Instant::now();
        let outputs = self.executor.run(execution).await.map_err(compute_error)?;
        let unsigned = InferenceResult {
            request_id,
            compute: self.address(),
            model_digest: task.quote.model_digest,
            input_hash: task.request.message.input_hash,
            output_hash: B256::ZERO,
            output_bytes: 0,
            parts: 0,
            chain: B256::ZERO,
            resumed_from: task.resume.map(|resume| resume.chain).unwrap_or_default(),
            usage: Usage::default(),
            confinement: self.executor.confinement(&task.quote.model_digest),
            finish: None,
        };
        let before = task.resume.map_or(0, |resume| resume.output_units);
        let Units { input, output } = task.quote.max_units;
        let max_units = Units { input, output: output.saturating_sub(before) };
        let signing = Signing { signer: self.signer.clone(), domain: self.domain, unsigned, max_units };
        let mut running = Running::new(outputs, started, started + time_limit, package.model.clone(), signing, lease);
        running.resume = task.resume;
        Ok(stream::unfold(Some(running), |running| async { running?.next().await }).boxed())
    }

    async fn stop(&self, request_id: RequestId) {
        if let Some(held) = self.leases.lock().get(&request_id) {
            held.stop.cancel();
        }
    }
}

/// A task that runs.
struct Running {
    outputs: Outputs,
    started: Instant,
    /// The executor ends a run by then; should it not, this node does.
    deadline: Instant,
    model: Arc<Model>,
    budget: StreamBudget,
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

struct Signing {
    signer: DynSigner,
    domain: Domain,
    unsigned: InferenceResult,
    /// The most that the request is charged for.
    max_units: Units,
}

impl Running {
    fn new(outputs: Outputs, started: Instant, deadline: Instant, model: Arc<Model>, signing: Signing, lease: Lease) -> Self {
        Self {
            outputs,
            started,
            deadline,
            model,
            budget: StreamBudget::default(),
            output: Values::new(),
            usage: Usage::default(),
            chain: StreamChain::new(signing.unsigned.request_id),
            signing,
            resume: None,
            before: Before::default(),
            signed_parts: 0,
            unsigned_since: None,
            events: VecDeque::new(),
            ended: false,
            lease,
        }
    }

    /// The next event, and what is left to run after it.
    async fn next(mut self) -> Option<(Result<ComputeEvent, ComputeError>, Option<Self>)> {
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
            Next::Cut(finish) if self.own_parts() > 0 => self.finish(finish).await,
            Next::Cut(FinishReason::Cancelled) => Err(ComputeError::Cancelled),
            Next::Cut(_) => Err(ComputeError::DeadlineExceeded),
        }
    }

    /// How many parts are this node's own.
    const fn own_parts(&self) -> u64 {
        if self.resume.is_some() { 0 } else { self.chain.parts() - self.before.parts }
    }

    /// Whether a part, which has just come, is one that another node has given.
    fn is_repeated(&mut self, part: &OutputChunk) -> Result<bool, ComputeError> {
        let Some(resume) = self.resume else { return Ok(false) };
        if part.is_last() {
            return Err(ComputeError::CannotResume("the output ends before the parts that are there".into()));
        }
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
            Some(Err(error)) => Err(compute_error(error)),
            None => Err(ComputeError::Failed("the output broke off".into())),
        }
    }

    async fn take(&mut self, part: OutputChunk) -> Result<(), ComputeError> {
        // What is signed has to be what the manifest promises, whoever made it.
        let broken = |problem: String| compute_error(ExecutorError::InvalidOutput(problem));
        self.budget.take(&part.values).map_err(|limit| broken(limit.to_string()))?;
        self.model.manifest().check_part(&part.values).map_err(|error| broken(error.to_string()))?;
        self.output.append(part.values.clone());
        check_size(&self.output)?;
        self.usage = part.usage;
        if part.is_last() {
            self.model.manifest().check_delivered(&self.output).map_err(|error| broken(error.to_string()))?;
        }
        // What comes in one part is no stream.
        let streams = !part.is_last() || self.chain.parts() > 0;
        self.chain.extend(&part.values);
        if self.is_repeated(&part)? {
            return Ok(());
        }
        let finish = part.finish;
        if streams {
            self.unsigned_since.get_or_insert_with(Instant::now);
            self.events.push_back(ComputeEvent::Chunk(part));
        }
        match finish {
            Some(finish) => self.finish(finish).await,
            None if self.chain.parts() - self.signed_parts >= CHECKPOINT_PARTS => self.sign_parts().await,
            None => Ok(()),
        }
    }

    /// Tells a checkpoint of the parts so far.
    async fn sign_parts(&mut self) -> Result<(), ComputeError> {
        self.unsigned_since = None;
        self.signed_parts = self.chain.parts();
        let checkpoint = self.signing.sign(self.result(None)).await?;
        self.events.push_back(ComputeEvent::Checkpoint(checkpoint));
        Ok(())
    }

    /// Tells the end of the output.
    async fn finish(&mut self, finish: FinishReason) -> Result<(), ComputeError> {
        self.ended = true;
        let result = self.signing.sign(self.result(Some(finish))).await?;
        if self.unsigned_since.is_some() {
            // For those who follow the parts: the end is the last checkpoint.
            self.events.push_back(ComputeEvent::Checkpoint(result.clone()));
        }
        let output = std::mem::take(&mut self.output);
        self.events.push_back(ComputeEvent::Finished { output, result });
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

fn compute_error(error: ExecutorError) -> ComputeError {
    // A model's own words, of which a few are enough.
    let text = |error: ExecutorError| error.to_string().chars().take(MAX_ERROR_CHARS).collect();
    match error {
        ExecutorError::TimedOut(_) | ExecutorError::Cancelled => ComputeError::DeadlineExceeded,
        ExecutorError::NotLoaded(digest) => ComputeError::UnknownModel(digest),
        error if error.is_retryable() => ComputeError::Unavailable(text(error)),
        error => ComputeError::Failed(text(error)),
    }
}

/// Who holds a place.
struct Leases {
    places: usize,
    held: Mutex<HashMap<RequestId, Held>>,
}

struct Held {
    model_digest: B256,
    expires_at: UnixTime,
    running: bool,
    /// Ends what runs.
    stop: CancellationToken,
}

/// A place in use; free again when it is dropped.
struct Lease {
    leases: Arc<Leases>,
    request_id: RequestId,
    stop: CancellationToken,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.lock().remove(&self.request_id);
    }
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, reservation: &Reservation, now: UnixTime) -> Result<(), ()> {
        let mut held = self.lock();
        held.retain(|_, held| held.running || held.expires_at >= now);
        if held.get(&reservation.request_id).is_some_and(|held| held.running) {
            return Ok(());
        }
        if held.len() >= self.places && !held.contains_key(&reservation.request_id) {
            return Err(());
        }
        let expires_at = reservation.expires_at.min(now + MAX_LEASE_SECONDS);
        held.insert(
            reservation.request_id,
            Held { model_digest: reservation.model_digest, expires_at, running: false, stop: CancellationToken::new() },
        );
        Ok(())
    }

    /// Turns a held place into one in use.
    fn take(self: &Arc<Self>, request_id: RequestId, model_digest: B256, now: UnixTime) -> Result<Lease, ComputeError> {
        let invalid = |problem: &str| Err(ComputeError::InvalidTask(problem.to_owned()));
        let mut all = self.lock();
        let Some(held) = all.get_mut(&request_id).filter(|held| held.running || held.expires_at >= now) else {
            return invalid("lease: there is none for this request, or it has expired: reserve first");
        };
        if held.running {
            return invalid("lease: the request is running already");
        }
        if held.model_digest != model_digest {
            return invalid("lease: it was reserved for another model");
        }
        held.running = true;
        let stop = held.stop.clone();
        drop(all);
        Ok(Lease { leases: self.clone(), request_id, stop })
    }
}
