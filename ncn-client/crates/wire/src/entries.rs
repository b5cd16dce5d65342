//! The memory that the entries of a message take, counted before it is decoded.
//!
//! Protobuf lets a peer send an empty entry of a repeated field in two bytes, for which the receiver allocates a whole struct of up
//! to 800 bytes. [`check_entries`] counts the memory of such entries before prost allocates any of it, and refuses a message whose
//! entries take much more than the message is long. So the length of a message, which the transport bounds, bounds what it takes in
//! memory.

use prost::{
    DecodeError,
    encoding::{WireType, decode_key, decode_varint},
};

use crate::WireError;

/// The most bytes of entries that one byte of a message may lead to. Full batches and records lead to 1.1 at most.
const ENTRY_BYTES_PER_BYTE: usize = 2;
/// The bytes of entries that every message may have, however short it is: those of `MAX_OUTPUT_VALUES` short values.
const FREE_ENTRY_BYTES: usize = 128 << 10;

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

#[cfg(test)]
mod tests;
