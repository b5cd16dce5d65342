use std::{
    panic,
    time::{Duration, Instant},
};

use ncn_core::{
    CapabilityScope, InferenceRequest, LedgerError, Message as _, PaymentConfirmation, PaymentRef, PaymentStatus,
    PaymentSubmission, QuorumCertificate, Quote, RequestId, Signed, TaskCapability, TrustRoot,
};

use super::{Client, Events, InferenceOutput, Paid, following::awaited, within};
use crate::{Backoff, ClientError, unix_now};

/// How long the hint that a request is paid may take.
const HINT_TIMEOUT: Duration = Duration::from_secs(5);

/// An order that the validators have approved and that is not paid yet. Dropping it costs nothing.
#[derive(Clone)]
pub struct Quoted {
    pub(super) client: Client,
    pub(super) request: Signed<InferenceRequest>,
    pub(super) access: Signed<TaskCapability>,
    pub(super) quote: Quote,
    pub(super) preprocessing: QuorumCertificate,
    pub(super) trust: TrustRoot,
    pub(super) submitting: Duration,
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
        self.withdraw().await
    }

    pub(super) async fn withdraw(&self) -> Result<(), ClientError> {
        let access = TaskCapability { scope: CapabilityScope::Cancel, ..self.access.message };
        let access = Signed::sign(access, &self.trust.domain, &*self.client.signer).await?;
        Ok(self.client.transport.cancel(access).await?)
    }

    /// Has the payer pay the quote's total. Paying twice is paying once.
    ///
    /// When the payer cannot say whether the payment was taken, it is asked again until the quote expires.
    #[tracing::instrument(name = "client.pay", skip_all, fields(request = %self.request_id()))]
    pub async fn pay(self) -> Result<Paid, ClientError> {
        let (payer, quote) = (self.client.payer.clone(), self.quote.clone());
        let paid = self.try_to_pay().await;
        if let Err(error) = &paid
            && !error.is_paid()
        {
            payer.release(&quote, None).await;
        }
        paid
    }

    /// Pays, waits for the answer and verifies it. Giving this up at any time cancels the request: what was delivered until then is paid for, and where
    /// nothing was, the payment comes back. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Each says what became of the money: see [`ClientError::is_paid`].
    pub async fn finish(self) -> Result<InferenceOutput, ClientError> {
        self.pay_and(Paid::following).await?.await
    }

    /// Pays and follows the request: the same, with the parts of a streamed output as they come. See [`Paid::events`].
    pub async fn events(self) -> Result<Events, ClientError> {
        self.pay_and(Paid::events).await
    }

    /// Who gives up while it is being paid would leave a payment behind: this goes on until there is a request to cancel.
    async fn pay_and<T: Send + 'static>(self, follow: fn(Paid) -> T) -> Result<T, ClientError> {
        let paying = awaited(async move { self.pay().await.map(follow) });
        match paying.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok((paid, _)) => paid,
            Err(Ok(panic)) => panic::resume_unwind(panic),
            Err(Err(error)) => Err(ClientError::NotRefunded(format!("the payment was broken off: {error}"))),
        }
    }

    async fn try_to_pay(self) -> Result<Paid, ClientError> {
        let started = Instant::now();
        let mut backoff = Backoff::new();
        let (mut uncertain, mut unproven) = (false, None);
        let by = loop {
            let error = match within(self.client.payer.pay(&self.quote)).await {
                Ok(by) => break by,
                Err(error) => error,
            };
            uncertain |= error.is_retryable();
            if let LedgerError::Unproven(says) = &error {
                // From here on the gateway has the client's signature, whatever a later try returns.
                unproven.get_or_insert_with(|| says.clone());
            }
            // What the chain holds decides, not the error: the answer to an earlier try may have been lost.
            match self.payment().await {
                Ok(PaymentStatus::Held { quote, by }) if quote == self.quote.struct_hash() => break by,
                // What becomes of it, the gateway and the chain say.
                Ok(PaymentStatus::GivenUp { quote, .. }) if quote == self.quote.struct_hash() => break PaymentRef::Transfer(quote),
                Ok(PaymentStatus::Earned { by } | PaymentStatus::PaidOut { by, .. }) => break by,
                Ok(PaymentStatus::Refunded { by }) => return Err(ClientError::Refunded { by, reason: error.to_string() }),
                // No try can have been taken, and this one is refused for good. What a gateway has seen and refused, it may still use.
                Ok(_) | Err(LedgerError::Unproven(_)) if !uncertain => {
                    return Err(match unproven {
                        Some(says) => ClientError::Unproven(says),
                        None => error.into(),
                    });
                }
                _ => tracing::warn!(request = %self.request_id(), %error, "cannot see whether the payment was taken"),
            }
            if unix_now() > self.quote.expiry {
                let paid = Paid { quoted: self, paying: started.elapsed() };
                // Should it have been paid out after all, `finish` brings the answer.
                return paid.resolved(error.to_string()).await.map(|_| paid.clone());
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
        let confirmation =
            PaymentConfirmation { request_id: self.quote.request_id, proof: PaymentSubmission::Transaction(transaction) };
        let hint = tokio::time::timeout(HINT_TIMEOUT, self.client.transport.confirm_payment(confirmation)).await;
        if !matches!(hint, Ok(Ok(()))) {
            tracing::warn!(request = %self.quote.request_id, ?hint, "the gateway did not take the payment's hint");
        }
    }

    pub(super) async fn payment(&self) -> Result<PaymentStatus, LedgerError> {
        within(self.client.payer.status(&self.quote)).await
    }
}
