//! The compute plane: what a gateway asks of a compute node.
//!
//! A compute node implements [`Compute`], and so does the gateway's end of the stream that a remote compute node has opened.

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{
    Acknowledgement, Dispatch, InferenceRequest, InferenceResult, OutputChunk, QuorumCertificate, Quote, RequestId, Signed,
    SignedVoucher, UnixTime, Values,
};

/// A wish to hold a place for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// For which request.
    pub request_id: RequestId,
    /// On which model.
    pub model_digest: B256,
    /// When the place is free again without a word from the gateway.
    pub expires_at: UnixTime,
}

/// A paid request, ready to run.
#[derive(Clone, Debug)]
pub struct ComputeTask {
    /// The client's order.
    pub request: Signed<InferenceRequest>,
    /// What was approved and escrowed.
    pub quote: Quote,
    /// The validators' approval of it.
    pub preprocessing: QuorumCertificate,
    /// What other nodes have signed of the output before they were lost: this one goes on from there. None when it begins.
    pub before: Vec<Signed<InferenceResult>>,
    /// The output that they have given, where it is a text of at most [`MAX_PREFIX_BYTES`]: for a model that takes it as context. Else empty.
    pub prefix: Values,
    /// The gateway's word that each of those was to serve, and last, that this node is.
    pub dispatches: Vec<Signed<Dispatch>>,
    /// The client's voucher, when it pays out of a channel; else the chain holds an escrow.
    pub voucher: Option<SignedVoucher>,
    /// What to run on; hashes to the order's `input_hash`.
    pub inputs: Values,
    /// When the output has to be at its end: after it, the validators approve it and the payment is settled. What was given until then is
    /// given and paid for.
    pub finish_by: UnixTime,
}

impl ComputeTask {
    /// Where to go on, when other nodes have given a part of the output.
    pub fn resume(&self) -> Option<Resume> {
        Resume::after(&self.before)
    }
}

/// The end of the parts that lost nodes have given and signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// How many they are.
    pub parts: u64,
    /// Their chain, [`InferenceResult::chain`].
    pub chain: B256,
    /// How many units of output are counted in them. Those that follow are within what is left of the quote's.
    pub output_units: u64,
}

impl Resume {
    /// The end of what these results cover.
    pub fn after(results: &[Signed<InferenceResult>]) -> Option<Self> {
        let InferenceResult { parts, chain, .. } = results.last()?.message;
        let units = results.iter().map(|result| result.message.usage.output_units);
        Some(Self { parts, chain, output_units: units.fold(0, u64::saturating_add) })
    }
}

/// What comes back while a task runs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "one of each is made a request")]
pub enum ComputeEvent {
    /// A part of the output of a model that streams.
    Chunk(OutputChunk),
    /// The node's word on the parts so far, a result without an end: after at most [`crate::stream::CHECKPOINT_PARTS`] parts or
    /// [`crate::stream::CHECKPOINT_MILLIS`], and before the end.
    Checkpoint(Signed<InferenceResult>),
    /// The node's word on the whole output, which says why it ends. Its last part is handed over for the validators' certificate only:
    /// see [`Compute::collect`]. Nothing comes after it.
    Finished(Signed<InferenceResult>),
}

/// What a node hands over for the certificate that pays it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collected {
    /// The whole output.
    pub output: Values,
    /// Its last part, of an output that came in several.
    pub last: Option<OutputChunk>,
}

/// The events of a running task; ends after [`ComputeEvent::Finished`] or an error. Dropping it cancels the task.
pub type ComputeEvents = BoxStream<'static, Result<ComputeEvent, ComputeError>>;

/// Why a compute node does not serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ComputeError {
    /// Every place is taken.
    #[error("compute node {0} is busy")]
    Busy(Address),
    /// It does not run this model.
    #[error("compute node does not have the model {0}")]
    UnknownModel(B256),
    /// The task does not fit the reservation, the quote or the payment.
    #[error("task refused: {0}")]
    InvalidTask(String),
    /// It took longer than it may, and gave nothing until then.
    #[error("the task ran past its deadline")]
    DeadlineExceeded,
    /// It was stopped before it gave anything.
    #[error("the task was stopped")]
    Cancelled,
    /// The model failed on this input; another node would fail too.
    #[error("execution failed: {0}")]
    Failed(String),
    /// It cannot go on where another node was lost; it may begin anew.
    #[error("compute node cannot go on: {0}")]
    CannotResume(String),
    /// The node failed; another may serve.
    #[error("compute node is unavailable: {0}")]
    Unavailable(String),
}

impl ComputeError {
    /// True when another node may serve the same task.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Unavailable(_) | Self::UnknownModel(_) | Self::CannotResume(_))
    }
}

/// The most bytes of an output, by [`Values::size`]: with its receipt, it has to fit one message on every wire.
pub const MAX_OUTPUT_BYTES: usize = 8 << 20;
/// The most values of an output: each takes some hundred bytes, however short it is on a wire.
pub const MAX_OUTPUT_VALUES: usize = 1 << 10;
/// The longest beginning of an output that another node is given as context.
pub const MAX_PREFIX_BYTES: usize = 1 << 20;
/// The most bytes that all parts of one output have together, by [`Values::size`]: more than the output has, since a part may replace
/// one before.
pub const MAX_STREAM_BYTES: usize = 4 * MAX_OUTPUT_BYTES;
/// The most parts of one output: one for each token of the longest texts that models write.
pub const MAX_STREAM_PARTS: u64 = 1 << 17;
/// The most characters of an error's text that a compute node passes on.
pub const MAX_ERROR_CHARS: usize = 2_000;

/// A compute node, as its gateway sees it.
///
/// # For the implementer
/// - `reserve` is idempotent by request id: a second call renews the lease. A lease ends at its `expires_at` by itself.
/// - `execute` needs a live lease, checks that the inputs hash to the order's `input_hash`, that the validators have approved the quote and
///   that its gateway has dispatched this node, and ends the lease when it is done.
/// - The last part of an output waits for `collect`, until the request is released or its quote has expired. `collect` is idempotent.
/// - A task that is to be resumed is answered with the parts after those that are there, and the result's `resumed_from` is their
///   chain: by a node that has reproduced them, or has taken them as context, as its `continuation` says. A node that can do neither says
///   [`ComputeError::CannotResume`].
/// - An output that is cut short, by `stop`, by its time limit or by `finish_by`, is finished with the parts that were given until then,
///   when there are any.
/// - A result states no more units than the quote allows, nor than the output has room for ([`crate::delivery::most_units`]).
/// - The result names the confinement that was really reached, and its output has no more than [`MAX_OUTPUT_BYTES`] and is what the
///   model's manifest promises.
/// - The parts of an output are within a [`crate::stream::StreamBudget`].
#[async_trait]
pub trait Compute: Send + Sync {
    /// Who this is.
    fn address(&self) -> Address;

    /// Holds a place for a request.
    async fn reserve(&self, reservation: Reservation) -> Result<(), ComputeError>;

    /// Gives a place back; does nothing when there is none.
    async fn release(&self, request_id: RequestId);

    /// Runs a task.
    async fn execute(&self, task: ComputeTask) -> Result<ComputeEvents, ComputeError>;

    /// Takes the gateway's word that it has got what the newest checkpoint says. Without it, a node goes on for one checkpoint more and then
    /// gives the task up. Does nothing when no such checkpoint waits for it, or the word is not its gateway's.
    async fn acknowledge(&self, request_id: RequestId, acknowledgement: Signed<Acknowledgement>);

    /// Takes the validators' certificate over the request's completion, and the gateway's word on the node's result, and hands the output over.
    ///
    /// # Errors
    /// [`ComputeError::InvalidTask`] when these do not pay this node for it; [`ComputeError::Unavailable`] when there is no output of this
    /// request, or no longer.
    async fn collect(
        &self,
        request_id: RequestId,
        certificate: QuorumCertificate,
        acknowledgement: Signed<Acknowledgement>,
    ) -> Result<Collected, ComputeError>;

    /// Has a running task end with what it has given: its client wants no more. Does nothing when there is none.
    async fn stop(&self, request_id: RequestId);
}
