//! A whole request, from input to verified output.

mod builder;
mod order;
mod parts;
mod stored;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub use builder::{ClientBuilder, Options};
use futures::StreamExt as _;
use ncn_core::{
    AccessPurpose, B256, Certificate, DynSigner, InferenceRequest, LedgerError, Message as _, ModelInfo, Payer,
    PaymentConfirmation, PaymentProof, PaymentRef, PaymentStatus, Quote, Receipt, RequestId, Signed, Step, StepReport, Submission,
    TaskAccess, TaskStatus, TaskUpdate, Transport, TransportError, TrustRoot, Values, validation::MAX_ESCROW_SECONDS,
};
pub use order::Order;
use parts::Parts;
pub use parts::StreamEvent;
pub use stored::Stored;

use crate::{Backoff, ClientError, unix_now};

/// How long past expiry a refund is tried for before the caller is told that it is still to come.
const REFUND_PATIENCE: Duration = Duration::from_secs(30);
/// How long a gateway that has been paid is asked for what it has not delivered yet.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(30);
/// How long the chain may take to answer; a payment waits for its block.
const LEDGER_TIMEOUT: Duration = Duration::from_mins(1);
/// How far the gateway's clock may be off from the client's, in seconds.
const CLOCK_TOLERANCE: u64 = 300;
/// How many steps a gateway may report; the rest is not remembered.
const MAX_STEPS: usize = 256;
/// How long the hint that a request is paid may take.
const HINT_TIMEOUT: Duration = Duration::from_secs(5);

/// The SDK's way to the network. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    payer: Arc<dyn Payer>,
    signer: DynSigner,
    options: Options,
}

/// A verified answer.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    preprocessing: Certificate,
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

    /// Runs a model on these inputs and pays for it, at most the client's limit: submit, pay, wait, verify.
    ///
    /// # Errors
    /// [`ClientError::PriceUnseen`] when the client has no limit ([`ClientBuilder::max_price`]), because nobody would see the price before
    /// it is paid. Nothing has been signed then. Every other error says what became of the money: see [`ClientError::is_paid`].
    pub async fn infer(&self, model: &str, inputs: impl Into<Values> + Send) -> Result<Answer, ClientError> {
        if self.options.max_price.is_none() {
            let price = self.offered(model).await?.price;
            return Err(ClientError::PriceUnseen { model: model.to_owned(), price });
        }
        self.submit(Order::new(model, inputs)).await?.pay().await?.finish().await
    }

    /// The model of this name, as the gateway offers it now.
    async fn offered(&self, name: &str) -> Result<ModelInfo, ClientError> {
        let mut offered = self.transport.models().await?;
        match offered.iter().position(|info| info.model.manifest().name == name) {
            Some(index) => Ok(offered.swap_remove(index)),
            None => {
                let offered: Vec<_> = offered.iter().map(|info| info.model.manifest().name.as_str()).collect();
                Err(ClientError::UnknownModel { name: name.to_owned(), offered: offered.join(", ") })
            }
        }
    }

    /// Submits an order and checks what the gateway makes of it. Nothing is paid yet: the caller sees the quote first, and pays it or not.
    ///
    /// The order is signed for the price that the gateway lists at this moment, so neither a higher limit nor a price that rises meanwhile
    /// is ever charged.
    ///
    /// # Errors
    /// [`ClientError::TooExpensive`] when the listed price is above the order's limit, or above the client's where the order has none.
    pub async fn submit(&self, order: Order) -> Result<Quoted, ClientError> {
        let started = Instant::now();
        let info = self.offered(&order.model).await?;
        // The gateway checks the same; here it costs nobody anything.
        info.model.manifest().check(&order.inputs)?;
        info.model.manifest().check_parameters(&order.parameters)?;
        if let Some(limit) = order.max_price.or(self.options.max_price).filter(|limit| info.price > *limit) {
            return Err(ClientError::TooExpensive { price: info.price, limit });
        }
        let message = InferenceRequest {
            client: self.signer.address(),
            subnet: info.subnet,
            model_digest: info.model.digest(),
            input_hash: order.inputs.hash(),
            parameters: order.parameters,
            max_price: info.price,
            deadline: unix_now() + order.patience.unwrap_or(self.options.patience).as_secs().clamp(1, MAX_ESCROW_SECONDS),
            nonce: B256::random(),
        };
        let trust = self.trust_root().await?;
        let request = Signed::sign(message, &trust.domain, &*self.signer).await?;
        let request_id = request.message.digest(&trust.domain);
        let access = TaskAccess { client: self.signer.address(), request_id, purpose: AccessPurpose::Follow };
        let access = Signed::sign(access, &trust.domain, &*self.signer).await?;

        let submission = Submission { request: request.clone(), inputs: order.inputs };
        let status = self.transport.submit(submission).await?;
        let (quote, preprocessing) = approved_quote(&request.message, &request_id, &trust, status)?;
        Ok(Quoted { client: self.clone(), request, access, quote, preprocessing, trust, submitting: started.elapsed() })
    }

    async fn trust_root(&self) -> Result<TrustRoot, ClientError> {
        match &self.options.trust {
            Some(trust) => Ok(trust.clone()),
            None => Ok(self.payer.trust_root().await?),
        }
    }
}

/// The quote to pay and the validators' approval of it, once it is sure that it is for this order and that they have approved it.
fn approved_quote(
    order: &InferenceRequest,
    request_id: &RequestId,
    trust: &TrustRoot,
    status: TaskStatus,
) -> Result<(Quote, Certificate), ClientError> {
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
        Ok(()) => Ok((quote, certificate)),
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
        let access = TaskAccess { purpose: AccessPurpose::Cancel, ..self.access.message };
        let access = Signed::sign(access, &self.trust.domain, &*self.client.signer).await?;
        Ok(self.client.transport.cancel(access).await?)
    }

    /// Escrows the quote's total and tells the gateway. Paying twice is paying once.
    ///
    /// When the chain does not say whether it took the payment, it is asked again until the quote expires.
    pub async fn pay(self) -> Result<Paid, ClientError> {
        let (payer, quote) = (self.client.payer.clone(), self.quote.clone());
        let paid = self.try_to_pay().await;
        if let Err(error) = &paid
            && !error.is_paid()
        {
            payer.release(&quote, false).await;
        }
        paid
    }

    async fn try_to_pay(self) -> Result<Paid, ClientError> {
        let started = Instant::now();
        let mut backoff = Backoff::new();
        let mut uncertain = false;
        let by = loop {
            let error = match within(self.client.payer.pay(&self.quote)).await {
                Ok(by) => break by,
                Err(error) => error,
            };
            uncertain |= error.is_retryable();
            // What the chain holds decides, not the error: the answer to an earlier try may have been lost.
            match self.payment().await {
                Ok(PaymentStatus::Held { quote, by }) if quote == self.quote.struct_hash() => break by,
                Ok(PaymentStatus::Earned { by } | PaymentStatus::PaidOut { by, .. }) => break by,
                Ok(PaymentStatus::Refunded { by }) => return Err(ClientError::Refunded { by, reason: error.to_string() }),
                // No try can have been taken, and this one is refused for good. What a gateway has seen and refused, it may still use.
                Ok(_) | Err(LedgerError::Unproven(_)) if !uncertain => {
                    return Err(match error {
                        LedgerError::Unproven(says) => ClientError::Unproven(says),
                        error => error.into(),
                    });
                }
                _ => tracing::warn!(request = %self.request_id(), %error, "cannot see whether the payment was taken"),
            }
            if unix_now() > self.quote.expiry {
                let paid = Paid { quoted: self, paying: started.elapsed() };
                // Should it have been paid out after all, `finish` brings the answer.
                let mut parts = Parts::new(paid.quote(), paid.quoted.trust.domain);
                return paid.conclude(error.to_string(), &mut parts, &mut |_| ()).await.map(|_| paid.clone());
            }
            backoff.pause().await;
        };
        let paying = started.elapsed();
        self.hint(&by).await;
        Ok(Paid { quoted: self, paying })
    }

    /// Tells the gateway which transaction pays. What it has redeemed itself it knows, and the chain it follows by itself: a lost hint
    /// costs a moment, not the request.
    async fn hint(&self, by: &PaymentRef) {
        let Some(transaction) = by.transaction() else { return };
        let confirmation = PaymentConfirmation { request_id: self.quote.request_id, proof: PaymentProof::Transaction(transaction) };
        let hint = tokio::time::timeout(HINT_TIMEOUT, self.client.transport.confirm_payment(confirmation)).await;
        if !matches!(hint, Ok(Ok(()))) {
            tracing::warn!(request = %self.quote.request_id, ?hint, "the gateway did not take the payment's hint");
        }
    }

    async fn payment(&self) -> Result<PaymentStatus, LedgerError> {
        within(self.client.payer.status(&self.quote)).await
    }
}

/// How a look at the updates ended.
enum Ending {
    Answered(Box<Answer>),
    /// The answer is good; the parts that were handed out before are not its beginning.
    Misled {
        problem: String,
        answer: Box<Answer>,
    },
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

    /// Waits for the answer and verifies it; `on_event` sees parts of a streamed output as they come, before anyone has approved them.
    ///
    /// The compute node signs its parts now and then. When that signature is missing or is for other parts, no more parts are handed
    /// out, and the answer is waited for. When the parts that were handed out are not the beginning of the delivered output, the
    /// answer is in [`ClientError::PartsRejected`]. [`StreamEvent::Restarted`] says that the parts so far are void.
    ///
    /// When the gateway falls silent, it is asked again until the quote expires; then the payment is taken back from the chain.
    pub async fn finish_with(self, mut on_event: impl FnMut(StreamEvent) + Send) -> Result<Answer, ClientError> {
        let mut parts = Parts::new(self.quote(), self.quoted.trust.domain);
        let ended = self.end(&mut parts, &mut on_event).await;
        // A verified answer is one, whatever was streamed before it.
        let served = ended.is_ok() || matches!(ended, Err(ClientError::PartsRejected { .. }));
        // Until it is sure that a failed request costs nothing, what is set aside for it stays so.
        if served || ended.as_ref().is_err_and(|error| !error.is_paid()) {
            self.quoted.client.payer.release(self.quote(), served).await;
        }
        ended
    }

    async fn end(&self, parts: &mut Parts, on_event: &mut (impl FnMut(StreamEvent) + Send)) -> Result<Answer, ClientError> {
        let mut backoff = Backoff::new();
        let reason = loop {
            let left = Duration::from_secs((self.quote().expiry + 1).saturating_sub(unix_now()));
            match self.follow(left, parts, on_event).await {
                Ok(Ending::Answered(answer)) => return Ok(*answer),
                Ok(Ending::Misled { problem, answer }) => return Err(ClientError::PartsRejected { problem, answer }),
                Ok(Ending::Failed(reason)) => break reason,
                Err(error) if error.is_retryable() && unix_now() <= self.quote().expiry => {
                    tracing::warn!(request = %self.request_id(), %error, "lost the gateway; asking again");
                    backoff.pause().await;
                }
                Err(error) => break error.to_string(),
            }
        };
        self.conclude(reason, parts, on_event).await
    }

    /// Follows the updates once, for at most `patience`.
    async fn follow(
        &self,
        patience: Duration,
        parts: &mut Parts,
        on_event: &mut (impl FnMut(StreamEvent) + Send),
    ) -> Result<Ending, TransportError> {
        let following = async {
            let mut steps = Vec::new();
            let mut updates = self.quoted.client.transport.updates(self.quoted.access.clone()).await?;
            parts.rewind();
            while let Some(update) = updates.next().await {
                match update? {
                    TaskUpdate::Step(report) if steps.len() < MAX_STEPS => steps.push(report),
                    TaskUpdate::Attempt(node) => parts.attempt(node),
                    TaskUpdate::Chunk(chunk) => parts.part(chunk, on_event),
                    TaskUpdate::Checkpoint(signed) => parts.checkpoint(&signed),
                    TaskUpdate::Delivered { output, receipt } => {
                        let answer = match self.accept(output, *receipt, steps).await {
                            Ok(answer) => Box::new(answer),
                            Err(problem) => return Ok(Ending::Failed(format!("the receipt was rejected: {problem}"))),
                        };
                        return Ok(match parts.delivered(&answer.output, on_event) {
                            Ok(()) => Ending::Answered(answer),
                            Err(problem) => Ending::Misled { problem, answer },
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
    async fn accept(&self, output: Values, receipt: Receipt, mut steps: Vec<StepReport>) -> Result<Answer, String> {
        let started = Instant::now();
        let quoted = &self.quoted;
        if receipt.request != quoted.request || receipt.quote != quoted.quote {
            return Err("it is for another request".into());
        }
        if !receipt.matches_output(&output) {
            return Err("the output is not the one that was signed and approved".into());
        }
        receipt.verify(&quoted.trust).map_err(|error| error.to_string())?;
        let (from, to) = (quoted.quote.expiry.saturating_sub(MAX_ESCROW_SECONDS), unix_now());
        if receipt.issued_at > to + CLOCK_TOLERANCE || receipt.issued_at + CLOCK_TOLERANCE < from {
            return Err(format!("issuedAt: {} is not between {from} and now, {to}", receipt.issued_at));
        }
        self.check_payment(&receipt).await.map_err(|error| error.to_string())?;
        let client = quoted.quote.client;
        // What the gateway did while the client waited for its quote is reported as steps of its own.
        let within: Duration = steps.iter().take_while(|report| report.step < Step::Pay).map(|report| report.took).sum();
        steps.push(StepReport { step: Step::Submit, actor: client, took: quoted.submitting.saturating_sub(within) });
        steps.push(StepReport { step: Step::Pay, actor: client, took: self.paying });
        steps.push(StepReport { step: Step::Deliver, actor: client, took: started.elapsed() });
        steps.sort_by_key(|report| report.step);
        Ok(Answer { output, receipt, steps })
    }

    /// Waits for the chain to show the payment that a receipt speaks of, where the ledger sees one.
    async fn check_payment(&self, receipt: &Receipt) -> Result<(), LedgerError> {
        let give_up = Instant::now() + DELIVERY_PATIENCE;
        let mut backoff = Backoff::new();
        loop {
            match within(self.quoted.client.payer.check(receipt)).await {
                Err(error) if error.is_retryable() && Instant::now() < give_up => backoff.pause().await,
                checked => return checked,
            }
        }
    }

    /// Brings a request to its end that did not end well, by what the chain says: a payment that was paid out is answered after all, or
    /// else it comes back. The gateway may have given it back already; past its expiry, anyone can.
    async fn conclude(
        &self,
        reason: String,
        parts: &mut Parts,
        on_event: &mut (impl FnMut(StreamEvent) + Send),
    ) -> Result<Answer, ClientError> {
        let (payer, quote) = (&self.quoted.client.payer, self.quote());
        let mut give_up = Instant::now() + Duration::from_secs(quote.expiry.saturating_sub(unix_now())) + REFUND_PATIENCE;
        let mut paid_out = false;
        let mut backoff = Backoff::new();
        loop {
            // The chain's clock is what the contract goes by. Where no block comes, its newest one's time stands still: past expiry by
            // this clock, a refund is tried, and makes the block that it needs.
            let expired = within(payer.now()).await.is_ok_and(|now| now > quote.expiry);
            let overdue = expired || unix_now() > quote.expiry;
            let status = match self.quoted.payment().await {
                Ok(PaymentStatus::Held { .. }) if overdue => within(payer.reclaim(quote)).await,
                status => status,
            };
            let problem = match status {
                Ok(PaymentStatus::Refunded { by }) => return Err(ClientError::Refunded { by, reason }),
                Ok(PaymentStatus::Earned { .. } | PaymentStatus::PaidOut { .. }) => {
                    // The gateway owes the answer, and is asked for it for a while.
                    if !paid_out {
                        (paid_out, give_up) = (true, Instant::now() + DELIVERY_PATIENCE);
                    }
                    match self.follow(give_up.saturating_duration_since(Instant::now()), parts, on_event).await {
                        Ok(Ending::Answered(answer)) => return Ok(*answer),
                        Ok(Ending::Misled { problem, answer }) => return Err(ClientError::PartsRejected { problem, answer }),
                        Ok(Ending::Failed(problem)) => problem,
                        // It forgets what has ended, after a while.
                        Err(error @ TransportError::UnknownTask(_)) => {
                            return Err(ClientError::Undelivered(format!("{error} any more")));
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Ok(PaymentStatus::Unpaid) if expired => return Err(ClientError::Refused(reason)),
                Ok(PaymentStatus::Unpaid) => "the chain shows no payment".to_owned(),
                Ok(PaymentStatus::Held { .. }) if overdue => "the payment is still held".to_owned(),
                Ok(PaymentStatus::Held { .. }) => format!("the escrow can be refunded after {}", quote.expiry),
                Err(LedgerError::Unproven(says)) => return Err(ClientError::Unproven(format!("{reason}; {says}"))),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= give_up {
                let reason = format!("{reason}; {problem}");
                let rejected = || ClientError::ReceiptRejected(format!("paid out, but no valid receipt came: {reason}"));
                return Err(if paid_out { rejected() } else { ClientError::NotRefunded(reason) });
            }
            backoff.pause().await;
        }
    }
}

/// A call to the chain that does not hang for ever. Every one that moves money may be made again.
async fn within<T>(call: impl Future<Output = Result<T, LedgerError>>) -> Result<T, LedgerError> {
    let late = |_| Err(LedgerError::Unreachable(format!("no answer within {LEDGER_TIMEOUT:?}")));
    tokio::time::timeout(LEDGER_TIMEOUT, call).await.unwrap_or_else(late)
}
