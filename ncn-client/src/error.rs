//! What can go wrong for a dApp.

use std::time::Duration;

use crate::InferenceOutput;
use ncn_core::{
    Amount, CertificateError, Date, InputError, LedgerError, PaymentRef, Price, SignatureError, TransportError, Units, UnixTime,
    agreement::Mismatch,
};

/// What is wrong with a quote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteProblem {
    /// There is none, or no approval of it.
    #[error("the gateway gave none that is approved")]
    Missing,
    /// It is not for the order, or not of the network that is trusted.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// Its price or its units are not those that the order was signed for.
    #[error("quote.price: is {price}, for at most {} units in and {} out, which is not what the gateway has listed", max_units.input, max_units.output)]
    Units {
        /// What it asks for a unit.
        price: Box<Price>,
        /// For how many at most.
        max_units: Units,
    },
    /// Others judge by now than those it names.
    #[error("quote.epoch: others judge since then, for too long: order again")]
    Epoch,
    /// It cannot be paid any more.
    #[error("quote.expiry: {} has passed", Date(*.0))]
    Expired(UnixTime),
    /// The validators have not approved it.
    #[error("the validators' approval does not count: {0}")]
    Certificate(#[from] CertificateError),
}

/// Why there is no answer. Each says whether money has moved: see [`ClientError::is_paid`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The client is not set up.
    #[error("{setting}: {problem}")]
    Configuration {
        /// What of it.
        setting: &'static str,
        /// What to do.
        problem: String,
    },
    /// The model does not take this input.
    #[error("input {0}")]
    Input(#[from] InputError),
    /// The gateway does not offer this model.
    #[error("model `{name}` is not offered here; offered: {offered}")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// What there is.
        offered: String,
    },
    /// It can cost more than the order, or the client, allows. Nothing was signed or paid.
    #[error("price: {price} is more than the limit of {limit}")]
    TooExpensive {
        /// The most that it can cost.
        price: Amount,
        /// What the order allows, or the client where the order states no limit.
        limit: Amount,
    },
    /// The order's timeout is shorter than its model may take, or none is said and that is longer than anybody waits without having said so. Nothing
    /// was signed or paid.
    #[error("timeout: {timeout:?} is less than the {least:?} that the model may take: say a longer one")]
    TimeoutTooShort {
        /// What the order says, or the longest that is waited by itself.
        timeout: Duration,
        /// The least that the gateway takes.
        least: Duration,
    },
    /// There is no limit, and nobody has seen the price. Nothing was signed or paid.
    #[error(
        "price: `{model}` costs up to {price} and the client has no limit: set `ClientBuilder::max_price`, or submit the order, look at its \
         quote, and pay that"
    )]
    PriceUnseen {
        /// What was to be run.
        model: String,
        /// The most that it can cost.
        price: Amount,
    },
    /// The gateway, or the way to it, does not serve.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The payment was not made.
    #[error("payment: {0}")]
    Ledger(#[from] LedgerError),
    /// The client's key cannot be used.
    #[error("key: {0}")]
    Signer(#[from] SignatureError),
    /// The gateway asks for something else than was ordered and approved. Nothing was paid.
    #[error("the quote was rejected, nothing was paid: {0}")]
    QuoteRejected(#[from] QuoteProblem),
    /// The network did not take the order. Nothing was paid.
    #[error("the request was not served, nothing was paid: {0}")]
    Refused(String),
    /// The network failed after the payment; the client has its money back.
    #[error("the request failed and the payment was refunded by {by}: {reason}")]
    Refunded {
        /// The refund.
        by: PaymentRef,
        /// Why it came to that.
        reason: String,
    },
    /// The network failed after the payment, and the refund is not there yet: it can be had once the quote has expired.
    #[error("the request failed and the payment is not back yet: {0}")]
    NotRefunded(String),
    /// The request failed, and what became of its payment only the gateway says: neither the chain nor a receipt proves it. A payment
    /// into escrow can be taken back once the quote has expired; out of a channel, it stays reserved.
    #[error("the request failed, and it is not proven what became of the payment: {0}")]
    Unproven(String),
    /// The payment was paid out, and the gateway does not have the answer any more.
    #[error("the request was paid out, and its answer cannot be had: {0}")]
    Undelivered(String),
    /// What was delivered does not prove itself. The output is withheld.
    #[error("the receipt was rejected and the output withheld: {0}")]
    ReceiptRejected(String),
    /// Parts of a streamed output were handed out that are not the beginning of the output that was delivered, approved and paid. Those
    /// parts are to be thrown away; the verified answer is here.
    #[error("the parts that were streamed are not those of the output, throw them away: {problem}")]
    PartsRejected {
        /// What does not fit.
        problem: String,
        /// What was delivered, verified.
        answer: Box<InferenceOutput>,
    },
}

impl ClientError {
    /// True when the client's money has been paid out or is still held, or nothing proves that it is not; false when it never left or is
    /// back.
    pub const fn is_paid(&self) -> bool {
        matches!(
            self,
            Self::NotRefunded(_) | Self::Unproven(_) | Self::Undelivered(_) | Self::ReceiptRejected(_) | Self::PartsRejected { .. }
        )
    }

    /// True when the same order may succeed on another try.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Transport(error) => error.is_retryable(),
            Self::Ledger(error) => error.is_retryable(),
            Self::Refunded { .. } => true,
            _ => false,
        }
    }

    /// True when the caller has to change what it asks for; nothing was sent or paid.
    pub const fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Configuration { .. }
                | Self::Input(_)
                | Self::UnknownModel { .. }
                | Self::TooExpensive { .. }
                | Self::TimeoutTooShort { .. }
                | Self::PriceUnseen { .. }
                | Self::Transport(TransportError::InvalidRequest { .. } | TransportError::UnknownModel(_))
        )
    }
}
