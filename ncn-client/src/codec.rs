//! The codec of all gRPC calls, at servers and at clients.
//!
//! Protobuf lets a peer send an empty entry of a repeated field in two bytes, for which the receiver allocates a whole struct of up
//! to 800 bytes. [`BoundedCodec`] counts the memory of such entries before prost allocates any of it, and refuses a message whose
//! entries take much more than the message is long. So the length of a message, which the transport bounds, bounds what it takes in
//! memory.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::{
    DecodeError, Message,
    encoding::{WireType, decode_key, decode_varint},
};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::wire::WireError;

/// The most bytes of entries that one byte of a message may lead to. Full batches and records lead to 1.1 at most.
const ENTRY_BYTES_PER_BYTE: usize = 2;
/// The bytes of entries that every message may have, however short it is: those of `MAX_OUTPUT_VALUES` short values.
const FREE_ENTRY_BYTES: usize = 128 << 10;
/// The bytes of unknown or repeated singular fields that every message may have. A decoded message shares its bytes with the
/// received one, so it holds the memory of those fields too.
const FREE_UNKNOWN_BYTES: usize = 4 << 10;

/// A message whose fields with entries are known. `cargo xtask codegen` implements it for every message of `proto/`.
pub trait Described {
    /// The repeated fields, and those that lead to repeated fields.
    const FIELDS: &'static [Field];
}

/// A field of a message that is repeated, or is itself a message.
#[derive(Debug)]
pub struct Field {
    number: u32,
    /// The bytes that each entry takes in memory, beside its contents; none if the field is not repeated.
    entry: usize,
    /// All entries may come in one field, as numbers do.
    packed: bool,
    fields: &'static [Field],
}

impl Field {
    /// One message.
    pub const fn message<M: Described>(number: u32) -> Self {
        Self { number, entry: 0, packed: false, fields: M::FIELDS }
    }

    /// A list of messages.
    pub const fn messages<M: Described>(number: u32) -> Self {
        Self { number, entry: size_of::<M>(), packed: false, fields: M::FIELDS }
    }

    /// A list of texts or byte strings.
    pub const fn values<T>(number: u32) -> Self {
        Self { number, entry: size_of::<T>(), packed: false, fields: &[] }
    }

    /// A list of numbers.
    pub const fn numbers<T>(number: u32) -> Self {
        Self { number, entry: size_of::<T>(), packed: true, fields: &[] }
    }
}

/// Checks, before a message is decoded, that its entries take no more memory than its length allows.
///
/// # Errors
/// The message is not protobuf, or its entries take more memory.
pub fn check_entries<M: Described>(message: &[u8]) -> Result<(), WireError> {
    let mut left = message.len().saturating_mul(ENTRY_BYTES_PER_BYTE).saturating_add(FREE_ENTRY_BYTES);
    walk(message, M::FIELDS, &mut left)
}

/// Subtracts what the entries take from what is left. The recursion ends, since no message of `proto/` contains its own type.
fn walk(mut message: &[u8], fields: &[Field], left: &mut usize) -> Result<(), WireError> {
    // Whatever this function cannot read, it refuses: prost never gets to see bytes that were not counted.
    let malformed = |error: DecodeError| WireError::new("message", error.to_string());
    while !message.is_empty() {
        let (number, wire_type) = decode_key(&mut message).map_err(malformed)?;
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(&mut message).map_err(malformed)?;
                0
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => decode_varint(&mut message).map_err(malformed)?,
            WireType::StartGroup | WireType::EndGroup => return Err(WireError::new("message", "has a group: leave it out")),
        };
        let content = usize::try_from(length).ok().and_then(|length| message.split_at_checked(length));
        let (content, rest) = content.ok_or_else(|| WireError::new("message", "is truncated"))?;
        message = rest;
        let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
        let entries = if field.packed && wire_type == WireType::LengthDelimited {
            // The last byte of each number has no continuation bit.
            content.iter().filter(|byte| **byte < 0x80).count()
        } else {
            1
        };
        *left = left
            .checked_sub(entries.saturating_mul(field.entry))
            .ok_or_else(|| WireError::new("message", "has too many entries for its length: send fewer empty ones"))?;
        if !field.fields.is_empty() {
            walk(content, field.fields, left)?;
        }
    }
    Ok(())
}

/// Prost's codec, with [`check_entries`] before a message is decoded.
#[derive(Clone, Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Described + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstDecoder::default())
    }
}

/// The decoder of [`BoundedCodec`].
#[derive(Clone, Debug)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + Described> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let (length, message) = (buffer.remaining(), buffer.chunk());
        if message.len() != length {
            return Err(Status::internal("message: is not in one piece"));
        }
        // Internal is gRPC's code for what cannot be decoded.
        check_entries::<U>(message).map_err(|error| Status::internal(error.to_string()))?;
        let message = self.0.decode(buffer)?;
        let known = message.as_ref().map_or(0, Message::encoded_len);
        if length > known.saturating_mul(2).saturating_add(FREE_UNKNOWN_BYTES) {
            return Err(Status::internal("message: most of it is of unknown or repeated fields: leave them out"));
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests;
