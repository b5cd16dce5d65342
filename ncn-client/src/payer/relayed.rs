use std::sync::Arc;

use async_trait::async_trait;
use ncn_core::{
    Address, Amount, DynSigner, LedgerError, Message as _, Payer, PaymentAuthorization, PaymentRef, PaymentStatus, Quote, Receipt,
    Transport, TrustHistory, TrustRoot, UnixTime, receipt::Payment,
};

use tokio::sync::OnceCell;

use super::{Relay, refused};
use crate::unix_now;

/// Pays each request into escrow by a token authorization (ERC-3009), which the gateway brings to the chain.
///
/// The client's money does not depend on the gateway's word: a signature pays for one approved quote and for nothing else, an escrow comes
/// back after the quote's expiry without the gateway, and an answer counts only with a receipt that verifies. Where only the gateway says
/// that a payment was not taken, or has come back, the error is [`LedgerError::Unproven`]. A chain to read from
/// ([`RelayedPayer::with_chain`]) proves what became of it.
pub struct RelayedPayer {
    relay: Relay,
    /// Proves what becomes of payments.
    chain: Option<Arc<dyn Payer>>,
    /// The least that the gateway brings to the chain, once it has said so.
    least: OnceCell<Amount>,
}

impl RelayedPayer {
    /// Pays by this gateway. `trust` is the network that the client trusts.
    pub fn new(transport: Arc<dyn Transport>, trust: TrustRoot, signer: DynSigner) -> Self {
        Self { relay: Relay::new(transport, trust, signer), chain: None, least: OnceCell::new() }
    }

    /// Asks this payer's chain, where there is one, what became of payments, instead of the gateway, and has it take back what is past its
    /// expiry. It must be the one of the network that is trusted. Payments are still made by signature.
    #[must_use]
    pub fn with_chain(self, chain: Option<Arc<dyn Payer>>) -> Self {
        Self { chain, ..self }
    }

    async fn least(&self) -> Result<Amount, LedgerError> {
        let ask = async || self.relay.transport.network().await.map(|network| network.least_relayed).map_err(refused);
        self.least.get_or_try_init(ask).await.copied()
    }
}

#[async_trait]
impl Payer for RelayedPayer {
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
        if quote.client != self.account() {
            return Err(LedgerError::NotAllowed(format!("client: the quote is {}'s: use its key", quote.client)));
        }
        // Once it is signed, only the quote's expiry takes it back.
        let least = self.least().await?;
        if quote.total < least {
            let problem =
                format!("{} is less than the {least} that the gateway brings to the chain: pay in another way", quote.total);
            return Err(LedgerError::InvalidQuote { field: "total".into(), problem });
        }
        let Relay { trust, signer, .. } = &self.relay;
        let transfer = PaymentAuthorization::transfer(trust, quote, signer).await;
        let transfer = transfer.map_err(|error| LedgerError::NotAllowed(format!("key: {error}")))?;
        match self.relay.present(quote.request_id, &transfer).await {
            Err(error) if !error.is_retryable() => {
                // The gateway has it in its hands.
                let until = quote.expiry;
                let problem = format!("the gateway has refused the payment, and could still use it until {until}: {error}");
                Err(LedgerError::Unproven(problem))
            }
            presented => presented.map(|()| PaymentRef::Transfer(quote.struct_hash())),
        }
    }

    async fn status(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        if let Some(chain) = &self.chain {
            return chain.status(quote).await;
        }
        let by = PaymentRef::Transfer(quote.struct_hash());
        self.relay.stated(quote.request_id).await?.status(quote, by).map_err(|says| {
            self.relay.taken().remove(&quote.request_id);
            LedgerError::Unproven(format!("{says}; only the chain proves it"))
        })
    }

    async fn reclaim(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        match &self.chain {
            Some(chain) => chain.reclaim(quote).await,
            // Without a chain this payer cannot; the gateway, or another account, may have.
            None => self.status(quote).await,
        }
    }

    async fn check(&self, receipt: &Receipt) -> Result<(), LedgerError> {
        match (&receipt.payment, &self.chain) {
            (Payment::Channel(_), _) => {
                Err(LedgerError::NotAllowed("payment: is a channel's, and the client pays into escrow".into()))
            }
            (Payment::Escrow { .. }, Some(chain)) => chain.check(receipt).await,
            (Payment::Escrow { .. }, None) => Ok(()),
        }
    }

    async fn release(&self, quote: &Quote, _: Option<Amount>) {
        self.relay.taken().remove(&quote.request_id);
    }
}
