use std::sync::Arc;

use async_trait::async_trait;
use ncn_core::{
    Address, Amount, ChainView, DynSigner, LedgerError, Payer, PaymentAuthorization, PaymentRef, PaymentStatus, Quote, Receipt,
    SignedVoucher, Transport, TrustHistory, TrustRoot, UnixTime, receipt::Payment, validation,
};

use super::Relay;
use crate::{PayerChannel, unix_now};

/// Pays each request out of a channel by a voucher, which the gateway keeps until a batch is settled.
///
/// A voucher pays for one approved quote and for nothing else. Where only the gateway says that it was not taken, the error is
/// [`LedgerError::Unproven`], and what is reserved in the channel stays so. A chain to read from ([`ChannelPayer::with_chain`]) shows what
/// the channel was charged.
pub struct ChannelPayer {
    relay: Relay,
    channel: Arc<PayerChannel>,
    chain: Option<Arc<dyn ChainView>>,
}

impl ChannelPayer {
    /// Pays by this gateway, whose channel it is. `trust` is the network that the client trusts.
    pub fn new(transport: Arc<dyn Transport>, trust: TrustRoot, signer: DynSigner, channel: Arc<PayerChannel>) -> Self {
        Self { relay: Relay::new(transport, trust, signer), channel, chain: None }
    }

    /// Asks this chain, where there is one, what the channel was charged. It must be the one of the network that is trusted.
    #[must_use]
    pub fn with_chain(self, chain: Option<Arc<dyn ChainView>>) -> Self {
        Self { chain, ..self }
    }

    /// Takes in what the chain has charged the channel, where there is a chain.
    ///
    /// # Errors
    /// When the chain does not answer, or the channel's file cannot be written.
    pub async fn reconcile(&self) -> Result<(), LedgerError> {
        let Some(chain) = &self.chain else { return Ok(()) };
        match chain.channel(self.channel.terms().id()).await? {
            Some(known) => self.channel.reconcile(&known),
            None => Ok(()),
        }
    }

    async fn try_to_reconcile(&self) {
        if let Err(error) = self.reconcile().await {
            tracing::warn!(%error, "cannot ask the chain what the channel was charged");
        }
    }

    async fn present(&self, payment: &SignedVoucher) -> Result<(), LedgerError> {
        self.relay.present(payment.voucher.request_id, &PaymentAuthorization::Voucher(*payment)).await
    }

    /// After a gateway has refused a voucher because the channel's requests come to more than the client knows of: another voucher, when
    /// the client's own signatures bear that out.
    async fn renew(&self, quote: &Quote, needed: Amount) -> Result<Option<SignedVoucher>, LedgerError> {
        self.try_to_reconcile().await;
        self.channel.renew(quote, needed, &self.relay.trust, &self.relay.signer).await
    }
}

#[async_trait]
impl Payer for ChannelPayer {
    fn account(&self) -> Address {
        self.relay.signer.address()
    }

    async fn trust(&self, _: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        Ok(Arc::new(TrustHistory::fixed(self.relay.trust.clone())))
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        match &self.chain {
            Some(chain) => chain.now().await,
            None => Ok(unix_now()),
        }
    }

    async fn pay(&self, quote: &Quote) -> Result<PaymentRef, LedgerError> {
        // What was signed already is presented again, so that its fate is known.
        if self.channel.voucher(quote.request_id).is_none() {
            validation::payable(quote, unix_now())?;
        }
        let mut payment = self.channel.pay(quote, &self.relay.trust, &self.relay.signer).await?;
        let mut presented = self.present(&payment).await;
        if let Err(LedgerError::VoucherTooLow { needed, .. }) = presented {
            match self.renew(quote, needed).await {
                Ok(Some(renewed)) => {
                    payment = renewed;
                    presented = self.present(&payment).await;
                }
                Ok(None) => {}
                Err(error) => presented = Err(error),
            }
        }
        match presented {
            // The gateway has it in its hands.
            Err(error) if !error.is_retryable() => {
                Err(LedgerError::Unproven(format!("the gateway has refused the payment, and could still use it: {error}")))
            }
            presented => presented.map(|()| payment.into()),
        }
    }

    async fn status(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        let (request_id, id) = (quote.request_id, self.channel.terms().id());
        let (stated, voucher) = (self.relay.stated(request_id).await?, self.channel.voucher(request_id));
        let says = match voucher {
            Some(voucher) => match stated.status(quote, voucher.into()) {
                Ok(status) => return Ok(status),
                Err(says) => says,
            },
            None => "the channel has no voucher of the request, or no longer",
        };
        self.relay.taken().remove(&request_id);
        self.try_to_reconcile().await;
        Err(LedgerError::Unproven(if self.channel.holds(request_id) {
            format!("{says}; only a receipt or the channel's end proves it: the amount stays reserved in channel {id}")
        } else {
            format!("{says}; nothing is reserved for it in channel {id} any more")
        }))
    }

    async fn reclaim(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        // A deposit comes back by the channel's end alone.
        self.status(quote).await
    }

    async fn check(&self, receipt: &Receipt) -> Result<(), LedgerError> {
        let refuse = |problem: &str| Err(LedgerError::NotAllowed(format!("payment: {problem}")));
        match &receipt.payment {
            // The voucher's signature, which the receipt's verification has checked, is this client's own.
            Payment::Channel(payment) if payment.terms == *self.channel.terms() => Ok(()),
            Payment::Channel(_) => refuse("is another channel's"),
            Payment::Escrow { .. } => refuse("is an escrow, and the client pays out of a channel"),
        }
    }

    async fn release(&self, quote: &Quote, cost: Option<Amount>) {
        self.relay.taken().remove(&quote.request_id);
        // That a request was not served frees nothing in a channel: the chain says only what all of them were charged.
        if cost.is_some()
            && let Err(error) = self.channel.release(quote.request_id, cost)
        {
            tracing::warn!(request = %quote.request_id, %error, "cannot keep how a request ended; its voucher stays reserved");
        }
    }
}
