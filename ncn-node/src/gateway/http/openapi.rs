//! The calls over HTTP as an OpenAPI document, for those who have no code of ours. Its types say what JSON the core's own types are; that they do is
//! tested with what a gateway answers.
#![allow(dead_code, clippy::large_enum_variant, reason = "they are described, and never made")]

use std::collections::BTreeMap;

use utoipa::{
    IntoResponses, Modify, OpenApi, ToSchema,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

/// A hash, or an id of 32 bytes.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^0x[0-9a-fA-F]{64}$", examples("0x000000006b0d2b5ff58ccd0679f7875dda9597d6455d7561bf2e7664f5d2ec50"))]
pub(super) struct Hash(String);

/// An Ethereum address.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^0x[0-9a-fA-F]{40}$")]
pub(super) struct Address(String);

/// A signature by secp256k1: r, s and v.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^0x[0-9a-fA-F]{130}$")]
pub(super) struct Signature(String);

/// An amount in base units: 10^18 are one token.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^(0|[1-9][0-9]{0,38})$")]
pub(super) struct Amount(String);

/// Bytes in base64.
#[derive(ToSchema)]
#[schema(value_type = String, content_encoding = "base64")]
pub(super) struct Base64(String);

/// One input or output.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum ModelValue {
    /// Text, such as a prompt or a label.
    Text(String),
    /// A file, such as an image.
    File {
        /// For example `image/png`.
        media_type: String,
        data: Base64,
    },
    /// Numbers, little-endian.
    Tensor {
        /// Such as `f32`, `i64`, `u8` or `bool`.
        data_type: String,
        shape: Vec<u64>,
        data: Base64,
    },
}

/// An order. It is signed as typed data (EIP-712); docs/protocol.md says over what.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[serde(deny_unknown_fields)]
pub(super) struct InferenceRequest {
    client: Address,
    subnet: Hash,
    model_digest: Hash,
    /// Of the inputs.
    input_hash: Hash,
    /// The model's parameters, as a JSON object.
    parameters: String,
    /// The most that the client pays.
    max_price: Amount,
    /// In seconds since 1970.
    deadline: u64,
    nonce: Hash,
    /// Of the ticket.
    draw: Hash,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignedRequest {
    message: InferenceRequest,
    signature: Signature,
}

/// An order with its inputs.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    request: SignedRequest,
    inputs: BTreeMap<String, ModelValue>,
    /// The id of the ticket that the order's draw is of.
    ticket: Hash,
}

/// An order in parts: its JSON, with the rest of the inputs in it; and each other part is an input, by its name.
#[derive(ToSchema)]
pub(super) struct SubmissionInParts {
    submission: Submission,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TicketRequest {
    #[schema(minimum = 1, maximum = 64)]
    count: u32,
}

/// What an order's committee is drawn with.
#[derive(ToSchema)]
pub(super) struct Ticket {
    id: Hash,
    draw: Hash,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum State {
    Reserving,
    Preprocessing,
    AwaitingPayment,
    Executing,
    Completing,
    Settling,
    Refunding,
    Ended(Outcome),
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum Outcome {
    Completed,
    Refunded,
    Refused,
    Cancelled,
    Expired,
}

#[derive(ToSchema)]
pub(super) struct Rate {
    /// Such as `row` or `token`.
    unit: String,
    price: Amount,
}

#[derive(ToSchema)]
pub(super) struct Price {
    base: Amount,
    input: Rate,
    output: Rate,
}

#[derive(ToSchema)]
pub(super) struct Units {
    input: u64,
    output: u64,
}

#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) struct FeeSplit {
    gateway_bps: u32,
    validators_bps: u32,
    treasury_bps: u32,
}

/// What a request costs at most, and who does what for it: what is paid.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) struct Quote {
    request_id: Hash,
    client: Address,
    gateway: Address,
    compute: Address,
    model_digest: Hash,
    price: Price,
    max_units: Units,
    total: Amount,
    split: FeeSplit,
    /// In seconds since 1970.
    expiry: u64,
    /// The hash of the network.
    trust_root: Hash,
    epoch: u64,
    salt: Hash,
    committee: Hash,
}

/// A validator's approval.
#[derive(ToSchema)]
pub(super) struct Approval {
    validator: Address,
    signature: Signature,
}

/// Where a request is.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) struct TaskStatus {
    request_id: Hash,
    state: State,
    /// What is to be paid, once the validators have approved it.
    quote: Option<Quote>,
    /// Their approvals of the quote.
    preprocessing: Option<Vec<Approval>>,
    /// Why it failed, when it did.
    failure: Option<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Channel {
    client: Address,
    gateway: Address,
    salt: Hash,
}

#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[serde(deny_unknown_fields)]
pub(super) struct Voucher {
    channel: Hash,
    request_id: Hash,
    quote: Hash,
    committee: Hash,
    number: u64,
    amount: Amount,
    cumulative: Amount,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignedVoucher {
    terms: Channel,
    voucher: Voucher,
    signature: Signature,
}

/// What the gateway brings to the chain, or keeps until it settles.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) enum PaymentAuthorization {
    /// A transfer into escrow (ERC-3009).
    Transfer(Signature),
    Voucher(SignedVoucher),
}

/// How a quote is paid.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) enum PaymentSubmission {
    /// The transaction that has escrowed it.
    Transaction(Hash),
    Authorization(PaymentAuthorization),
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CloseChannel {
    gateway: Address,
    salt: Hash,
}

#[derive(ToSchema)]
pub(super) struct ChannelClosing {
    settled: Amount,
    signature: Signature,
}

/// What a request gave, and the proof of it. docs/protocol.md says how a receipt is verified.
#[derive(ToSchema)]
pub(super) struct Delivery {
    output: BTreeMap<String, ModelValue>,
    #[schema(value_type = Object)]
    receipt: (),
}

#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) struct ModelInfo {
    /// The manifest, as text; the digest is of these bytes.
    model: String,
    subnet: Hash,
    price: Price,
    /// The least time from an order to its deadline.
    least_timeout_micros: u64,
    /// What requests took lately, on average.
    typical_units: Option<Units>,
}

#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) struct Domain {
    chain_id: u64,
    contract: Address,
}

#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) struct TrustRoot {
    domain: Domain,
    token: Address,
    channels: Address,
    validators: Vec<Address>,
    threshold: u32,
    committee_size: u32,
    treasury: Address,
}

#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) struct NetworkInfo {
    gateway: Address,
    trust_root: TrustRoot,
    model_sources: Vec<String>,
    least_relayed: Amount,
}

/// What is wrong.
#[derive(ToSchema)]
pub(super) struct Problem {
    /// `invalid`, `denied`, `unknown`, `refused`, `busy`, `unavailable` or `internal`.
    kind: String,
    /// What is wrong, and what to do.
    message: String,
    /// Whether the same call may succeed on another try.
    retryable: bool,
    /// The error, for programs.
    #[schema(value_type = Option<serde_json::Value>)]
    error: (),
}

/// What every call may answer.
#[derive(IntoResponses)]
pub(super) enum Failures {
    /// The call can never succeed as it is.
    #[response(status = 400)]
    Invalid(Problem),
    /// Too many calls: come again after `Retry-After` seconds.
    #[response(status = 429)]
    Busy(Problem),
    /// The gateway has failed.
    #[response(status = 500)]
    Internal(Problem),
    /// Somebody whom the gateway needs cannot be reached.
    #[response(status = 503)]
    Unavailable(Problem),
}

/// What calls about a request may answer besides.
#[derive(IntoResponses)]
pub(super) enum OfRequest {
    /// It is another client's.
    #[response(status = 403)]
    Denied(Problem),
    /// This gateway does not know it.
    #[response(status = 404)]
    Unknown(Problem),
    /// It is not in a state for that.
    #[response(status = 409)]
    Refused(Problem),
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "NCN gateway",
        description = "Submit a signed order, pay its quote, follow it, and verify the receipt. Hashes, addresses and signatures are hexadecimal, amounts are \
            base units as strings, bytes are base64. The same calls go over a WebSocket at `/ws`, and over gRPC at the same address."
    ),
    components(schemas(Problem, ModelValue)),
    modifiers(&Bearer)
)]
pub(super) struct Document;

/// What the client has signed.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A signed `TaskCapability`: its JSON in base64 for URLs, without padding. In a URL it is `?access=`"))
            .build();
        document.components.get_or_insert_default().add_security_scheme("access", SecurityScheme::Http(scheme));
    }
}
