//! Paying without a chain: the client signs, its gateway does the rest.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use ncn_core::{
    Address, Amount, Authorisation, B256, ChainView, ChannelPayment, DynSigner, EscrowState, LedgerError, Message as _, Outcome,
    PaymentConfirmation, PaymentLedger, PaymentProof, Quote, Receipt, RequestId, Settlement, State, TaskStatus, Transport,
    TransportError, TrustRoot, UnixTime, ledger::LedgerEvents, receipt::Payment,
};

use crate::{ClientChannel, unix_now};

/// A ledger for a client that is connected to nothing but its gateway: it pays by signatures, which the gateway brings to the chain or
/// keeps until a batch is settled.
///
/// The client's money does not depend on the gateway's word: a signature pays for one approved quote and for nothing else, an escrow comes
/// back after the quote's expiry without the gateway, and an answer counts only with a receipt that verifies. Where only the gateway says
/// that a payment was not taken, or has come back, the error is [`LedgerError::Unproven`], and what is reserved in a channel stays so.
/// A chain to read from ([`RelayedLedger::with_chain`]) proves what became of it.
pub struct RelayedLedger {
    transport: Arc<dyn Transport>,
    trust: TrustRoot,
    signer: DynSigner,
    channel: Option<Arc<ClientChannel>>,
    /// Proves what becomes of payments.
    chain: Option<Chain>,
    /// The requests whose payment the gateway has taken, by its word.
    taken: Mutex<HashSet<RequestId>>,
}

/// The same chain: the payments, and all else.
struct Chain {
    payments: Arc<dyn PaymentLedger>,
    view: Arc<dyn ChainView>,
}

impl RelayedLedger {
    /// Pays each request into escrow by a token authorisation (ERC-3009). `trust` is the network that the client trusts.
    pub fn new(transport: Arc<dyn Transport>, trust: TrustRoot, signer: DynSigner) -> Self {
        Self { transport, trust, signer, channel: None, chain: None, taken: Mutex::default() }
    }

    /// Pays each request out of a channel by a voucher.
    pub fn with_channel(transport: Arc<dyn Transport>, trust: TrustRoot, signer: DynSigner, channel: Arc<ClientChannel>) -> Self {
        Self { channel: Some(channel), ..Self::new(transport, trust, signer) }
    }

    /// Asks this chain what became of payments, instead of the gateway, and has it refund what is past its expiry. It must be the one
    /// of the network that is trusted. Payments are still made by signature.
    #[must_use]
    pub fn with_chain(self, chain: Arc<impl PaymentLedger + ChainView + 'static>) -> Self {
        Self { chain: Some(Chain { payments: chain.clone(), view: chain }), ..self }
    }

    /// Takes in what the chain has charged the channel, where there are both.
    ///
    /// # Errors
    /// When the chain does not answer, or the channel's file cannot be written.
    pub async fn reconcile(&self) -> Result<(), LedgerError> {
        let (Some(channel), Some(chain)) = (&self.channel, &self.chain) else { return Ok(()) };
        match chain.view.channel(channel.terms().id()).await? {
            Some(known) => channel.reconcile(&known),
            None => Ok(()),
        }
    }

    async fn authorise(&self, quote: &Quote) -> Result<(Authorisation, B256), LedgerError> {
        if let Some(channel) = &self.channel {
            let payment = channel.pay(quote, &self.trust, &self.signer).await?;
            return Ok((Authorisation::Voucher(payment), payment.reference(&self.trust)));
        }
        let transfer = Authorisation::transfer(&self.trust, quote, &self.signer).await;
        // There is no transaction yet, nor does the client learn of it: its authorisation is named by what makes it unique.
        Ok((transfer.map_err(|error| LedgerError::NotAllowed(format!("key: {error}")))?, quote.struct_hash()))
    }

    async fn present(&self, request_id: RequestId, authorisation: &Authorisation) -> Result<(), TransportError> {
        let proof = PaymentProof::Authorisation(*authorisation);
        self.transport.confirm_payment(PaymentConfirmation { request_id, proof }).await
    }

    /// After a gateway has refused a voucher because the channel's requests come to more than the client knows of: another voucher, when
    /// the client's own signatures bear that out.
    async fn renew(&self, quote: &Quote, needed: Amount) -> Result<Option<ChannelPayment>, LedgerError> {
        let Some(channel) = &self.channel else { return Ok(None) };
        if let Err(error) = self.reconcile().await {
            tracing::warn!(%error, "cannot ask the chain what the channel was charged");
        }
        channel.renew(quote, needed, &self.trust, &self.signer).await
    }

    /// What the gateway says of a request, as far as nothing depends on whether that is true.
    fn stated(&self, status: &TaskStatus) -> Result<EscrowState, &'static str> {
        let quote = status.quote.as_ref().map(ncn_core::Message::struct_hash).unwrap_or_default();
        // Which transaction it was, only a chain can say.
        let transaction = quote;
        let taken = || self.taken.lock().unwrap_or_else(PoisonError::into_inner).contains(&status.request_id);
        match status.state {
            // The answer is there to be fetched, with its receipt.
            State::Ended(Outcome::Completed) => Ok(EscrowState::Completed { transaction, compute: None }),
            State::Executing | State::Completing | State::Settling | State::Refunding => {
                Ok(EscrowState::Escrowed { quote, transaction })
            }
            State::AwaitingPayment if taken() => Ok(EscrowState::Escrowed { quote, transaction }),
            State::Ended(Outcome::Refunded) => Err("the gateway says that it has given the payment back"),
            _ => Err("the gateway says that it has not taken the payment"),
        }
    }

    /// That only the gateway says so, and what follows from it.
    async fn unproven(&self, request_id: RequestId, says: &str) -> LedgerError {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&request_id);
        let Some(channel) = &self.channel else {
            return LedgerError::Unproven(format!("{says}; only the chain proves it"));
        };
        if let Err(error) = self.reconcile().await {
            tracing::warn!(%error, "cannot ask the chain what the channel was charged");
        }
        LedgerError::Unproven(if channel.holds(request_id) {
            format!(
                "{says}; only a receipt or the channel's end proves it: the amount stays reserved in channel {}",
                channel.terms().id()
            )
        } else {
            format!("{says}; nothing is reserved for it in channel {} any more", channel.terms().id())
        })
    }
}

fn refused(error: TransportError) -> LedgerError {
    if error.is_retryable() {
        return LedgerError::Unreachable(error.to_string());
    }
    match error {
        TransportError::VoucherTooLow { cumulative, needed } => LedgerError::VoucherTooLow { cumulative, needed },
        TransportError::InvalidRequest { problem, .. } | TransportError::Refused(problem) => LedgerError::NotAllowed(problem),
        error => LedgerError::NotAllowed(error.to_string()),
    }
}

#[async_trait]
impl PaymentLedger for RelayedLedger {
    fn account(&self) -> Address {
        self.signer.address()
    }

    async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        Ok(self.trust.clone())
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        match &self.chain {
            Some(chain) => chain.view.now().await,
            None => Ok(unix_now()),
        }
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        match &self.channel {
            Some(channel) if owner == self.account() => Ok(channel.sums().available()),
            _ => match &self.chain {
                Some(chain) => chain.payments.balance(owner).await,
                None => Err(LedgerError::Unsupported("know balances: ask a chain")),
            },
        }
    }

    async fn escrow(&self, quote: &Quote) -> Result<B256, LedgerError> {
        let (mut authorisation, mut reference) = self.authorise(quote).await?;
        let request_id = quote.request_id;
        let mut presented = self.present(request_id, &authorisation).await.map_err(refused);
        if let Err(LedgerError::VoucherTooLow { needed, .. }) = presented {
            match self.renew(quote, needed).await {
                Ok(Some(payment)) => {
                    (authorisation, reference) = (Authorisation::Voucher(payment), payment.reference(&self.trust));
                    presented = self.present(request_id, &authorisation).await.map_err(refused);
                }
                Ok(None) => {}
                Err(error) => presented = Err(error),
            }
        }
        match presented {
            Ok(()) => {}
            Err(error) if error.is_retryable() => return Err(error),
            // The gateway has it in its hands.
            Err(error) => {
                let until = if self.channel.is_some() { String::new() } else { format!(" until {}", quote.expiry) };
                let problem = format!("the gateway has refused the payment, and could still use it{until}: {error}");
                return Err(LedgerError::Unproven(problem));
            }
        }
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(request_id);
        Ok(reference)
    }

    async fn settle(&self, _: &Settlement) -> Result<B256, LedgerError> {
        Err(LedgerError::Unsupported("settle: its gateway does"))
    }

    async fn refund(&self, quote: &Quote) -> Result<B256, LedgerError> {
        match (&self.chain, &self.channel) {
            (Some(chain), None) => chain.payments.refund(quote).await,
            _ => Err(LedgerError::Unsupported("refund: its gateway does, and after the expiry anyone with a chain")),
        }
    }

    async fn escrow_state(&self, client: Address, request_id: RequestId) -> Result<EscrowState, LedgerError> {
        if let (Some(chain), None) = (&self.chain, &self.channel) {
            return chain.payments.escrow_state(client, request_id).await;
        }
        let says = match self.transport.status(request_id).await {
            Ok(status) => match self.stated(&status) {
                Ok(state) => return Ok(state),
                Err(says) => says,
            },
            Err(TransportError::UnknownTask(_)) => "the gateway does not know the request, or no longer",
            Err(error) => return Err(refused(error)),
        };
        Err(self.unproven(request_id, says).await)
    }

    async fn events(&self, _: u64) -> Result<LedgerEvents, LedgerError> {
        Err(LedgerError::Unsupported("follow a chain"))
    }

    async fn check_payment(&self, receipt: &Receipt) -> Result<(), LedgerError> {
        let refuse = |problem: &str| Err(LedgerError::NotAllowed(format!("payment: {problem}")));
        match (&receipt.payment, &self.channel, &self.chain) {
            // The voucher's signature, which the receipt's verification has checked, is this client's own.
            (Payment::Channel(payment), Some(channel), _) if payment.terms == *channel.terms() => Ok(()),
            (Payment::Channel(_), Some(_), _) => refuse("is another channel's"),
            (Payment::Channel(_), None, _) => refuse("is a channel's, and the client pays into escrow"),
            (Payment::Escrow { .. }, Some(_), _) => refuse("is an escrow, and the client pays out of a channel"),
            (Payment::Escrow { .. }, None, Some(chain)) => chain.payments.check_payment(receipt).await,
            (Payment::Escrow { .. }, None, None) => Ok(()),
        }
    }

    async fn conclude(&self, quote: &Quote, paid: bool) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&quote.request_id);
        // That a request was not served frees nothing in a channel: the chain says only what all of them were charged.
        if let Some(channel) = &self.channel
            && paid
            && let Err(error) = channel.conclude(quote.request_id, paid)
        {
            tracing::warn!(request = %quote.request_id, %error, "cannot keep how a request ended; its voucher stays reserved");
        }
    }
}
