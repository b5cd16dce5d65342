//! Between the core's types and the messages on the wire. What arrives is checked field by field; an error names the field.

mod answer;
#[cfg(feature = "grpc")]
pub mod codec;
pub mod entries;
mod gateway;
#[cfg(feature = "json")]
pub mod json;
mod p2p;
pub mod proto;
mod receipt;
mod registry;
#[cfg(feature = "grpc")]
mod status;
mod types;

pub use answer::decode_answer;
use ncn_core::{Address, Amount, B256, RegistryError, Signature, TransportError, compute::MAX_OUTPUT_BYTES};
pub use p2p::decode;
use prost::bytes::Bytes;
#[cfg(feature = "grpc")]
pub use status::{RemoteError, from_status, to_status};
pub use types::{chunk_from_proto, values_from_proto, values_to_proto};

/// The most bytes of a message with a batch, inputs or an output.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// The most bytes that one message of a worker may have: an output, and what is said around it.
pub const MAX_ANSWER_BYTES: usize = MAX_OUTPUT_BYTES + (64 << 10);
/// The most bytes of a file's media type: type and subtype have at most 127 each (RFC 6838).
pub const MAX_MEDIA_TYPE_BYTES: usize = 255;
/// The most bytes of a subnet's configuration: [`MembershipLimits::default`](ncn_core::membership::MembershipLimits) allows 1,024 models with names of
/// 256 bytes. As many as have to approve it, up to 256, come besides: see [`MAX_SMALL_MESSAGE_BYTES`].
pub const MAX_SUBNET_BYTES: usize = 512 << 10;
/// The most bytes of a model's description, which has its manifest in it.
pub const MAX_MODEL_BYTES: usize = ncn_core::model::MAX_MANIFEST_BYTES + MAX_SMALL_MESSAGE_BYTES;
/// The most bytes of any other message; a node's record with 1,024 models and a certificate of 256 validators are the longest.
pub const MAX_SMALL_MESSAGE_BYTES: usize = 64 << 10;
/// The version of what a compute node and its workers say to each other.
pub const WORKER_VERSION: u32 = 1;

/// A message that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct WireError {
    /// Which field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl WireError {
    /// A field that makes no sense.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

impl From<WireError> for TransportError {
    fn from(error: WireError) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<WireError> for RegistryError {
    fn from(error: WireError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// The field's value, which protobuf lets a sender leave out.
pub fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::new(field, "is missing"))
}

/// 32 bytes.
pub fn hash(field: &'static str, bytes: &[u8]) -> Result<B256, WireError> {
    B256::try_from(bytes).map_err(|_| WireError::new(field, format!("has {} bytes, a hash has 32", bytes.len())))
}

/// 20 bytes.
pub fn address(field: &'static str, bytes: &[u8]) -> Result<Address, WireError> {
    Address::try_from(bytes).map_err(|_| WireError::new(field, format!("has {} bytes, an address has 20", bytes.len())))
}

/// A canonical signature.
pub fn signature(field: &'static str, bytes: &[u8]) -> Result<Signature, WireError> {
    Signature::try_from(bytes).map_err(|error| WireError::new(field, error.to_string()))
}

/// An amount from its bytes.
pub fn amount(field: &'static str, bytes: &[u8]) -> Result<Amount, WireError> {
    let array = bytes.try_into().map_err(|_| WireError::new(field, format!("has {} bytes, an amount has 16", bytes.len())))?;
    Ok(Amount::new(u128::from_be_bytes(array)))
}

fn small<T: TryFrom<u32>>(field: &'static str, number: u32) -> Result<T, WireError> {
    T::try_from(number).map_err(|_| WireError::new(field, format!("{number} is too large")))
}

/// A hash, address or signature as bytes.
pub fn bytes(value: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(value.as_ref())
}

/// An amount as bytes.
pub fn amount_bytes(amount: Amount) -> Bytes {
    bytes(amount.units().to_be_bytes())
}
