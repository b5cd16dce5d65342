//! What is said over HTTP and WebSocket beside the core's own types, which have one form in JSON.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ncn_core::{
    Address, Amount, B256, ModelInfo, NetworkInfo, PaymentConfirmation, RequestId, Signature, Signed, Submission, TaskCapability,
    TaskStatus, Ticket, TransportError, Update,
};
use serde::{Deserialize, Serialize};

use crate::{MAX_MESSAGE_BYTES, MAX_SMALL_MESSAGE_BYTES};

/// The most bytes of an order, or of an answer with an output: both have values in base64.
pub const MAX_JSON_BYTES: usize = MAX_MESSAGE_BYTES / 3 * 4 + MAX_SMALL_MESSAGE_BYTES;
/// Where orders go, and below which they are found.
pub const INFERENCE: &str = "/api/v1/inference";

/// An error as the body of an answer. `error` is what clients of ours read; the others are for people and their own programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What [`ncn_core::ErrorKind`] it is.
    pub kind: String,
    /// What is wrong, and what to do.
    pub message: String,
    /// Whether the same call may succeed on another try.
    pub retryable: bool,
    /// The error itself; none where nothing is at a path.
    pub error: Option<TransportError>,
}

impl From<TransportError> for Problem {
    fn from(error: TransportError) -> Self {
        Self { kind: error.kind().to_string(), message: error.to_string(), retryable: error.is_retryable(), error: Some(error) }
    }
}

/// How many tickets are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketRequest {
    /// At most [`ncn_core::transport::MAX_TICKETS`].
    pub count: u32,
}

/// A channel that is to be closed; its client is that of the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseChannel {
    /// Its gateway.
    pub gateway: Address,
    /// What makes it another one than the others of these two.
    pub salt: B256,
}

/// The gateway's agreement to a channel's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelClosing {
    /// What was settled.
    pub settled: Amount,
    /// Its signature.
    pub signature: Signature,
}

/// What a client says over WebSocket, as a text: a call, and a number by which its answers are told from those of other calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Of the client's choosing. Not that of a call that is still open.
    pub id: u64,
    /// What is asked.
    pub call: Call,
}

/// A call over WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "each is the call of its name of ncn_core::Transport")]
pub enum Call {
    Tickets(TicketRequest),
    Submit(Box<Submission>),
    ConfirmPayment(PaymentConfirmation),
    Status(RequestId),
    Cancel(Signed<TaskCapability>),
    Models,
    Network,
    CloseChannel {
        channel: CloseChannel,
        access: Signed<TaskCapability>,
    },
    /// Answered with `done`, with updates until the last one, and then with an end.
    Updates {
        access: Signed<TaskCapability>,
        from: u64,
    },
    /// Ends the updates that were asked for with this number. Has no answer.
    Leave(u64),
}

/// What a gateway says over WebSocket, as a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// To which call; none when the call could not be read.
    pub id: Option<u64>,
    /// Its answer, or one of them.
    pub answer: Answer,
}

/// The answer to a call over WebSocket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// To [`Call::Tickets`].
    Tickets(Vec<Ticket>),
    /// To [`Call::Submit`] and [`Call::Status`].
    Status(Box<TaskStatus>),
    /// What was asked is done, or begins.
    Done,
    /// To [`Call::Models`].
    Models(Vec<ModelInfo>),
    /// To [`Call::Network`].
    Network(Box<NetworkInfo>),
    /// To [`Call::CloseChannel`].
    Closing(Box<ChannelClosing>),
    /// One of those to [`Call::Updates`].
    Update(Box<Update>),
    /// There are no more updates.
    End,
    /// The call failed. There is no further answer to it.
    Error(Problem),
}

/// An access as it stands in a header or a URL: its JSON in base64 for URLs, without padding (RFC 4648, section 5).
pub fn access_text(access: &Signed<TaskCapability>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(access).unwrap_or_default())
}

/// Reads it again.
///
/// # Errors
/// Why it is none.
pub fn read_access(text: &str) -> Result<Signed<TaskCapability>, String> {
    let json = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|error| format!("is no base64 for URLs: {error}"))?;
    serde_json::from_slice(&json).map_err(|error| format!("is no signed access: {error}"))
}
