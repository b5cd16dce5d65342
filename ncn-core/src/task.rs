//! What a client sees of its request while the network works on it.

use std::{fmt, time::Duration};

use alloy_primitives::Address;
use serde::{Deserialize, Serialize};

use crate::{InferenceResult, Outcome, OutputChunk, QuorumCertificate, Quote, Receipt, RequestId, Signed, State, Values};

/// The twelve steps of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Step {
    /// Client to gateway: the signed request.
    Submit = 1,
    /// Gateway to registry: live compute nodes with the model.
    Discover = 2,
    /// Gateway to compute node: a place for the request.
    Reserve = 3,
    /// Gateway to registry: M of N validators approve price and node.
    Preprocessing = 4,
    /// Client to chain: the escrow.
    Pay = 5,
    /// Chain to gateway: the escrow is there.
    Confirm = 6,
    /// Gateway to compute node: the task.
    Dispatch = 7,
    /// Compute node: the model runs.
    Execute = 8,
    /// Compute node to gateway: the signed result.
    Result = 9,
    /// Gateway to registry: M of N validators approve the completion.
    Completion = 10,
    /// Gateway to chain: everyone is paid.
    Finalize = 11,
    /// Gateway to client: output and receipt, verified there.
    Deliver = 12,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 12] = [
        Self::Submit,
        Self::Discover,
        Self::Reserve,
        Self::Preprocessing,
        Self::Pay,
        Self::Confirm,
        Self::Dispatch,
        Self::Execute,
        Self::Result,
        Self::Completion,
        Self::Finalize,
        Self::Deliver,
    ];

    /// The step with this number, counted from 1.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == code)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Submit => "submit",
            Self::Discover => "discover",
            Self::Reserve => "reserve",
            Self::Preprocessing => "preprocessing",
            Self::Pay => "pay",
            Self::Confirm => "confirm",
            Self::Dispatch => "dispatch",
            Self::Execute => "execute",
            Self::Result => "result",
            Self::Completion => "completion",
            Self::Finalize => "finalize",
            Self::Deliver => "deliver",
        })
    }
}

/// A step that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepTiming {
    /// Which.
    pub step: Step,
    /// Who took it.
    pub actor: Address,
    /// How long it took, as measured by whoever reports it.
    #[serde(rename = "tookMicros", with = "crate::serial::micros")]
    pub took: Duration,
}

/// Where a request is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskStatus {
    /// Which request.
    pub request_id: RequestId,
    /// Its state in the lifecycle.
    pub state: State,
    /// What the client is asked to pay, once the validators have approved it.
    pub quote: Option<Quote>,
    /// Their approval.
    pub preprocessing: Option<QuorumCertificate>,
    /// Why it failed, when it did.
    pub failure: Option<String>,
}

impl TaskStatus {
    /// How it ended, when it has.
    pub const fn outcome(&self) -> Option<Outcome> {
        match self.state {
            State::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }
}

/// News of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum TaskEvent {
    /// A step was taken.
    Step(StepTiming),
    /// A compute node begins to run it. Parts and checkpoints that follow are this node's, and start anew: those of a node that
    /// failed are void.
    Attempt(Address),
    /// A compute node goes on where the last checkpoint is: the parts after it are void, and those that follow are this node's.
    Takeover(Address),
    /// A part of the output of a model that streams. Not yet approved by anyone.
    Chunk(OutputChunk),
    /// The compute node's word on the parts since the attempt began, for [`crate::StreamChain::verify`].
    Checkpoint(Box<Signed<InferenceResult>>),
    /// The gateway gives the payment back, for this reason. A client that has nothing to pay for agrees by cancelling the request, and
    /// has an escrow back at once; else that takes [`crate::validation::CLAIM_SECONDS`].
    GivenUp(String),
    /// The output and the proof of it. Nothing comes after it.
    Delivered {
        /// What the model gave.
        output: Values,
        /// To be verified before the output is used.
        receipt: Box<Receipt>,
    },
    /// It ended without a result. Nothing comes after it.
    Failed {
        /// How: refused, refunded, cancelled, expired.
        outcome: Outcome,
        /// Why.
        reason: String,
    },
}

impl TaskEvent {
    /// True when nothing comes after it.
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Delivered { .. } | Self::Failed { .. })
    }
}
