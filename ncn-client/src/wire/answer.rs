//! What a worker says: a process that may be in the hands of the model that it runs.

use ncn_core::tensor::MAX_RANK;
use prost::{
    DecodeError, Message as _,
    bytes::Bytes,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

use super::{MAX_ANSWER_BYTES, MAX_VALUES, WireError};
use crate::proto::FromWorker;

/// The numbers of the fields that repeat, and of those around them, in `worker.proto` and `types.proto`.
const CHUNK: u32 = 4;
const VALUES: u32 = 1;
const TENSOR: u32 = 2;
const SHAPE: u32 = 2;
/// The most bytes of a number.
const VARINT_BYTES: usize = 10;

/// A worker's message. What repeats in it is counted before anything is made of it: two bytes of a message can become a hundred in
/// memory.
///
/// # Errors
/// It is longer than [`MAX_ANSWER_BYTES`], has more than [`MAX_VALUES`] values, or is malformed.
pub fn decode_answer(frame: Bytes) -> Result<FromWorker, WireError> {
    if frame.len() > MAX_ANSWER_BYTES {
        return Err(malformed(format!("has {} bytes, at most {MAX_ANSWER_BYTES} are taken", frame.len())));
    }
    let mut values = 0;
    each(
        &frame,
        |field, chunk| if field == CHUNK { each(chunk, |field, value| count(field, value, &mut values)) } else { Ok(()) },
    )?;
    FromWorker::decode(frame).map_err(|error| malformed(error.to_string()))
}

fn malformed(problem: String) -> WireError {
    WireError::new("answer", problem)
}

/// Counts a field of a chunk.
fn count(field: u32, value: &[u8], values: &mut usize) -> Result<(), WireError> {
    if field != VALUES {
        return Ok(());
    }
    *values += 1;
    if *values > MAX_VALUES {
        return Err(WireError::new("values", format!("are more than {MAX_VALUES}")));
    }
    let mut shape = 0;
    let mut in_tensor = |field: u32, dimensions: &[u8]| {
        // One by one, a dimension has no content here.
        shape += if field == SHAPE { dimensions.len().max(1) } else { 0 };
        if shape > MAX_RANK * VARINT_BYTES {
            Err(WireError::new("tensor.shape", format!("has more than {MAX_RANK} dimensions")))
        } else {
            Ok(())
        }
    };
    each(value, |field, tensor| if field == TENSOR { each(tensor, &mut in_tensor) } else { Ok(()) })
}

/// Looks at each field of a message: its number, and its content if that has a length.
fn each(mut message: &[u8], mut look: impl FnMut(u32, &[u8]) -> Result<(), WireError>) -> Result<(), WireError> {
    let wrong = |error: DecodeError| malformed(error.to_string());
    while !message.is_empty() {
        let (field, wire_type) = decode_key(&mut message).map_err(wrong)?;
        let mut content = &[][..];
        if wire_type == WireType::LengthDelimited {
            let length = decode_varint(&mut message).map_err(wrong)?;
            let split = usize::try_from(length).ok().and_then(|length| message.split_at_checked(length));
            (content, message) = split.ok_or_else(|| malformed("breaks off".into()))?;
        } else {
            skip_field(wire_type, field, &mut message, DecodeContext::default()).map_err(wrong)?;
        }
        look(field, content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ncn_core::{DataType, OutputChunk, Tensor, Usage, Value, Values};

    use super::*;
    use crate::proto::{self, from_worker, named_value};

    fn frame(message: from_worker::Message) -> Bytes {
        FromWorker { id: 7, message: Some(message) }.encode_to_vec().into()
    }

    fn chunk(values: Vec<proto::NamedValue>) -> Bytes {
        frame(from_worker::Message::Chunk(proto::OutputChunk { values, usage: None }))
    }

    #[test]
    fn honest_answers_are_read() {
        let tensor = Tensor::new(DataType::U8, vec![1, 0, usize::MAX, 1, 1, 1, 1, 1], Vec::new()).unwrap();
        let file = Value::File { media_type: "text/plain".into(), data: (&b"x"[..]).into() };
        let values = Values::from([("tensor", tensor.into()), ("text", "x".into()), ("file", file)]);
        let usage = Some(Usage { input_units: 1, output_units: u64::MAX, duration_micros: 3 });
        let part = OutputChunk { values, usage };
        for message in [
            from_worker::Message::Ready(proto::Ready { version: 1 }),
            from_worker::Message::Done(proto::Empty {}),
            from_worker::Message::Error("no".into()),
            from_worker::Message::Chunk(part.into()),
        ] {
            let read = decode_answer(frame(message.clone())).unwrap();
            assert_eq!((read.id, read.message), (7, Some(message)));
        }
    }

    #[test]
    fn what_would_become_large_is_refused() {
        let nothing = proto::NamedValue::default();
        assert!(decode_answer(chunk(vec![nothing.clone(); MAX_VALUES])).is_ok());
        assert_eq!(decode_answer(chunk(vec![nothing; MAX_VALUES + 1])).unwrap_err().field, "values");
        let tensor = proto::Tensor { shape: vec![1; MAX_RANK * VARINT_BYTES + 1], ..proto::Tensor::default() };
        let value = Some(named_value::Value::Tensor(tensor));
        assert_eq!(decode_answer(chunk(vec![proto::NamedValue { value, name: "x".into() }])).unwrap_err().field, "tensor.shape");
        assert!(decode_answer(frame(from_worker::Message::Error("x".repeat(MAX_ANSWER_BYTES)))).is_err());
        for garbage in [&b"\xff\xff"[..], b"\x22\x05\x0a", b"\x22\x02\x0a\x09", b"\x23\x23\x23"] {
            assert!(decode_answer(Bytes::from_static(garbage)).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn no_message_is_longer_than_its_values_are_counted() {
        let tensor = |rank: usize| Tensor::new(DataType::U8, [vec![usize::MAX; rank], vec![0]].concat(), Vec::new()).unwrap();
        let file = |bytes: usize| Value::File { media_type: "x".repeat(bytes), data: vec![0; bytes].into() };
        for bytes in [0, 1, 127, 128, 1 << 20] {
            let name = "n".repeat(bytes);
            for value in [tensor(0).into(), tensor(7).into(), Value::Text("x".repeat(bytes)), file(bytes)] {
                let values = Values::from([(name.as_str(), value)]);
                let (size, named) = (values.size(), super::super::values_to_proto(values));
                let encoded = proto::OutputChunk { values: named, usage: None }.encoded_len();
                assert!(encoded <= size, "{encoded} bytes are counted as {size}");
            }
        }
    }
}
