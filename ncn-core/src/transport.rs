//! The port between a client and one gateway.

use std::time::Duration;

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use serde::{Deserialize, Serialize};

use crate::{
    Amount, ChannelParams, ErrorKind, InferenceRequest, InputError, Model, PaymentAuthorization, Price, RequestId, Signature,
    Signed, TaskCapability, TaskEvent, TaskStatus, TrustRoot, Units, Values, price::PriceOverflow,
};

/// A gateway's part in the draw of one order's committee. The gateway keeps to it: it gave `draw` before it saw the order, and shows the
/// salt that this is [`crate::trust::draw_of`] with the quote. The client makes an order of it that it could not have made for a certain
/// committee: it does not know the salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// By which the gateway finds the salt again.
    pub id: B256,
    /// For [`InferenceRequest::draw`].
    pub draw: B256,
}

/// The most tickets that are given at once.
pub const MAX_TICKETS: u32 = 64;

/// A signed order and what to run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The order.
    pub request: Signed<InferenceRequest>,
    /// Hashes to the order's `input_hash`.
    pub inputs: Values,
    /// The [`Ticket`] that the order's `draw` is from.
    pub ticket: B256,
}

/// How a client has paid, or how it can be made to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PaymentConfirmation {
    /// For which request.
    pub request_id: RequestId,
    /// How.
    pub proof: PaymentSubmission,
}

/// What a client tells its gateway of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::large_enum_variant, reason = "passed once a request")]
pub enum PaymentSubmission {
    /// A hint: the transaction that escrowed the payment. The gateway believes the chain, not the hint.
    Transaction(B256),
    /// What the client signed, for the gateway to bring to the chain or to keep until a batch is settled.
    Authorization(PaymentAuthorization),
}

/// What a gateway says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkInfo {
    /// Its address.
    pub gateway: Address,
    /// Its network.
    pub trust_root: TrustRoot,
    /// URLs with the files of its subnet's models, for compute nodes.
    pub model_sources: Vec<String>,
    /// The least total of a quote whose payment it brings to the chain ([`PaymentAuthorization::Transfer`]).
    pub least_relayed: Amount,
}

/// A model that the gateway offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelInfo {
    /// The manifest: what it takes and gives.
    pub model: Model,
    /// The subnet it is offered in.
    pub subnet: B256,
    /// What its requests cost there.
    pub price: Price,
    /// The least time from an order to its deadline that is taken.
    #[serde(rename = "leastTimeoutMicros", with = "crate::serial::micros")]
    pub least_timeout: Duration,
    /// What a request took on average, of those that the gateway has served lately; none before the first.
    pub typical_units: Option<Units>,
}

impl ModelInfo {
    /// The most units that a request is charged for, and what they cost: the total that its quote has.
    ///
    /// # Errors
    /// When the parameters are not the model's, or the price does not fit an amount.
    pub fn maximum(&self, inputs: &Values, parameters: &str) -> Result<(Units, Amount), InputError> {
        let units = self.model.manifest().max_units(&self.price, inputs, parameters)?;
        let overflow = |error: PriceOverflow| InputError { name: "price".into(), problem: error.to_string() };
        Ok((units, self.price.cost(units).map_err(overflow)?))
    }
}

/// News of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Update {
    /// Where it is among the gateway's updates of the request: one more than that of the update before it.
    pub index: u64,
    /// What happened.
    pub event: TaskEvent,
}

/// News of a request, in order, ending after a [`TaskEvent::is_last`].
pub type Updates = BoxStream<'static, Result<Update, TransportError>>;

/// Why a gateway, or the way to it, does not serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TransportError {
    /// The request can never be served as it is.
    #[error("{field}: {problem}")]
    InvalidRequest {
        /// What is wrong.
        field: String,
        /// Why, and what to do.
        problem: String,
    },
    /// The voucher allows less than the channel's requests come to, by the gateway's account.
    #[error("payment: voucher.cumulative: {cumulative} is less than {needed}, which all requests so far and this one come to")]
    VoucherTooLow {
        /// What the vouchers allow.
        cumulative: Amount,
        /// What it takes, this request included.
        needed: Amount,
    },
    /// No such model here.
    #[error("model {0} is not offered by this gateway: ask it for its models")]
    UnknownModel(B256),
    /// No such request here.
    #[error("request {0} is not known to this gateway")]
    UnknownTask(RequestId),
    /// Another gateway of the subnet works on it.
    #[error("request {request_id} is with gateway {gateway}: ask that one")]
    TakenElsewhere {
        /// Which request.
        request_id: RequestId,
        /// Who says that it works on it.
        gateway: Address,
    },
    /// Another client's request.
    #[error("not authorized: {0}")]
    #[serde(rename = "Unauthorised")]
    Unauthorized(String),
    /// The request ended before it could be paid.
    #[error("refused: {0}")]
    Refused(String),
    /// Too much to do.
    #[error("the gateway is busy: try again in {} ms", retry_after.as_millis())]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// The gateway does not answer.
    #[error("gateway {endpoint} is unreachable: {problem}")]
    Unreachable {
        /// Who was called.
        endpoint: String,
        /// What happened, and what to do.
        problem: String,
    },
    /// The gateway's answer makes no sense.
    #[error("the gateway's answer is malformed: {0}")]
    Malformed(String),
    /// The gateway failed.
    #[error("the gateway failed: {0}")]
    Internal(String),
}

impl TransportError {
    /// True when the same call may succeed on another try or at another gateway.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Overloaded { .. } | Self::Unreachable { .. } | Self::Internal(_))
    }

    /// What it is on a wire.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidRequest { .. } | Self::VoucherTooLow { .. } => ErrorKind::Invalid,
            Self::UnknownModel(_) | Self::UnknownTask(_) | Self::TakenElsewhere { .. } => ErrorKind::Unknown,
            Self::Unauthorized(_) => ErrorKind::Denied,
            Self::Refused(_) => ErrorKind::Refused,
            Self::Overloaded { .. } => ErrorKind::Busy,
            Self::Unreachable { .. } => ErrorKind::Unavailable,
            Self::Malformed(_) | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// A request that can never be served as it is.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::InvalidRequest { field: field.into(), problem: problem.into() }
    }
}

/// A client's way to one gateway. The gateway itself implements it, and so does the client of each wire.
///
/// # For the user
/// 1. [`submit`](Self::submit) a signed order, made with a [ticket](Self::tickets); the status that comes back says what to pay ([`TaskStatus::quote`]).
/// 2. Pay on chain, then [`confirm_payment`](Self::confirm_payment) so that the gateway need not discover the payment by itself.
/// 3. Follow [`updates`](Self::updates) until the last one, and verify its receipt.
///
/// Everything may be called again: the same order is the same request, the same confirmation is the same payment, and updates
/// can be followed from any one on.
///
/// # For the implementer
/// - `submit` returns once the request can be paid or has ended, and refuses whatever could be refused later for the same reason:
///   after it has given a quote, only the network's failure may keep the client from a result.
/// - `updates` and `cancel` check that the signer of the access is the request's client, and that it is for this purpose.
/// - `cancel` of a request that is already paid leads to a refund or to the result, never to both.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Tickets for orders, each for one and for a few minutes: `count` of them, at most [`MAX_TICKETS`].
    async fn tickets(&self, count: u32) -> Result<Vec<Ticket>, TransportError>;

    /// Places an order.
    ///
    /// # Errors
    /// [`TransportError::InvalidRequest`] that names `request.draw` when its ticket is not the gateway's, was used, or is too old: take
    /// another.
    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError>;

    /// Says that the order is paid.
    async fn confirm_payment(&self, confirmation: PaymentConfirmation) -> Result<(), TransportError>;

    /// Follows an order from the update with this index on; 0 is the beginning. Where the gateway has no update with it, nor is it the next
    /// one, as after the gateway's restart, they begin with the first one that there is: an index tells.
    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError>;

    /// Where an order is. Holds no output, so it needs no signature.
    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError>;

    /// Withdraws an order.
    async fn cancel(&self, access: Signed<TaskCapability>) -> Result<(), TransportError>;

    /// What the gateway offers.
    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError>;

    /// Which gateway this is, and of which network, for a client without a chain to read it from; whether to trust it, the client
    /// decides.
    async fn network(&self) -> Result<NetworkInfo, TransportError>;

    /// Asks the gateway to settle what it has earned out of a channel and to let go of the rest: its signature over a
    /// [`crate::ChannelClose`], and what it says was settled. From then on the gateway takes no voucher of the channel. The access is
    /// the client's, with the channel's id as its request id.
    async fn close_channel(
        &self,
        terms: ChannelParams,
        access: Signed<TaskCapability>,
    ) -> Result<(Amount, Signature), TransportError>;
}

/// Conveniences on every [`Transport`].
#[async_trait]
pub trait TransportExt: Transport {
    /// The offered model with this name.
    async fn model_named(&self, name: &str) -> Result<Option<ModelInfo>, TransportError> {
        Ok(self.models().await?.into_iter().find(|info| info.model.manifest().name == name))
    }

    /// The last update of an order: its result or why there is none.
    async fn last_update(&self, access: Signed<TaskCapability>) -> Result<TaskEvent, TransportError> {
        let mut updates = self.updates(access, 0).await?;
        while let Some(update) = updates.next().await {
            let Update { event, .. } = update?;
            if event.is_last() {
                return Ok(event);
            }
        }
        Err(TransportError::Malformed("the updates broke off".into()))
    }
}

impl<T: Transport + ?Sized> TransportExt for T {}
