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
    InferenceResult, Message as _, Model, RequestId, Reservation, Signed, StreamBudget, StreamChain, UnixTime, Usage, Values,
    compute::{ComputeEvents, MAX_ERROR_CHARS, MAX_OUTPUT_BYTES, MAX_OUTPUT_VALUES, MAX_UNITS},
    crypto::Authored,
    executor::{ModelPackage, Outputs},
    stream::{CHECKPOINT_MILLIS, CHECKPOINT_PARTS},
};

use tokio::time::Instant;

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
        if let Some(voucher) = &task.voucher {
            let trust = self.ledger.trust_root().await.map_err(|error| ComputeError::Unavailable(error.to_string()))?;
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
        let left = Duration::from_secs(task.quote.expiry.saturating_sub(unix_now()));
        let execution = Execution {
            model_digest: task.quote.model_digest,
            inputs: task.inputs,
            parameters: task.request.message.parameters.clone(),
            time_limit: left.min(Duration::from_millis(package.model.manifest().limits.deadline_ms)),
        };
        let started = Instant::now();
        let outputs = self.executor.run(execution).await.map_err(compute_error)?;
        let unsigned = InferenceResult {
            request_id,
            compute: self.address(),
            model_digest: task.quote.model_digest,
            input_hash: task.request.message.input_hash,
            output_hash: B256::ZERO,
            usage: Usage::default(),
            confinement: self.executor.confinement(&task.quote.model_digest),
        };
        let signing = Signing { signer: self.signer.clone(), domain: self.domain, unsigned };
        let running = Running::new(outputs, started, package.model.clone(), signing, lease);
        Ok(stream::unfold(Some(running), |running| async { running?.next().await }).boxed())
    }
}

/// A task that runs.
struct Running {
    outputs: Outputs,
    started: Instant,
    model: Arc<Model>,
    budget: StreamBudget,
    output: Values,
    signing: Signing,
    chain: StreamChain,
    /// How many parts the last checkpoint covers, and since when there are more.
    signed_parts: u64,
    unsigned_since: Option<Instant>,
    /// What is to be told next; nothing comes after it once the model has ended.
    events: VecDeque<ComputeEvent>,
    ended: bool,
    _lease: Lease,
}

struct Signing {
    signer: DynSigner,
    domain: Domain,
    unsigned: InferenceResult,
}

impl Running {
    fn new(outputs: Outputs, started: Instant, model: Arc<Model>, signing: Signing, lease: Lease) -> Self {
        Self {
            outputs,
            started,
            model,
            budget: StreamBudget::default(),
            output: Values::new(),
            chain: StreamChain::new(signing.unsigned.request_id),
            signing,
            signed_parts: 0,
            unsigned_since: None,
            events: VecDeque::new(),
            ended: false,
            _lease: lease,
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
        let part = match self.unsigned_since {
            Some(since) => {
                let signed_by = since + Duration::from_millis(CHECKPOINT_MILLIS);
                match tokio::time::timeout_at(signed_by, self.outputs.next()).await {
                    Ok(part) => part,
                    Err(_) => return self.sign_parts().await,
                }
            }
            None => self.outputs.next().await,
        };
        let mut part = part.ok_or_else(|| ComputeError::Failed("the output broke off".into()))?.map_err(compute_error)?;
        // What is signed has to be what the manifest promises, whoever made it.
        let broken = |problem: String| compute_error(ExecutorError::InvalidOutput(problem));
        self.budget.take(&part.values).map_err(|limit| broken(limit.to_string()))?;
        self.model.manifest().check_part(&part.values).map_err(|error| broken(error.to_string()))?;
        self.output.append(part.values.clone());
        check_size(&self.output)?;
        if let Some(usage) = &mut part.usage {
            let elapsed = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
            usage.duration_micros = usage.duration_micros.min(elapsed);
            self.model.manifest().check_delivered(&self.output).map_err(|error| broken(error.to_string()))?;
            check_usage(usage)?;
        }
        let usage = part.usage;
        // What comes in one part is no stream.
        if usage.is_none() || self.chain.parts() > 0 {
            self.chain.extend(&part.values);
            self.unsigned_since.get_or_insert_with(Instant::now);
            self.events.push_back(ComputeEvent::Chunk(part));
            if usage.is_some() || self.chain.parts() - self.signed_parts >= CHECKPOINT_PARTS {
                self.sign_parts().await?;
            }
        }
        if let Some(usage) = usage {
            self.ended = true;
            let output = std::mem::take(&mut self.output);
            let result = InferenceResult { output_hash: output.hash(), usage, ..self.signing.unsigned.clone() };
            let result = self.signing.sign(result).await?;
            self.events.push_back(ComputeEvent::Finished { output, result });
        }
        Ok(())
    }

    /// Tells a checkpoint of the parts so far.
    async fn sign_parts(&mut self) -> Result<(), ComputeError> {
        self.unsigned_since = None;
        self.signed_parts = self.chain.parts();
        let checkpoint = self.signing.sign(self.chain.checkpoint(self.signing.unsigned.compute)).await?;
        self.events.push_back(ComputeEvent::Checkpoint(checkpoint));
        Ok(())
    }
}

impl Signing {
    async fn sign<M: Authored>(&self, message: M) -> Result<Signed<M>, ComputeError> {
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

/// Units are the model's own count.
fn check_usage(usage: &Usage) -> Result<(), ComputeError> {
    if usage.input_units.max(usage.output_units) <= MAX_UNITS {
        return Ok(());
    }
    let Usage { input_units, output_units, .. } = usage;
    Err(ComputeError::Failed(format!("usage: {input_units} units in and {output_units} out, at most {MAX_UNITS} are signed for")))
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

#[derive(Clone, Copy)]
struct Held {
    model_digest: B256,
    expires_at: UnixTime,
    running: bool,
}

/// A place in use; free again when it is dropped.
struct Lease {
    leases: Arc<Leases>,
    request_id: RequestId,
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
        held.insert(reservation.request_id, Held { model_digest: reservation.model_digest, expires_at, running: false });
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
        drop(all);
        Ok(Lease { leases: self.clone(), request_id })
    }
}
