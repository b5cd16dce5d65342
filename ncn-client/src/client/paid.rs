use std::time::{Duration, Instant};

use futures::StreamExt as _;
use ncn_core::{
    LedgerError, PaymentStatus, Quote, Receipt, RequestId, Step, StepTiming, TaskEvent, TransportError, Update, Values,
    validation::{CLAIM_SECONDS, MAX_ESCROW_SECONDS},
};

use tokio::sync::mpsc;

use super::{Events, InferenceEvent, InferenceOutput, Parts, Quoted, following::Following, within};
use crate::{Backoff, ClientError, unix_now};

/// How long past expiry a refund is tried for before the caller is told that it is still to come.
const REFUND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a gateway that has been paid is asked for what it has not delivered yet.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a gateway may take to hear that its client agrees to a refund.
const AGREE_TIMEOUT: Duration = Duration::from_secs(5);
/// How far the gateway's clock may be off from the client's, in seconds.
const CLOCK_TOLERANCE: u64 = 300;
/// How many steps a gateway may report; the rest is not remembered.
const MAX_STEPS: usize = 256;
/// How many parts of an output are on their way to the caller; more wait, as many as an output may have.
const MAX_WAITING: usize = 16;

/// A paid order.
#[derive(Clone)]
pub struct Paid {
    pub(super) quoted: Quoted,
    pub(super) paying: Duration,
}

/// How a look at the updates ended.
enum Ending {
    Answered(Box<InferenceOutput>),
    /// The answer is good; the parts that were handed out before are not its beginning.
    Misled {
        problem: String,
        answer: Box<InferenceOutput>,
    },
    Failed(String),
}

/// The caller that takes the parts of an output, when there is one.
pub(super) struct Listener {
    parts: Parts,
    out: Option<mpsc::Sender<InferenceEvent>>,
    /// The index of the update that comes next, over all connections; none when they begin anew.
    next: Option<u64>,
    /// What the updates so far said of the steps.
    steps: Vec<StepTiming>,
    /// When the gateway has said that it gives the payment back.
    given_up: Option<Instant>,
}

/// Waits until then; for ever, when that is never.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Listener {
    fn none(paid: &Paid) -> Self {
        Self {
            parts: Parts::new(paid.quote(), paid.quoted.trust.domain),
            out: None,
            next: Some(0),
            steps: Vec::new(),
            given_up: None,
        }
    }

    pub(super) fn new(paid: &Paid) -> (Self, mpsc::Receiver<InferenceEvent>) {
        let (out, parts) = mpsc::channel(MAX_WAITING);
        (Self { out: Some(out), ..Self::none(paid) }, parts)
    }

    /// A connection begins with this update: the next one, or the first one, when the gateway does not have those before it any more.
    fn begin(&mut self, index: u64) {
        if self.next == Some(index) {
            self.parts.go_on();
        } else {
            self.parts.rewind();
            self.steps.clear();
        }
    }

    /// Hands out the next part once the caller has room for it. Without a caller, drops what waits.
    async fn hand_out(&mut self) {
        let Some(out) = &self.out else { return self.parts.discard() };
        let Ok(permit) = out.reserve().await else {
            // The end is followed all the same.
            self.out = None;
            return;
        };
        if let Some(event) = self.parts.next() {
            permit.send(event);
        }
    }

    /// Hands out all that waits.
    async fn flush(&mut self) {
        while self.parts.is_waiting() {
            self.hand_out().await;
        }
    }
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

    /// Has the request end now. What was delivered of a streamed output until then is paid for, and is the answer, with the reason
    /// [`ncn_core::FinishReason::Cancelled`]; where nothing was, the payment comes back. Which of the two it is, [`Self::finish`] or
    /// [`Self::events`] of the same request tells: clone it first.
    ///
    /// # Errors
    /// When the gateway cannot be asked. The request goes on then.
    pub async fn cancel(&self) -> Result<(), ClientError> {
        self.quoted.withdraw().await
    }

    /// Waits for the answer and verifies it.
    ///
    /// When the gateway falls silent, it is asked again until the quote expires; then the payment is taken back from the chain. A caller
    /// that drops this has paid all the same: [`super::Client::resume`] goes on.
    pub async fn finish(self) -> Result<InferenceOutput, ClientError> {
        self.finish_to(Listener::none(&self)).await
    }

    /// The same, with the parts of a streamed output as they come, before anyone has approved them.
    ///
    /// The compute node signs its parts now and then. When that signature is missing or is for other parts, no more parts are handed
    /// out, and the answer is waited for. When the parts that were handed out are not the beginning of the delivered output, the
    /// answer is in [`ClientError::PartsRejected`]. [`InferenceEvent::Restarted`] says that the parts so far are void.
    ///
    /// Has to be called on a Tokio runtime. Dropping the events before their end cancels the request.
    pub fn events(self) -> Events {
        Events::new(self)
    }

    /// The answer, by a task of its own; dropping this before its end cancels the request.
    pub(super) fn following(self) -> Following {
        let listener = Listener::none(&self);
        Following::new(self, listener)
    }

    #[tracing::instrument(name = "client.finish", skip_all, fields(request = %self.request_id()))]
    pub(super) async fn finish_to(&self, mut listener: Listener) -> Result<InferenceOutput, ClientError> {
        let ended = self.end(&mut listener).await;
        // A verified answer is one, whatever was streamed before it.
        let cost = match &ended {
            Ok(answer) => Some(answer.cost()),
            Err(ClientError::PartsRejected { answer, .. }) => Some(answer.cost()),
            Err(_) => None,
        };
        // Until it is sure that a failed request costs nothing, what is set aside for it stays so.
        if cost.is_some() || ended.as_ref().is_err_and(|error| !error.is_paid()) {
            self.quoted.client.payer.release(self.quote(), cost).await;
        }
        listener.flush().await;
        ended
    }

    async fn end(&self, listener: &mut Listener) -> Result<InferenceOutput, ClientError> {
        let mut backoff = Backoff::new();
        let reason = loop {
            let left = Duration::from_secs((self.quote().expiry + 1).saturating_sub(unix_now()));
            match self.follow(left, listener).await {
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
        self.resolve(reason, listener).await
    }

    /// Follows the updates once, for at most `timeout`.
    async fn follow(&self, timeout: Duration, listener: &mut Listener) -> Result<Ending, TransportError> {
        let following = async {
            let mut updates = self.quoted.client.transport.updates(self.quoted.access.clone(), listener.next.unwrap_or(0)).await?;
            let mut has_begun = false;
            loop {
                // A caller that is slow to take parts holds up neither the request nor the other requests of its connection.
                let given_up = listener.given_up.map(|at| at + Duration::from_secs(CLAIM_SECONDS + 1));
                let update = tokio::select! {
                    update = updates.next() => update,
                    // By now the chain gives it back, whatever the gateway says.
                    () = until(given_up) => return Ok(Ending::Failed("the gateway has given the request up".into())),
                    () = listener.hand_out(), if listener.parts.is_waiting() => continue,
                };
                let Some(update) = update else { break };
                let Update { index, event } = update?;
                if !has_begun {
                    listener.begin(index);
                    has_begun = true;
                }
                // An end may be followed by another one, when late money has come.
                listener.next = if event.is_last() { None } else { index.checked_add(1) };
                match event {
                    TaskEvent::Step(report) if listener.steps.len() < MAX_STEPS => listener.steps.push(report),
                    TaskEvent::Attempt(node) => listener.parts.attempt(node),
                    TaskEvent::Takeover(node) => listener.parts.take_over(node),
                    TaskEvent::Chunk(chunk) => listener.parts.part(chunk),
                    TaskEvent::Checkpoint(signed) => listener.parts.checkpoint(&signed),
                    // Who has been given something that counts does not say that there is nothing to pay for.
                    TaskEvent::GivenUp(_) if listener.given_up.is_none() => {
                        listener.given_up = Some(Instant::now());
                        if !listener.parts.were_signed() {
                            self.agree().await;
                        }
                    }
                    TaskEvent::Delivered { output, receipt } => {
                        let answer = match self.accept(output, *receipt, listener.steps.clone()).await {
                            Ok(answer) => Box::new(answer),
                            Err(problem) => return Ok(Ending::Failed(format!("the receipt was rejected: {problem}"))),
                        };
                        let parts = answer.receipt.delivery.last().map_or(0, |result| result.parts);
                        return Ok(match listener.parts.delivered(&answer.output, parts) {
                            Ok(()) => Ending::Answered(answer),
                            Err(problem) => Ending::Misled { problem, answer },
                        });
                    }
                    TaskEvent::Failed { reason, .. } => return Ok(Ending::Failed(reason)),
                    _ => {}
                }
            }
            Err(TransportError::Internal("the updates broke off".into()))
        };
        let silent = || TransportError::Refused("the gateway delivered nothing in time".into());
        tokio::time::timeout(timeout, following).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Lets the gateway give the payment back at once. It can do so without, only later.
    async fn agree(&self) {
        let agreed = tokio::time::timeout(AGREE_TIMEOUT, self.quoted.withdraw()).await;
        if !matches!(agreed, Ok(Ok(()))) {
            tracing::warn!(request = %self.request_id(), ?agreed, "the gateway did not take the client's consent to a refund");
        }
    }

    /// Hands the output over only with the proof of it.
    async fn accept(&self, output: Values, receipt: Receipt, mut steps: Vec<StepTiming>) -> Result<InferenceOutput, String> {
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
        steps.push(StepTiming { step: Step::Submit, actor: client, took: quoted.submitting.saturating_sub(within) });
        steps.push(StepTiming { step: Step::Pay, actor: client, took: self.paying });
        steps.push(StepTiming { step: Step::Deliver, actor: client, took: started.elapsed() });
        steps.sort_by_key(|report| report.step);
        Ok(InferenceOutput { output, receipt, steps })
    }

    /// Waits for the chain to show the payment that a receipt speaks of, where the payer sees one.
    async fn check_payment(&self, receipt: &Receipt) -> Result<(), LedgerError> {
        let give_up = Instant::now() + DELIVERY_TIMEOUT;
        let mut backoff = Backoff::new();
        loop {
            match within(self.quoted.client.payer.check(receipt)).await {
                Err(error) if error.is_retryable() && Instant::now() < give_up => backoff.pause().await,
                checked => return checked,
            }
        }
    }

    /// The same, without a listener.
    pub(super) async fn resolved(&self, reason: String) -> Result<InferenceOutput, ClientError> {
        self.resolve(reason, &mut Listener::none(self)).await
    }

    /// Brings a request to its end that did not end well, by what the chain says: a payment that was paid out is answered after all, or
    /// else it comes back. The gateway may have given it back already; some time past its expiry, anyone can.
    async fn resolve(&self, reason: String, listener: &mut Listener) -> Result<InferenceOutput, ClientError> {
        let (payer, quote) = (&self.quoted.client.payer, self.quote());
        let refundable_at = quote.expiry + CLAIM_SECONDS + 1;
        let mut give_up = Instant::now() + Duration::from_secs(refundable_at.saturating_sub(unix_now())) + REFUND_TIMEOUT;
        let mut paid_out = false;
        let mut backoff = Backoff::new();
        loop {
            // The chain's clock is what the contract goes by. Where no block comes, its newest one's time stands still: past expiry by
            // this clock, a refund is tried, and makes the block that it needs.
            let now = within(payer.now()).await.unwrap_or_default();
            let expired = now > quote.expiry;
            let overdue = now.max(unix_now()) >= refundable_at;
            let status = match self.quoted.payment().await {
                Ok(PaymentStatus::Held { .. }) if overdue => within(payer.reclaim(quote)).await,
                Ok(PaymentStatus::GivenUp { refundable_at, .. })
                    if now.max(unix_now()) >= refundable_at || !listener.parts.were_signed() =>
                {
                    within(payer.reclaim(quote)).await
                }
                status => status,
            };
            let problem = match status {
                Ok(PaymentStatus::Refunded { by }) => return Err(ClientError::Refunded { by, reason }),
                Ok(PaymentStatus::Earned { .. } | PaymentStatus::PaidOut { .. }) => {
                    // The gateway owes the answer, and is asked for it for a while.
                    if !paid_out {
                        (paid_out, give_up) = (true, Instant::now() + DELIVERY_TIMEOUT);
                    }
                    match self.follow(give_up.saturating_duration_since(Instant::now()), listener).await {
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
                Ok(PaymentStatus::Held { .. }) => format!("the escrow can be refunded from {refundable_at} on"),
                Ok(status @ PaymentStatus::GivenUp { .. }) => status.to_string(),
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
