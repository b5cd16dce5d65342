//! The ports for money, by who calls them.

use std::{fmt, sync::Arc};

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{
    Amount, Channel, ChannelClose, ChannelParams, Committee, Completion, Date, Delivery, DeliveryError, DynSigner, Message as _,
    PaymentAuthorization, QuorumCertificate, Quote, Receipt, RequestId, Signature, SignedVoucher, TrustHistory, TrustRoot,
    UnixTime,
    channel::{CertifiedBatch, VoucherError},
};

/// What stands for one step of a payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentRef {
    /// A transaction of the chain, by its hash.
    Transaction(B256),
    /// A voucher, whose amount its channel is charged with in a batch.
    Voucher(Box<SignedVoucher>),
    /// A signed transfer that the gateway brings to the chain, by the struct hash of the quote that it pays. The client that signed it does
    /// not see which transaction that is.
    Transfer(B256),
}

impl PaymentRef {
    /// The transaction, when it is one.
    pub const fn transaction(&self) -> Option<B256> {
        match self {
            Self::Transaction(hash) => Some(*hash),
            Self::Voucher(_) | Self::Transfer(_) => None,
        }
    }

    /// The voucher, when it is one.
    pub fn voucher(&self) -> Option<SignedVoucher> {
        match self {
            Self::Voucher(payment) => Some(**payment),
            Self::Transaction(_) | Self::Transfer(_) => None,
        }
    }
}

impl From<SignedVoucher> for PaymentRef {
    fn from(payment: SignedVoucher) -> Self {
        Self::Voucher(Box::new(payment))
    }
}

impl fmt::Display for PaymentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transaction(hash) => write!(f, "{hash}"),
            Self::Voucher(payment) => {
                write!(f, "the voucher of request {} on channel {}", payment.voucher.request_id, payment.voucher.channel)
            }
            Self::Transfer(quote) => write!(f, "the signed transfer for quote {quote}"),
        }
    }
}

/// Where a request's payment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentStatus {
    /// Never paid.
    Unpaid,
    /// Paid, and waiting for the result: in escrow, or reserved in a channel.
    Held {
        /// Struct hash of the quote that was paid.
        quote: B256,
        /// The client's payment.
        by: PaymentRef,
    },
    /// In escrow, and its gateway will not complete the request. A certificate still pays it out.
    GivenUp {
        /// Struct hash of the quote that was paid.
        quote: B256,
        /// From when on anyone can give it back to the client.
        refundable_at: UnixTime,
    },
    /// The gateway's by right, and not known to be paid out: a voucher that was captured and is not settled yet.
    Earned {
        /// The client's payment.
        by: PaymentRef,
    },
    /// Paid out. Final.
    PaidOut {
        /// The settlement, or the voucher that was charged.
        by: PaymentRef,
        /// Struct hash of the completion that it was paid out for; none out of a channel, where the gateway alone settles.
        completion: Option<B256>,
    },
    /// Given back. Final.
    Refunded {
        /// The refund, or the voucher that will not be charged.
        by: PaymentRef,
    },
}

impl PaymentStatus {
    /// What pays the quote with this struct hash, while its total is held.
    pub fn payment_of(&self, hash: B256) -> Option<&PaymentRef> {
        match self {
            Self::Held { quote, by } if *quote == hash => Some(by),
            _ => None,
        }
    }

    /// What paid, or is to pay, for the completion with this struct hash.
    pub fn settled_for(&self, hash: B256) -> Option<&PaymentRef> {
        match self {
            Self::Earned { by } => Some(by),
            Self::PaidOut { by, completion } if completion.is_none_or(|paid| paid == hash) => Some(by),
            _ => None,
        }
    }

    /// Checks that an escrow was paid out by this settlement, for the completion with this struct hash, as a receipt says.
    ///
    /// # Errors
    /// [`LedgerError::NotAllowed`] when it went another way; [`LedgerError::Unreachable`] while it has not ended: the gateway's endpoint may
    /// be ahead of the one that was asked.
    pub fn check_settled(&self, settlement: B256, completion: B256) -> Result<(), LedgerError> {
        let refuse = |problem: String| Err(LedgerError::NotAllowed(format!("payment: {problem}")));
        match self {
            Self::PaidOut { by, .. } if *by != PaymentRef::Transaction(settlement) => {
                refuse(format!("was paid out by {by}, not by {settlement}"))
            }
            Self::PaidOut { .. } if self.settled_for(completion).is_none() => refuse("was paid out for another completion".into()),
            Self::PaidOut { .. } => Ok(()),
            Self::Refunded { by } => refuse(format!("was given back by {by}")),
            Self::Unpaid | Self::Held { .. } | Self::GivenUp { .. } | Self::Earned { .. } => {
                Err(LedgerError::Unreachable(format!("the chain does not show the settlement {settlement} yet: {self}")))
            }
        }
    }
}

impl fmt::Display for PaymentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpaid => write!(f, "not paid"),
            Self::Held { by: PaymentRef::Transaction(hash), .. } => write!(f, "escrowed by {hash}"),
            Self::Held { by, .. } => write!(f, "held by {by}"),
            Self::GivenUp { refundable_at, .. } => {
                write!(f, "given up by its gateway: it can be given back from {refundable_at} on")
            }
            Self::Earned { by } => write!(f, "earned by {by}"),
            Self::PaidOut { by, .. } => write!(f, "paid out by {by}"),
            Self::Refunded { by } => write!(f, "given back by {by}"),
        }
    }
}

/// All that it takes to pay an escrow out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// What was paid.
    pub quote: Quote,
    /// Who judges it.
    pub committee: Committee,
    /// What the compute nodes have given.
    pub delivery: Delivery,
    /// What the validators approved of it.
    pub completion: Completion,
    /// Their approval.
    pub certificate: QuorumCertificate,
}

impl Settlement {
    /// What the validators approved, with all that leads to it.
    ///
    /// # Errors
    /// When the delivery is not one for the quote.
    pub fn new(
        quote: Quote,
        committee: Committee,
        delivery: Delivery,
        certificate: QuorumCertificate,
    ) -> Result<Self, DeliveryError> {
        let completion = delivery.completion(&quote)?;
        Ok(Self { quote, committee, delivery, completion, certificate })
    }
}

/// A change of a request's escrow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaymentChange {
    /// Whose request.
    pub client: Address,
    /// Which request.
    pub request_id: RequestId,
    /// Where the payment is now.
    pub status: PaymentStatus,
    /// The block that did it.
    pub block: u64,
}

/// Changes, in the chain's order. Does not end by itself.
pub type PaymentChanges = BoxStream<'static, Result<PaymentChange, LedgerError>>;

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
    /// After this time, an escrow can only be refunded.
    #[error("expiry: the escrow could be settled until {}: it can only be refunded", Date(*.0))]
    Expired(UnixTime),
    /// Until this time, an escrow can be settled, or given back with its client's consent.
    #[error("expiry: the escrow can be refunded from {} on: wait until then, or have its client agree", Date(*.0))]
    NotRefundable(UnixTime),
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

/// Money, as a gateway's account sees it.
///
/// # For the implementer
/// - Every call that moves money is idempotent: when the request is already where the call would bring it, it returns what did it and
///   moves nothing. A payment counts only when it is of the same quote.
/// - A call returns once the chain has it for good, by the implementation's rule of confirmation, or a voucher's change survives a crash.
/// - A request's payment goes Unpaid, Held, (`GivenUp`,) then (Earned and) `PaidOut` or Refunded, once and for ever. Anyone who holds a
///   certificate can complete an escrow, up to and including [`crate::validation::CLAIM_SECONDS`] after the quote's expiry; refunding it is
///   possible after that, or as long after its gateway has given it up; before that with its client's consent.
/// - Payouts follow [`crate::PayoutSchedule::new`] to the unit.
#[async_trait]
pub trait PaymentLedger: Send + Sync {
    /// Whose transactions are sent.
    fn account(&self) -> Address;

    /// The network's domain, treasury, validators and quorum, as the chain has them, and had them; read at `epoch` or later.
    ///
    /// # Errors
    /// [`LedgerError::Unreachable`] when the chain is not so far yet.
    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError>;

    /// The network as it is now.
    async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        Ok(self.trust(0).await?.current().trust.clone())
    }

    /// An account's tokens.
    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError>;

    /// Takes what a client signed to pay this quote: brings a transfer to the chain, or reserves a voucher's amount in its channel.
    /// Returns what [`PaymentStatus::Held`] then names. The same authorization again is as good as once.
    ///
    /// # Errors
    /// [`LedgerError::Voucher`] when the voucher does not pay the quote, or the ledger takes none.
    async fn redeem(&self, quote: &Quote, authorization: &PaymentAuthorization) -> Result<PaymentRef, LedgerError>;

    /// Where a request's payment is.
    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError>;

    /// Pays what the request costs out of an escrow, or captures so much of a voucher. Returns what [`PaymentStatus::settled_for`] then names.
    async fn settle(&self, settlement: &Settlement) -> Result<PaymentRef, LedgerError>;

    /// Gives a payment back to its client. For an escrow, the quote's gateway can at once with the client's `consent`, its signature
    /// over the [`crate::TaskCapability`] to cancel the request; and anyone from the time on of which [`PaymentLedger`] speaks. Returns
    /// what [`PaymentStatus::Refunded`] then names. A voucher is the gateway's to release, at any time.
    ///
    /// # Errors
    /// [`LedgerError::NotRefundable`] before that time. The quote's gateway has given the escrow up then.
    async fn refund(&self, quote: &Quote, consent: Option<&Signature>) -> Result<PaymentRef, LedgerError>;

    /// Every change of an escrow from this block on: those that have been, then those to come. When the chain takes blocks back, the
    /// changes of those that replace them are told again, from a block before them.
    async fn changes(&self, from_block: u64) -> Result<PaymentChanges, LedgerError>;

    /// As a channel's gateway: settles what it has earned out of the channel, takes no more vouchers of it, and gives its signature over
    /// the [`crate::ChannelClose`] with what was settled. A ledger that takes no vouchers has earned nothing: it signs what the chain has
    /// charged, so it is not for a gateway that holds vouchers of the channel elsewhere.
    async fn cooperative_close(&self, terms: &ChannelParams) -> Result<(Amount, Signature), LedgerError>;
}

/// Money, as a client pays it.
///
/// # For the implementer
/// - `pay` is idempotent: a quote that is paid is not paid again. A caller that is cancelled may have paid.
/// - What only the gateway says, and neither the chain nor a receipt proves, is a [`LedgerError::Unproven`].
#[async_trait]
pub trait Payer: Send + Sync {
    /// Who pays.
    fn account(&self) -> Address;

    /// The network's domain, treasury, validators and quorum: as the chain has them, and had them, read at `epoch` or later; or as the payer
    /// was told to trust them.
    ///
    /// # Errors
    /// [`LedgerError::Unreachable`] when the chain is not so far yet.
    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError>;

    /// The network as it is now.
    async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        Ok(self.trust(0).await?.current().trust.clone())
    }

    /// The time that decides about a quote's expiry.
    async fn now(&self) -> Result<UnixTime, LedgerError>;

    /// Pays the quote, of which this account is the client. Returns what [`PaymentStatus::Held`] then names.
    async fn pay(&self, quote: &Quote) -> Result<PaymentRef, LedgerError>;

    /// Where the payment of a request is that this account has quoted.
    async fn status(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError>;

    /// Takes the payment back as far as this payer can, and says where it is then: once the gateway has given it up, or
    /// [`crate::validation::CLAIM_SECONDS`] after the quote's expiry. A client that has been given a part of the output waits for the latter.
    async fn reclaim(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError>;

    /// Whether a verified receipt's payment is the one that this account has made, as far as the payer knows: a receipt's signatures do
    /// not say which transactions a chain holds, nor which of two ways its client meant to pay by.
    ///
    /// # Errors
    /// [`LedgerError::NotAllowed`] when it is not; a retryable error while that is to be seen.
    async fn check(&self, receipt: &Receipt) -> Result<(), LedgerError>;

    /// The request is over, as its client has it proven: `cost` is what a receipt says, when there is one. The payer releases what it
    /// reserved for the request, as far as that proof goes.
    async fn release(&self, quote: &Quote, cost: Option<Amount>);
}

/// What the chain shows to every account: to compute nodes, validators and registry nodes, which trust no other role for it, and to a
/// channel's client and gateway.
#[async_trait]
pub trait ChainView: Send + Sync {
    /// The network's domain, treasury, validators and quorum, as the chain has them, and had them; read at `epoch` or later.
    ///
    /// # Errors
    /// [`LedgerError::Unreachable`] when the chain is not so far yet.
    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError>;

    /// The network as it is now.
    async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        Ok(self.trust(0).await?.current().trust.clone())
    }

    /// The chain's time.
    async fn now(&self) -> Result<UnixTime, LedgerError>;

    /// Where a request's escrow is.
    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError>;

    /// What the chain holds of a channel; nothing when it was never opened.
    async fn channel(&self, id: B256) -> Result<Option<Channel>, LedgerError>;

    /// What settlements of channels have paid an account from this block on, and the block to go on from. From now on, when no block is said.
    async fn channel_payouts(&self, account: Address, from_block: Option<u64>) -> Result<(Amount, u64), LedgerError>;

    /// The root of the batch that charged a channel from `settled_before` on, when one has.
    async fn charged_root(&self, channel: B256, settled_before: Amount) -> Result<Option<B256>, LedgerError>;

    /// Who has created a subnet, and paid for it.
    async fn subnet_owner(&self, subnet: B256) -> Result<Option<Address>, LedgerError>;

    /// What a validator has staked, zero when that is nothing.
    async fn stake(&self, validator: Address) -> Result<Amount, LedgerError>;
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
    /// What pays exactly this quote, while that is held.
    async fn payment_of(&self, quote: &Quote) -> Result<Option<PaymentRef>, LedgerError> {
        Ok(self.status(quote.client, quote.request_id).await?.payment_of(quote.struct_hash()).cloned())
    }
}

impl<L: PaymentLedger + ?Sized> PaymentLedgerExt for L {}

/// What the chain has of a channel that this gateway may close.
///
/// # Errors
/// [`LedgerError::NotAllowed`] when the channel is another gateway's; [`LedgerError::Channel`] when it was never opened, or is closed.
pub async fn closable(chain: &(impl ChainView + ?Sized), terms: &ChannelParams, gateway: Address) -> Result<Channel, LedgerError> {
    let refuse = |problem: &str| Err(LedgerError::Channel { channel: terms.id(), problem: problem.into() });
    if terms.gateway != gateway {
        return Err(LedgerError::NotAllowed("gateway: the channel is with another one".into()));
    }
    match chain.channel(terms.id()).await? {
        None => refuse("was never opened"),
        Some(channel) if !channel.open => refuse("is closed already"),
        Some(channel) => Ok(channel),
    }
}

/// The signature of a gateway that charges a channel no more than the chain has charged it.
///
/// # Errors
/// As [`closable`]; and when the chain does not answer, or the key does not sign.
pub async fn sign_close(
    chain: &(impl ChainView + ?Sized),
    terms: &ChannelParams,
    gateway: &DynSigner,
) -> Result<(Amount, Signature), LedgerError> {
    let Channel { settled, .. } = closable(chain, terms, gateway.address()).await?;
    let close = ChannelClose { channel: terms.id(), settled };
    let signature = Signature::sign(&close.digest(&chain.trust_root().await?.channel_domain()), &**gateway).await;
    Ok((settled, signature.map_err(|error| LedgerError::NotAllowed(format!("key: {error}")))?))
}
