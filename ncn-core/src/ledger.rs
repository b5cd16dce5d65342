//! The port for money.

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{
    Amount, Authorisation, Certificate, Channel, ChannelPayment, ChannelTerms, Completion, InferenceResult, Quote, Receipt,
    RequestId, Signature, Signed, TrustRoot, UnixTime,
    channel::{CertifiedBatch, VoucherError},
};

/// Where a request's payment is. `transaction` is the one that brought it there; out of a channel, it is the voucher's digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscrowState {
    /// Never paid.
    None,
    /// Paid, and waiting.
    Escrowed {
        /// Struct hash of the quote that was paid.
        quote: B256,
        /// The client's payment.
        transaction: B256,
    },
    /// Paid out. Final.
    Completed {
        /// The settlement.
        transaction: B256,
        /// Who was paid for computing; none out of a channel, where the gateway alone settles.
        compute: Option<Address>,
    },
    /// Given back. Final.
    Refunded {
        /// The refund.
        transaction: B256,
    },
}

impl EscrowState {
    /// The transaction that escrowed the quote with this struct hash, while its total is held.
    pub fn payment_of(&self, hash: B256) -> Option<B256> {
        match self {
            Self::Escrowed { quote, transaction } if *quote == hash => Some(*transaction),
            _ => None,
        }
    }

    /// The settlement that paid for this node's result. One that paid another node is another completion's.
    pub fn settled_for(&self, node: Address) -> Option<B256> {
        match self {
            Self::Completed { transaction, compute } if compute.is_none_or(|paid| paid == node) => Some(*transaction),
            _ => None,
        }
    }
}

/// All that it takes to pay an escrow out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// What was escrowed.
    pub quote: Quote,
    /// What the compute node says it ran.
    pub result: Signed<InferenceResult>,
    /// The validators' approval of the completion.
    pub certificate: Certificate,
}

impl Settlement {
    /// What the validators approved.
    pub fn completion(&self) -> Completion {
        Completion::new(&self.quote, &self.result.message)
    }
}

/// A change of a request's payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerEvent {
    /// Whose request.
    pub client: Address,
    /// Which request.
    pub request_id: RequestId,
    /// Where it is now.
    pub state: EscrowState,
    /// The block that did it.
    pub block: u64,
}

/// Changes, in the chain's order. Does not end by itself.
pub type LedgerEvents = BoxStream<'static, Result<LedgerEvent, LedgerError>>;

/// Why money did not move.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LedgerError {
    /// Not enough tokens.
    #[error("{owner} has {balance}, {needed} are needed: fund it first")]
    InsufficientFunds {
        /// Whose balance.
        owner: Address,
        /// What it is.
        balance: Amount,
        /// What it takes.
        needed: Amount,
    },
    /// A contract may not take the tokens.
    #[error("{spender} may take {allowance} of the account's tokens, {needed} are needed: approve it first")]
    InsufficientAllowance {
        /// The contract.
        spender: Address,
        /// What it may take.
        allowance: Amount,
        /// What it takes.
        needed: Amount,
    },
    /// The request is not in the state that this takes; it will not get there by trying again.
    #[error("the payment of {request_id} is {actual}")]
    WrongState {
        /// Which request.
        request_id: RequestId,
        /// Where it is.
        actual: String,
    },
    /// Past its expiry, an escrow can only be refunded.
    #[error("expiry: the escrow expired at {0}: it can only be refunded")]
    Expired(UnixTime),
    /// Up to its expiry, an escrow can only be settled, or given back by its gateway.
    #[error("expiry: the escrow can be refunded only after {0}")]
    NotExpired(UnixTime),
    /// The approvals do not suffice.
    #[error("approvals: {0}")]
    Certificate(String),
    /// Not this account's to do.
    #[error("{0}")]
    NotAllowed(String),
    /// A quote that the contracts refuse.
    #[error("{field}: {problem}")]
    InvalidQuote {
        /// What is wrong.
        field: String,
        /// Why, and what to do.
        problem: String,
    },
    /// The voucher does not pay the quote.
    #[error(transparent)]
    Voucher(#[from] VoucherError),
    /// The voucher allows less than its channel's requests come to, by the gateway's account. A client that has lost count can sign
    /// another, up to what it has promised before.
    #[error("voucher.cumulative: {cumulative} is less than {needed}, which all requests so far and this one come to")]
    VoucherTooLow {
        /// What the vouchers allow.
        cumulative: Amount,
        /// What it takes, this request included.
        needed: Amount,
    },
    /// Only the gateway says what became of a payment, and neither the chain nor a receipt proves it.
    #[error("{0}")]
    Unproven(String),
    /// The channel is not in the state that this takes.
    #[error("channel {channel}: {problem}")]
    Channel {
        /// Which.
        channel: B256,
        /// Why, and what to do.
        problem: String,
    },
    /// This ledger cannot do that.
    #[error("this ledger does not {0}")]
    Unsupported(&'static str),
    /// The contract refused for a reason that has no name here.
    #[error("the contract reverted: {0}")]
    Reverted(String),
    /// The chain's answer makes no sense: use another endpoint.
    #[error("the chain's answer is malformed: {0}")]
    Malformed(String),
    /// It could not be written down, so it was not done.
    #[error("cannot be kept: {0}")]
    Storage(String),
    /// Too much to do at present.
    #[error("busy: {0}")]
    Busy(String),
    /// The chain does not answer.
    #[error("the chain is unreachable: {0}")]
    Unreachable(String),
}

impl LedgerError {
    /// True when the same call may succeed on another try.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Storage(_) | Self::Busy(_))
    }
}

/// Money, as one account sees it.
///
/// # For the implementer
/// - Every call that moves money is idempotent: when the request is already where the call would bring it, it returns the
///   transaction that did it and moves nothing. An escrow counts only when it is of the same quote.
/// - A call returns once the chain has it for good, by the implementation's rule of confirmation.
/// - A request's payment goes None, Escrowed, then Completed or Refunded, once and for ever. Completing is possible up to and
///   including the quote's expiry, refunding after it; only the quote's gateway may give back earlier.
/// - Payouts follow [`crate::PaymentTree::new`] to the unit.
#[async_trait]
pub trait PaymentLedger: Send + Sync {
    /// Whose transactions are sent.
    fn account(&self) -> Address;

    /// The network's domain, validators, quorum and treasury, as the chain has them now.
    async fn trust_root(&self) -> Result<TrustRoot, LedgerError>;

    /// The chain's time.
    async fn now(&self) -> Result<UnixTime, LedgerError>;

    /// An account's tokens.
    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError>;

    /// Moves the quote's total from this account, which is the quote's client, into escrow. Returns the transaction.
    async fn escrow(&self, quote: &Quote) -> Result<B256, LedgerError>;

    /// Pays an escrow out. Returns the transaction.
    async fn settle(&self, settlement: &Settlement) -> Result<B256, LedgerError>;

    /// Gives an escrow back to its client: for the quote's gateway at any time, for anyone after expiry. Returns the transaction.
    async fn refund(&self, quote: &Quote) -> Result<B256, LedgerError>;

    /// Where a request's payment is.
    async fn escrow_state(&self, client: Address, request_id: RequestId) -> Result<EscrowState, LedgerError>;

    /// Every change from this block on: those that have been, then those to come. When the chain takes blocks back, the changes of
    /// those that replace them are told again, from a block before them.
    async fn events(&self, from_block: u64) -> Result<LedgerEvents, LedgerError>;

    /// Takes what a client signed to pay this quote: brings a transfer to the chain, or holds a voucher's amount in its channel.
    /// Returns what [`EscrowState`] then names. The same authorisation again is as good as once.
    async fn accept(&self, _quote: &Quote, _authorisation: &Authorisation) -> Result<B256, LedgerError> {
        Err(LedgerError::Unsupported("take authorisations: pay into escrow"))
    }

    /// The voucher that pays a request, when one does.
    async fn voucher(&self, _request_id: RequestId) -> Result<Option<ChannelPayment>, LedgerError> {
        Ok(None)
    }

    /// As a gateway: settles what it has earned out of a channel, takes no more vouchers of it, and gives its signature over the
    /// [`crate::ChannelClose`] with what was settled.
    async fn agree_to_close(&self, _terms: &ChannelTerms) -> Result<(Amount, Signature), LedgerError> {
        Err(LedgerError::Unsupported("keep vouchers"))
    }

    /// Whether a verified receipt's payment is the one that this account has made, as far as the ledger knows: a receipt's signatures do
    /// not say which transactions a chain holds, nor which of two ways its client meant to pay by.
    ///
    /// # Errors
    /// [`LedgerError::NotAllowed`] when it is not; a retryable error while that is to be seen.
    async fn check_payment(&self, _receipt: &Receipt) -> Result<(), LedgerError> {
        Ok(())
    }

    /// The request is over, as its client has it proven: `paid` says whether it was served, with a receipt. A ledger releases what it
    /// reserved for the request, as far as that proof goes.
    async fn conclude(&self, _quote: &Quote, _paid: bool) {}
}

/// What the chain shows to those who neither pay nor are paid by this SDK's gateway: compute nodes, validators and registry nodes, who take
/// nobody's word for it.
#[async_trait]
pub trait ChainView: Send + Sync {
    /// The network's domain, validators, quorum and treasury, as the chain has them now.
    async fn trust_root(&self) -> Result<TrustRoot, LedgerError>;

    /// The chain's time.
    async fn now(&self) -> Result<UnixTime, LedgerError>;

    /// Where a request's escrow is.
    async fn escrow_state(&self, client: Address, request_id: RequestId) -> Result<EscrowState, LedgerError>;

    /// What the chain holds of a channel; nothing when it was never opened.
    async fn channel(&self, id: B256) -> Result<Option<Channel>, LedgerError>;

    /// The root of the batch that charged a channel from `settled_before` on, when one has.
    async fn charged_root(&self, channel: B256, settled_before: Amount) -> Result<Option<B256>, LedgerError>;

    /// Whether an account has something at stake as a validator, active or leaving.
    async fn has_stake(&self, account: Address) -> Result<bool, LedgerError>;

    /// Who has created a subnet, and paid for it.
    async fn subnet_owner(&self, subnet: B256) -> Result<Option<Address>, LedgerError>;
}

/// The chain to whoever settles batches.
#[async_trait]
pub trait BatchSettler: ChainView {
    /// Charges channels for a batch of requests and pays everyone. Returns the transaction. The same batch again is as good as once.
    async fn settle_batch(&self, batch: &CertifiedBatch) -> Result<B256, LedgerError>;
}

/// Conveniences on every [`PaymentLedger`].
#[async_trait]
pub trait PaymentLedgerExt: PaymentLedger {
    /// The transaction that escrowed exactly this quote, or what stands in its place.
    async fn payment_of(&self, quote: &Quote) -> Result<Option<B256>, LedgerError> {
        use crate::Message as _;
        Ok(self.escrow_state(quote.client, quote.request_id).await?.payment_of(quote.struct_hash()))
    }
}

impl<L: PaymentLedger + ?Sized> PaymentLedgerExt for L {}
