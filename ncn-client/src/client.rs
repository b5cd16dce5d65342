//! A whole request, from input to verified output.

mod builder;
mod order;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub use builder::{ClientBuilder, Options};
use futures::StreamExt as _;
use ncn_core::{
    B256, DynSigner, EscrowState, InferenceRequest, LedgerError, Message as _, ModelInfo, OutputChunk, PaymentConfirmation,
    PaymentLedger, Quote, Receipt, RequestId, Signed, Step, StepReport, Submission, TaskAccess, TaskStatus, TaskUpdate, Transport,
    TransportError, TrustRoot, UnixTime, Values, validation::MAX_ESCROW_SECONDS,
};
pub use order::Order;

use crate::ClientError;

/// How long to wait before asking a gateway again that does not answer; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How long past expiry a refund is tried for before the caller is told that it is still to come.
const REFUND_PATIENCE: Duration = Duration::from_secs(30);
/// How long a gateway that has been paid is asked for what it has not delivered yet.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(30);
/// How long the hint that a request is paid may take.
const HINT_TIMEOUT: Duration = Duration::from_secs(5);

/// The SDK's way to the network. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    ledger: Arc<dyn PaymentLedger>,
    signer: DynSigner,
    options: Options,
}

/// A verified answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What the model gave.
    pub output: Values,
    /// The proof of it, verified against the client's trust root.
    pub receipt: Receipt,
    /// The steps that led to it, as client and gateway measured them.
    pub steps: Vec<StepReport>,
}

/// An order that the validators approved and nobody has paid yet. Dropping it costs nothing.
#[derive(Clone)]
pub struct Quoted {
    client: Client,
    request: Signed<InferenceRequest>,
    access: Signed<TaskAccess>,
    quote: Quote,
    trust: TrustRoot,
    submitting: Duration,
}

/// A paid order.
#[derive(Clone)]
pub struct Paid {
    quoted: Quoted,
    paying: Duration,
}

impl Client {
    /// Starts to set a client up.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// What the gateway offers.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, ClientError> {
        Ok(self.transport.models().await?)
    }

    /// Runs a model on these inputs and pays its listed price: submit, pay, wait, verify.
    pub async fn infer(&self, model: &str, inputs: impl Into<Values> + Send) -> Result<Answer, ClientError> {
        self.submit(Order::new(model, inputs)).await?.pay().await?.finish().await
    }

    /// Submits an order and checks what the gateway makes of it. Nothing is paid yet.
    pub async fn submit(&self, order: Order) -> Result<Quoted, ClientError> {
        let started = Instant::now();
        let offered = self.transport.models().await?;
        let Some(info) = offered.iter().find(|info| info.model.manifest().name == order.model) else {
            let offered: Vec<_> = offered.iter().map(|info| info.model.manifest().name.as_str()).collect();
            return Err(ClientError::UnknownModel { name: order.model, offered: offered.join(", ") });
        };
        // The gateway checks the same; here it costs nobody anything.
        info.model.manifest().prepare(&order.inputs)?;
        let limit = order.max_price.unwrap_or(info.price);
        if info.price > limit {
            return Err(ClientError::TooExpensive { price: info.price, limit });
        }
        let message = InferenceRequest {
            client: self.signer.address(),
            subnet: info.subnet,
            model_digest: info.model.digest(),
            input_hash: order.inputs.hash(),
            parameters: order.parameters,
            max_price: limit,
            deadline: unix_now() + order.patience.unwrap_or(self.options.patience).as_secs().clamp(1, MAX_ESCROW_SECONDS),
            nonce: B256::random(),
        };
        let trust = self.trust_root().await?;
        let request = Signed::sign(message, &trust.domain, &*self.signer).await?;
        let request_id = request.message.digest(&trust.domain);
        let access = TaskAccess { client: self.signer.address(), request_id };
        let access = Signed::sign(access, &trust.domain, &*self.signer).await?;

        let submission = Submission { request: request.clone(), inputs: order.inputs };
        let status = self.transport.submit(submission).await?;
        let quote = approved_quote(&request.message, &request_id, &trust, status)?;
        Ok(Quoted { client: self.clone(), request, access, quote, trust, submitting: started.elapsed() })
    }

    async fn trust_root(&self) -> Result<TrustRoot, ClientError> {
        match &self.options.trust {
            Some(trust) => Ok(trust.clone()),
            None => Ok(self.ledger.trust_root().await?),
        }
    }
}

/// The quote to pay, once it is sure that it is for this order and that the validators have approved it.
fn approved_quote(
    order: &InferenceRequest,
    request_id: &RequestId,
    trust: &TrustRoot,
    status: TaskStatus,
) -> Result<Quote, ClientError> {
    if status.outcome().is_some() {
        return Err(ClientError::Refused(status.failure.unwrap_or_else(|| "the gateway gave no reason".into())));
    }
    let reject = |problem: &str| Err(ClientError::QuoteRejected(problem.to_owned()));
    let (Some(quote), Some(certificate)) = (status.quote, status.preprocessing) else {
        return reject("the gateway gave none");
    };
    let checks = [
        (quote.request_id == *request_id, "it is for another request"),
        (quote.client == order.client, "it names another client"),
        (quote.model_digest == order.model_digest, "it is for another model"),
        (quote.total <= order.max_price, "it asks for more than the order allows"),
        (quote.expiry <= order.deadline, "it would hold the payment past the order's deadline"),
        (quote.expiry > unix_now(), "it has expired"),
        (quote.trust_root == trust.hash(), "it is of another network, or of other validators than the chain has"),
    ];
    if let Some((_, problem)) = checks.iter().find(|(good, _)| !good) {
        return reject(problem);
    }
    match certificate.verify(&quote.digest(&trust.domain), request_id, trust) {
        Ok(()) => Ok(quote),
        Err(error) => reject(&format!("the validators' approval does not count: {error}")),
    }
}

impl Quoted {
    /// The request's id.
    pub const fn request_id(&self) -> RequestId {
        self.quote.request_id
    }

    /// What is to be paid, to whom, until when.
    pub const fn quote(&self) -> &Quote {
        &self.quote
    }

    /// Withdraws the order.
    pub async fn cancel(self) -> Result<(), ClientError> {
        Ok(self.client.transport.cancel(self.access).await?)
    }

    /// Escrows the quote's total and tells the gateway. Paying twice is paying once.
    ///
    /// When the chain does not say whether it took the payment, it is asked again until the quote expires.
    pub async fn pay(self) -> Result<Paid, ClientError> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let transaction = loop {
            match self.client.ledger.escrow(&self.quote).await {
                Ok(transaction) => break transaction,
                Err(error) if error.is_retryable() && unix_now() <= self.quote.expiry => {
                    tracing::warn!(request = %self.quote.request_id, %error, "cannot see whether the payment was taken");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                Err(error) if error.is_retryable() => {
                    let paid = Paid { quoted: self, paying: started.elapsed() };
                    return Err(paid.take_back(error.to_string()).await);
                }
                Err(error) => return Err(error.into()),
            }
        };
        let paying = started.elapsed();
        let confirmation = PaymentConfirmation { request_id: self.quote.request_id, transaction };
        // The gateway follows the chain by itself: a lost hint costs a moment, not the request.
        let hint = tokio::time::timeout(HINT_TIMEOUT, self.client.transport.confirm_payment(confirmation)).await;
        if !matches!(hint, Ok(Ok(()))) {
            tracing::warn!(request = %self.quote.request_id, ?hint, "the gateway did not take the payment's hint");
        }
        Ok(Paid { quoted: self, paying })
    }
}

/// How a look at the updates ended.
enum Ending {
    Answered(Box<Answer>),
    Failed(String),
}

impl Paid {
    /// The request's id.
    pub const fn request_id(&self) -> RequestId {
        self.quoted.request_id()
    }

    /// What was paid.
    pub const fn quote(&self) -> &Quote {
        &self.quoted.quote
    }

    /// Waits for the answer and verifies it.
    pub async fn finish(self) -> Result<Answer, ClientError> {
        self.finish_with(|_| ()).await
    }

    /// Waits for the answer and verifies it; `on_chunk` sees parts of a streamed output as they come, before anyone has approved them.
    ///
    /// When the gateway falls silent, it is asked again until the quote expires; then the payment is taken back from the chain.
    pub async fn finish_with(self, mut on_chunk: impl FnMut(OutputChunk) + Send) -> Result<Answer, ClientError> {
        let mut pause = FIRST_PAUSE;
        let reason = loop {
            let left = Duration::from_secs((self.quote().expiry + 1).saturating_sub(unix_now()));
            match self.follow(left, &mut on_chunk).await {
                Ok(Ending::Answered(answer)) => return Ok(*answer),
                Ok(Ending::Failed(reason)) => break reason,
                Err(error) if error.is_retryable() && unix_now() <= self.quote().expiry => {
                    tracing::warn!(request = %self.request_id(), %error, "lost the gateway; asking again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                Err(error) => break error.to_string(),
            }
        };
        // The chain may have paid everyone in the meantime: then the gateway owes the answer, and is asked for it once more.
        if let Ok(EscrowState::Completed { .. }) = self.escrow_state().await
            && let Ok(Ending::Answered(answer)) = self.follow(DELIVERY_PATIENCE, &mut on_chunk).await
        {
            return Ok(*answer);
        }
        Err(self.take_back(reason).await)
    }

    async fn escrow_state(&self) -> Result<EscrowState, LedgerError> {
        self.quoted.client.ledger.escrow_state(self.quote().client, self.request_id()).await
    }

    /// Follows the updates once, for at most `patience`.
    async fn follow(&self, patience: Duration, on_chunk: &mut (impl FnMut(OutputChunk) + Send)) -> Result<Ending, TransportError> {
        let following = async {
            let mut steps = Vec::new();
            let mut updates = self.quoted.client.transport.updates(self.quoted.access.clone()).await?;
            while let Some(update) = updates.next().await {
                match update? {
                    TaskUpdate::Step(report) => steps.push(report),
                    TaskUpdate::Chunk(chunk) => on_chunk(chunk),
                    TaskUpdate::Delivered { output, receipt } => {
                        return Ok(match self.accept(output, *receipt, steps) {
                            Ok(answer) => Ending::Answered(Box::new(answer)),
                            Err(problem) => Ending::Failed(format!("the receipt was rejected: {problem}")),
                        });
                    }
                    TaskUpdate::Failed { reason, .. } => return Ok(Ending::Failed(reason)),
                    _ => {}
                }
            }
            Err(TransportError::Internal("the updates broke off".into()))
        };
        let silent = || TransportError::Refused("the gateway delivered nothing in time".into());
        tokio::time::timeout(patience, following).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Hands the output over only with the proof of it.
    fn accept(&self, output: Values, receipt: Receipt, mut steps: Vec<StepReport>) -> Result<Answer, String> {
        let started = Instant::now();
        let quoted = &self.quoted;
        if receipt.request != quoted.request || receipt.quote != quoted.quote {
            return Err("it is for another request".into());
        }
        if !receipt.matches_output(&output) {
            return Err("the output is not the one that was signed and approved".into());
        }
        receipt.verify(&quoted.trust).map_err(|error| error.to_string())?;
        let client = quoted.quote.client;
        // What the gateway did while the client waited for its quote is reported as steps of its own.
        let within: Duration = steps.iter().filter(|report| report.step < Step::Pay).map(|report| report.took).sum();
        steps.push(StepReport { step: Step::Submit, actor: client, took: quoted.submitting.saturating_sub(within) });
        steps.push(StepReport { step: Step::Pay, actor: client, took: self.paying });
        steps.push(StepReport { step: Step::Deliver, actor: client, took: started.elapsed() });
        steps.sort_by_key(|report| report.step);
        Ok(Answer { output, receipt, steps })
    }

    /// Makes sure that the payment comes back: the gateway may have given it back already; past its expiry, anyone can. Returns how
    /// the request ended for the client.
    async fn take_back(&self, reason: String) -> ClientError {
        let (ledger, quote) = (&self.quoted.client.ledger, self.quote());
        let patience = Duration::from_secs(quote.expiry.saturating_sub(unix_now())) + REFUND_PATIENCE;
        let give_up = Instant::now() + patience;
        let mut pause = FIRST_PAUSE;
        loop {
            let (problem, unpaid) = match self.escrow_state().await {
                Ok(EscrowState::Refunded { transaction }) => return ClientError::Refunded { transaction, reason },
                Ok(EscrowState::Completed { transaction }) => {
                    return ClientError::ReceiptRejected(format!("paid out by {transaction}, but no valid receipt came: {reason}"));
                }
                // A chain that lags shows nothing yet; one that shows nothing past expiry never took the payment.
                Ok(EscrowState::None) => ("the chain shows no payment".to_owned(), true),
                Ok(EscrowState::Escrowed { .. }) => match ledger.refund(quote).await {
                    Ok(transaction) => return ClientError::Refunded { transaction, reason },
                    Err(error) => (error.to_string(), false),
                },
                Err(error) => (error.to_string(), false),
            };
            if Instant::now() >= give_up {
                let reason = format!("{reason}; {problem}");
                return if unpaid { ClientError::Refused(reason) } else { ClientError::NotRefunded(reason) };
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

fn unix_now() -> UnixTime {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
