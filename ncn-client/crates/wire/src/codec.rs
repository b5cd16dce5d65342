//! The codec of all gRPC calls, at servers and at clients.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::entries::{Described, check_entries};

/// The bytes of unknown or repeated singular fields that every message may have. A decoded message shares its bytes with the
/// received one, so it holds the memory of those fields too.
const FREE_UNKNOWN_BYTES: usize = 4 << 10;

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
