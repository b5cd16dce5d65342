//! The compute node: holds places for requests, runs models, signs what came out.

#[cfg(feature = "grpc")]
mod attach;
mod claims;
mod credit;
mod finished;
mod leases;
mod running;
mod unacknowledged;

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
#[cfg(feature = "grpc")]
pub use attach::GatewaySessions;
use claims::{Claim, least_payout};
pub use claims::{ClaimParts, Claims, ClaimsError};
pub use credit::DEFAULT_CREDIT;
use credit::{Credit, Debt};
use finished::Finished;
use futures::{StreamExt as _, stream};
use leases::Leases;
use ncn_core::{
    Acknowledgement, Amount, ChainView, Collected, Committee, Compute, ComputeError, ComputeTask, Continuation, Delivery, Dispatch,
    Domain, DynSigner, Execution, Executor, ExecutorError, FinishReason, InferenceRequest, InferenceResult, Message as _,
    QuorumCertificate, Quote, RequestId, Reservation, Resume, Signed, Units, Usage,
    compute::{ComputeEvent, ComputeEvents, MAX_ERROR_CHARS},
    dispatch,
    executor::ModelPackage,
};
use ncn_core::{Address, B256};
use running::{Running, Signing};
use tokio::time::Instant;
use unacknowledged::Unacknowledged;

use crate::{
    measures,
    payments::{PaymentCheckError, PaymentVerifier},
    registration::NodeDescriptor,
};
use ncn_client::unix_now;

/// How often, and with what pause, the chain is looked at for a payment.
const PAYMENT_LOOKS: u32 = 10;
const PAYMENT_PAUSE: Duration = Duration::from_millis(200);

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
    finished: Arc<Finished>,
    unacknowledged: Arc<Unacknowledged>,
    claims: Option<Arc<Claims>>,
    credit: Arc<Credit>,
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
        let (leases, finished, unacknowledged) = (Leases::new(places), Arc::default(), Arc::default());
        let payments = PaymentVerifier::new(ledger.clone());
        let credit = Credit::new(DEFAULT_CREDIT, signer.address(), ledger.clone());
        let models = HashMap::new();
        Self { signer, domain, subnet, executor, ledger, payments, models, leases, finished, unacknowledged, claims: None, credit }
    }

    /// Has it keep there what it is owed.
    pub fn claim_by(&mut self, claims: Arc<Claims>) {
        self.claims = Some(claims);
    }

    /// Has it let its gateway owe it so much out of channels: nothing, and it takes no vouchers.
    pub fn lend(&mut self, limit: Amount) {
        self.credit = Credit::new(limit, self.address(), self.ledger.clone());
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

    /// Everything that has to be true before a model runs. Returns who judges the request.
    async fn check(&self, task: &ComputeTask) -> Result<Committee, ComputeError> {
        let (order, quote) = (&task.request.message, &task.quote);
        let invalid = |problem: &str| Err(ComputeError::InvalidTask(problem.to_owned()));
        let fits = quote.fits(order, &order.digest(&self.domain)).and_then(|()| order.fits_inputs(&task.inputs));
        fits.map_err(|mismatch| ComputeError::InvalidTask(mismatch.to_string()))?;
        let history = self.ledger.trust(quote.epoch).await.map_err(|error| ComputeError::Unavailable(error.to_string()))?;
        let (trust, committee) = history.of(quote).map_err(|mismatch| ComputeError::InvalidTask(mismatch.to_string()))?;
        let approved = task.preprocessing.verify(&quote.digest(&self.domain), &committee);
        approved.map_err(|error| ComputeError::InvalidTask(format!("preprocessing: {error}")))?;
        self.check_dispatch(task)?;
        if let Some(voucher) = &task.voucher {
            voucher.verify(quote, &trust).map_err(|error| ComputeError::InvalidTask(error.to_string()))?;
        }
        let mut looks = 0;
        loop {
            looks += 1;
            match self.payments.check(quote, task.voucher.as_ref()).await {
                Ok(()) => return Ok(committee),
                // This node's view of the chain may be a block behind the gateway's.
                Err(PaymentCheckError::NotYet(_)) if looks < PAYMENT_LOOKS => tokio::time::sleep(PAYMENT_PAUSE).await,
                Err(error @ PaymentCheckError::NotYet(_)) => return Err(ComputeError::Unavailable(error.to_string())),
                Err(error @ PaymentCheckError::Refused(_)) => return invalid(&error.to_string()),
            }
        }
    }

    /// Whether the gateway has signed that this node serves, after those that have. Without it, nobody would have to pay this node.
    fn check_dispatch(&self, task: &ComputeTask) -> Result<(), ComputeError> {
        let invalid = |problem: String| ComputeError::InvalidTask(problem);
        let own = (self.address(), task.resume().map(|resume| resume.chain).unwrap_or_default());
        let before = task.before.iter().map(|result| (result.message.compute, result.message.resumed_from));
        let nodes: Vec<_> = before.chain([own]).collect();
        dispatch::verify(&task.dispatches, &task.quote, &nodes, &self.domain).map_err(|error| invalid(error.to_string()))?;
        if !task.before.is_empty() {
            // What follows from these is not paid when they are not what they seem.
            let before = Delivery { results: task.before.clone(), finish: FinishReason::NodeLost };
            before.completion(&task.quote).map_err(|error| invalid(format!("before: {error}")))?;
            before.verify(&self.domain).map_err(|error| invalid(format!("before: {error}")))?;
        }
        Ok(())
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
        let busy = |()| ComputeError::Busy(self.address());
        if self.claims.as_ref().is_some_and(|claims| !claims.has_room()) || !self.unacknowledged.has_room(unix_now()) {
            return Err(busy(()));
        }
        self.finished.room(unix_now()).and_then(|()| self.leases.hold(&reservation, unix_now())).map_err(busy)
    }

    async fn release(&self, request_id: RequestId) {
        // What runs is not released from waiting for its gateway's word.
        if self.leases.release(&request_id) {
            self.finished.forget(&request_id);
            self.unacknowledged.forget(&request_id);
        }
    }

    async fn execute(&self, task: ComputeTask) -> Result<ComputeEvents, ComputeError> {
        let (request_id, model_digest) = (task.quote.request_id, task.quote.model_digest);
        let lease = self.leases.take(request_id, model_digest, unix_now())?;
        // Of an earlier run, nobody will say anything any more.
        self.unacknowledged.forget(&request_id);
        let committee = self.check(&task).await?;
        let package = self.models.get(&task.quote.model_digest).ok_or(ComputeError::UnknownModel(task.quote.model_digest))?;
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
        let resume = Resume::after(&task.before);
        let (execution, continuation) = match resume {
            None => (execution, None),
            Some(_) if self.executor.is_deterministic(&execution.model_digest) => (execution, Some(Continuation::Rerun)),
            Some(Resume { output_units, .. }) => {
                let last = task.before.last().map(|last| &last.message);
                let is_given = last.is_some_and(|last| last.fits_output(&task.prefix).is_ok());
                let after = self.executor.continue_from(&execution, &task.prefix, output_units).filter(|_| is_given);
                let cannot =
                    || ComputeError::CannotResume("the model gives other parts each time, and takes none as context".into());
                (after.ok_or_else(cannot)?, Some(Continuation::Context))
            }
        };
        let debt = match &task.voucher {
            Some(payment) => Some(self.credit.grant(payment.voucher.amount).await?),
            None => None,
        };
        let started = Instant::now();
        let outputs = self.executor.run(execution).await.map_err(|error| match compute_error(error) {
            // The prefix may be what it does not take.
            ComputeError::Failed(problem) if continuation == Some(Continuation::Context) => ComputeError::CannotResume(problem),
            error => error,
        })?;
        let unsigned = InferenceResult {
            request_id,
            compute: self.address(),
            model_digest: task.quote.model_digest,
            input_hash: task.request.message.input_hash,
            output_hash: B256::ZERO,
            output_bytes: 0,
            parts: 0,
            chain: B256::ZERO,
            resumed_from: resume.map(|resume| resume.chain).unwrap_or_default(),
            continuation,
            usage: Usage::default(),
            confinement: self.executor.confinement(&task.quote.model_digest),
            finish: None,
        };
        let before = resume.map_or(0, |resume| resume.output_units);
        let Units { input, output } = task.quote.max_units;
        let max_units = Units { input, output: output.saturating_sub(before) };
        let signing = Signing { signer: self.signer.clone(), domain: self.domain, unsigned, max_units };
        // What a voucher pays, only its gateway can settle.
        let claims = self.claims.clone().filter(|_| task.voucher.is_none());
        let is_voucher = task.voucher.is_some();
        let ComputeTask { request, quote, preprocessing, before, prefix, dispatches, .. } = task;
        let assignment = Assignment { request, quote, preprocessing, committee, before, dispatches, is_voucher, claims, debt };
        let model = package.model.clone();
        let told = (self.unacknowledged.clone(), self.finished.clone());
        let mut running = Running::new(outputs, started, started + time_limit, model, signing, lease, assignment, told);
        if continuation == Some(Continuation::Context) {
            running.go_on(prefix);
        }
        let mut run = measures::Run::begin();
        let events = stream::unfold(Some(running), |running| async { running?.next().await });
        let see = move |event: &Result<ComputeEvent, ComputeError>| {
            run.see(event);
            match event {
                Ok(ComputeEvent::Finished(result)) => {
                    let (Units { input, output }, took) = (result.message.usage.units(), started.elapsed());
                    tracing::info!(request = %request_id, model = %model_digest, input, output, ?took, "a request has run");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(request = %request_id, model = %model_digest, %error, "a request has failed"),
            }
        };
        Ok(events.inspect(see).boxed())
    }

    async fn stop(&self, request_id: RequestId) {
        self.leases.stop(&request_id);
    }

    async fn acknowledge(&self, request_id: RequestId, acknowledgement: Signed<Acknowledgement>) {
        let claim = self.unacknowledged.take(request_id, acknowledgement, &self.domain);
        if let (Some(claims), Some(claim)) = (&self.claims, claim) {
            claims.keep(claim).await;
            // On the way there is another one soon.
            if self.finished.has(&request_id) {
                claims.persist(request_id).await;
            }
        }
    }

    async fn collect(
        &self,
        request_id: RequestId,
        certificate: QuorumCertificate,
        acknowledgement: Signed<Acknowledgement>,
    ) -> Result<Collected, ComputeError> {
        // A certificate is worth nothing once the escrow has ended in another way.
        if let Some((quote, completion)) = self.finished.check(request_id, &certificate, &acknowledgement, &self.domain)? {
            let checked = self.payments.check_certified(&quote, completion).await;
            checked.map_err(|error| ComputeError::Unavailable(error.to_string()))?;
        }
        let (collected, claim) = self.finished.collect(request_id, certificate, acknowledgement)?;
        // Kept before the output is out of hand.
        if let (Some(claims), Some(claim)) = (&self.claims, claim)
            && !claims.keep(claim).await
        {
            return Err(ComputeError::Busy(self.address()));
        }
        Ok(collected)
    }
}

/// What a task is paid by.
struct Assignment {
    request: Signed<InferenceRequest>,
    quote: Quote,
    preprocessing: QuorumCertificate,
    committee: Committee,
    before: Vec<Signed<InferenceResult>>,
    dispatches: Vec<Signed<Dispatch>>,
    is_voucher: bool,
    claims: Option<Arc<Claims>>,
    debt: Option<Debt>,
}

impl Assignment {
    /// The gateway owes what this word pays, where nothing but its settlement does.
    fn owe(&mut self, result: &Signed<InferenceResult>) {
        if let Some(debt) = &mut self.debt {
            debt.earned = least_payout(&self.quote, &self.before, result);
        }
    }

    /// What the node is owed by this word.
    fn claim(&self, result: &Signed<InferenceResult>) -> Claim {
        let (request, quote, committee) = (self.request.clone(), self.quote.clone(), self.committee.clone());
        let preprocessing = self.preprocessing.clone();
        let (before, dispatches, result) = (self.before.clone(), self.dispatches.clone(), result.clone());
        Claim { request, quote, preprocessing, committee, before, dispatches, result, acknowledgement: None, certificate: None }
    }
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
