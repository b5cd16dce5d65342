//! The life of one request at its gateway, as a pure function: (state, event) -> (state, effects).
//!
//! A gateway journals every event before it acts on the effects that follow from it. Each state has at most one effect of its own,
//! [`Lifecycle::effect`], and every effect is idempotent, so recovery is: replay the events, then re-issue the effect of the state that
//! they lead to. The chain has the last word on money: only what it reports ([`Event::Settled`], [`Event::Refunded`]) ends a paid request.
//!
//! | state | event | next |
//! | --- | --- | --- |
//! | Reserving | Reserved | Preprocessing |
//! | Preprocessing | Approved | AwaitingPayment |
//! | AwaitingPayment | Paid | Executing |
//! | Executing | Dispatched, Streamed | Executing |
//! | Executing | Executed | Completing |
//! | Executing | ExecutionFailed, another attempt may succeed | Executing, next attempt |
//! | Executing | ExecutionFailed, none may | Refunding |
//! | Completing | Completed | Settling |
//! | Completing | ExecutionFailed: the node does not hand the output over | Executing, next attempt |
//! | Completing | Refused | Refunding |
//! | Settling | SettlementImpossible | Refunding |
//! | Settling, Refunding | Settled | Ended(Completed) |
//! | Settling, Refunding | Refunded | Ended(Refunded) |
//! | Settling, Refunding | PaidElsewhere | Ended(Completed), without a receipt |
//! | Settling, Refunding | PaymentLost | Ended(Expired) |
//! | Reserving, Preprocessing | Refused | Ended(Refused) |
//! | Reserving, Preprocessing, AwaitingPayment | Cancelled / Expired | Ended(Cancelled / Expired) |
//! | Executing | Cancelled | Refunding |
//! | Executing, Completing | Expired | Refunding |
//! | Ended without payment | Paid | Refunding: late money goes back |

use alloy_primitives::B256;
use serde::{Deserialize, Serialize};

use crate::{Delivery, Dispatch, PaymentRef, QuorumCertificate, Quote, Signed, TrustRoot, Values};

/// How many nodes may try to execute one request.
pub const MAX_ATTEMPTS: u8 = 3;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// A compute node is being found and reserved.
    Reserving,
    /// The validators judge the quote.
    Preprocessing,
    /// The client is asked to pay.
    AwaitingPayment,
    /// A compute node runs it.
    Executing,
    /// The validators judge the result.
    Completing,
    /// The chain is paying everyone.
    Settling,
    /// The chain is paying the client back.
    Refunding,
    /// Over.
    Ended(Outcome),
}

impl State {
    /// Whether the client is yet to pay.
    pub const fn is_unpaid(self) -> bool {
        matches!(self, Self::Reserving | Self::Preprocessing | Self::AwaitingPayment)
    }

    /// Whether the client has paid, and has neither its answer nor its money.
    pub const fn is_owed(self) -> bool {
        matches!(self, Self::Executing | Self::Completing | Self::Settling | Self::Refunding)
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// Everyone was paid, the client has its result.
    Completed,
    /// The client has its money back.
    Refunded,
    /// It was never paid: no node or not enough validators would take it.
    Refused,
    /// It was never paid: the client withdrew it.
    Cancelled,
    /// It was never paid: the client took too long.
    Expired,
}

impl Outcome {
    /// True when the request ended before any money moved.
    pub const fn is_unpaid(self) -> bool {
        matches!(self, Self::Refused | Self::Cancelled | Self::Expired)
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A compute node holds a place.
    Reserved {
        /// At this price.
        quote: Box<Quote>,
        /// Judged by these validators, whatever becomes of the set in the meantime.
        trust_root: Box<TrustRoot>,
    },
    /// The validators approved what they were asked.
    Approved(QuorumCertificate),
    /// Nobody took it, or the validators refused.
    Refused(String),
    /// The chain holds the quote's total, or a channel the promise of it, by this.
    Paid(PaymentRef),
    /// Another node than the quote's is to serve, by this gateway's word.
    Dispatched(Box<Signed<Dispatch>>),
    /// A part of the output is about to be given to the client.
    Streamed,
    /// A compute node gave a result.
    Executed {
        /// What the client gets, of an output that was cut short. The node that has signed the end of its output keeps that until there
        /// is a certificate.
        output: Option<Values>,
        /// The nodes' word on it.
        delivery: Box<Delivery>,
        /// This gateway's word that they were to serve.
        dispatches: Vec<Signed<Dispatch>>,
    },
    /// The validators approved the result, and the client's output is there.
    Completed {
        /// Their approval.
        certificate: QuorumCertificate,
        /// The output that the node has handed over for it, unless it was there.
        output: Option<Values>,
    },
    /// A compute node gave none, or does not hand it over.
    ExecutionFailed {
        /// Why.
        reason: String,
        /// Whether another node may serve.
        retryable: bool,
    },
    /// The chain has paid everyone by this transaction, or will by this voucher.
    Settled(PaymentRef),
    /// The chain has paid for the completion with this struct hash: M validators approved what this gateway did not ask for.
    PaidElsewhere(B256),
    /// The chain will not pay out any more: the escrow has expired, or it refuses the certificate for good.
    SettlementImpossible(String),
    /// The chain has paid the client back by this transaction, or this voucher will not be charged.
    Refunded(PaymentRef),
    /// The chain has taken the payment back with the blocks that held it, and it did not come again before the quote expired.
    PaymentLost,
    /// The client withdraws.
    Cancelled,
    /// The quote's expiry has passed, or is too near to finish.
    Expired,
}

/// What the gateway has to do. Each is idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Effect {
    /// Find and reserve a compute node, and quote.
    Reserve,
    /// Ask the validators to judge the quote.
    RequestPreprocessing,
    /// Watch the chain for the payment.
    AwaitPayment,
    /// Have the reserved node run it; from the second attempt on, reserve another. At [`MAX_ATTEMPTS`], no more is tried.
    Dispatch {
        /// Counts from 0.
        attempt: u8,
    },
    /// Ask the validators to judge the result, and the node for the output.
    RequestCompletion,
    /// Have the chain pay everyone.
    Settle,
    /// Have the chain pay the client back.
    Refund,
    /// Let go of the compute node and tell the client.
    Finish,
}

/// An event that means nothing in the present state, such as an answer that comes twice or too late. It changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event means nothing in state {state:?}")]
pub struct Unexpected {
    /// The state, as it was and stays.
    pub state: State,
}

/// A request's place in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lifecycle {
    state: State,
    attempt: u8,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { state: State::Reserving, attempt: 0 }
    }
}

impl Lifecycle {
    /// Where it is.
    pub const fn state(&self) -> State {
        self.state
    }

    /// What is to be done in the present state: after an event, and again after a restart.
    pub const fn effect(&self) -> Effect {
        match self.state {
            State::Reserving => Effect::Reserve,
            State::Preprocessing => Effect::RequestPreprocessing,
            State::AwaitingPayment => Effect::AwaitPayment,
            State::Executing => Effect::Dispatch { attempt: self.attempt },
            State::Completing => Effect::RequestCompletion,
            State::Settling => Effect::Settle,
            State::Refunding => Effect::Refund,
            State::Ended(_) => Effect::Finish,
        }
    }

    /// The state that follows, and what is to be done there.
    pub fn step(self, event: &Event) -> Result<(Self, Effect), Unexpected> {
        use Outcome::{Cancelled, Completed, Expired, Refunded, Refused};
        use State::{AwaitingPayment, Completing, Ended, Executing, Preprocessing, Refunding, Reserving, Settling};

        let mut attempt = self.attempt;
        let state = match (self.state, event) {
            (Reserving, Event::Reserved { .. }) => Preprocessing,
            (Preprocessing, Event::Approved(_)) => AwaitingPayment,
            (Reserving | Preprocessing, Event::Refused(_)) => Ended(Refused),
            (Reserving | Preprocessing | AwaitingPayment, Event::Cancelled) => Ended(Cancelled),
            (Reserving | Preprocessing | AwaitingPayment, Event::Expired) | (Settling | Refunding, Event::PaymentLost) => {
                Ended(Expired)
            }
            (AwaitingPayment, Event::Paid(_)) | (Executing, Event::Dispatched(_) | Event::Streamed) => Executing,
            (Executing, Event::Executed { .. }) => Completing,
            (Executing, Event::ExecutionFailed { retryable: true, .. }) if attempt + 1 < MAX_ATTEMPTS => {
                attempt += 1;
                Executing
            }
            (Completing, Event::Completed { .. }) => Settling,
            // After the last attempt, this is where what was given before is taken for all.
            (Completing, Event::ExecutionFailed { .. }) if attempt < MAX_ATTEMPTS => {
                attempt += 1;
                Executing
            }
            (Executing | Completing, Event::ExecutionFailed { .. })
            | (Executing, Event::Cancelled | Event::Expired)
            | (Completing, Event::Refused(_) | Event::Expired)
            | (Settling, Event::SettlementImpossible(_)) => Refunding,
            (Settling | Refunding, Event::Settled(_) | Event::PaidElsewhere(_)) => Ended(Completed),
            (Settling | Refunding, Event::Refunded(_)) => Ended(Refunded),
            // The client paid when we had already let go: give it back at once rather than at expiry.
            (Ended(outcome), Event::Paid(_)) if outcome.is_unpaid() => Refunding,
            (state, _) => return Err(Unexpected { state }),
        };
        let next = Self { state, attempt };
        Ok((next, next.effect()))
    }
}

#[cfg(test)]
mod tests;
