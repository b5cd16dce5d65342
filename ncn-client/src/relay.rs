//! Paying without a chain: the client signs, its gateway does the rest.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use ncn_core::{
    Address, Amount, Authorisation, B256, DynSigner, EscrowState, LedgerError, Message as _, Outcome, PaymentConfirmation,
    PaymentLedger, PaymentProof, Quote, RequestId, Settlement, State, Transport, TransportError, TrustRoot, UnixTime,
    ledger::LedgerEvents,
};

use crate::{ClientChannel, unix_now};

/// A ledger for a client that is connected to nothing but its gateway: it pays by signatures, which the gateway brings to the chain or
/// keeps until a batch is settled.
///
/// What it says of the state of a payment is the gateway's word. The client's money does not depend on that word: a signature pays for
/// one approved quote and for nothing else, an escrow comes back after the quote's expiry without the gateway, and an answer counts
/// only with a receipt that verifies.
pub struct RelayedLedger {
    transport: Arc<dyn Transport>,
    trust: TrustRoot,
    signer: DynSigner,
    channel: Option<Arc<ClientChannel>>,
    /// The requests whose payment the gateway has taken.
    taken: Mutex<HashSet<RequestId>>,
}

impl RelayedLedger {
    /// Pays each request into escrow by a token authorisation (ERC-3009). `trust` is the network that the client trusts.
    pub fn new(transport: Arc<dyn Transport>, trust: TrustRoot, signer: DynSigner) -> Self {
        Self { transport, trust, signer, channel: None, taken: Mutex::default() }
    }

    /// Pays each request out of a channel by a voucher.
    pub fn with_channel(transport: Arc<dyn Transport>, trust: TrustRoot, signer: DynSigner, channel: Arc<ClientChannel>) -> Self {
        Self { channel: Some(channel), ..Self::new(transport, trust, signer) }
    }

    async fn authorise(&self, quote: &Quote) -> Result<(Authorisation, B256), LedgerError> {
        if let Some(channel) = &self.channel {
            let payment = channel.pay(quote, &self.trust, &self.signer).await?;
            return Ok((Authorisation::Voucher(payment), payment.reference(&self.trust)));
        }
        let transfer = Authorisation::transfer(&self.trust, quote, &self.signer).await;
        Ok((transfer.map_err(|error| LedgerError::NotAllowed(format!("key: {error}")))?, quote.struct_hash()))
    }
}

fn refused(error: TransportError) -> LedgerError {
    if error.is_retryable() {
        return LedgerError::Unreachable(error.to_string());
    }
    match error {
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
        Ok(unix_now())
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        match &self.channel {
            Some(channel) if owner == self.account() => Ok(channel.sums().available()),
            _ => Err(LedgerError::Unsupported("know balances: ask a chain")),
        }
    }

    async fn escrow(&self, quote: &Quote) -> Result<B256, LedgerError> {
        let (authorisation, reference) = self.authorise(quote).await?;
        let request_id = quote.request_id;
        let confirmation = PaymentConfirmation { request_id, proof: PaymentProof::Authorisation(authorisation) };
        self.transport.confirm_payment(confirmation).await.map_err(refused)?;
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(request_id);
        Ok(reference)
    }

    async fn settle(&self, _: &Settlement) -> Result<B256, LedgerError> {
        Err(LedgerError::Unsupported("settle: its gateway does"))
    }

    async fn refund(&self, _: &Quote) -> Result<B256, LedgerError> {
        Err(LedgerError::Unsupported("refund: its gateway does, and after the expiry anyone with a chain"))
    }

    async fn escrow_state(&self, _: Address, request_id: RequestId) -> Result<EscrowState, LedgerError> {
        let status = match self.transport.status(request_id).await {
            Ok(status) => status,
            Err(TransportError::UnknownTask(_)) => return Ok(EscrowState::None),
            Err(error) => return Err(refused(error)),
        };
        let quote = status.quote.as_ref().map(ncn_core::Message::struct_hash).unwrap_or_default();
        // Which transaction it was, only a chain can say.
        let transaction = quote;
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).contains(&request_id);
        Ok(match status.state {
            State::Ended(Outcome::Completed) => EscrowState::Completed { transaction, compute: None },
            State::Ended(Outcome::Refunded) => EscrowState::Refunded { transaction },
            State::Executing | State::Completing | State::Settling | State::Refunding => {
                EscrowState::Escrowed { quote, transaction }
            }
            State::AwaitingPayment if taken => EscrowState::Escrowed { quote, transaction },
            _ => EscrowState::None,
        })
    }

    async fn events(&self, _: u64) -> Result<LedgerEvents, LedgerError> {
        Err(LedgerError::Unsupported("follow a chain"))
    }

    async fn conclude(&self, quote: &Quote, paid: bool) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&quote.request_id);
        if let Some(channel) = &self.channel
            && let Err(error) = channel.conclude(quote.request_id, paid)
        {
            tracing::warn!(request = %quote.request_id, %error, "cannot keep how a request ended; its voucher stays reserved");
        }
    }
}
