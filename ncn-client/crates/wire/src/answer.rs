//! What a worker says: a process that may be in the hands of the model that it runs.

use prost::{Message as _, bytes::Bytes};

use crate::{MAX_ANSWER_BYTES, WireError, entries::check_entries, proto::FromWorker};

/// A worker's message. What repeats in it is counted before anything is made of it: two bytes of a message can become a hundred in
/// memory.
///
/// # Errors
/// It is longer than [`MAX_ANSWER_BYTES`], has more entries than its length allows, or is malformed.
pub fn decode_answer(frame: Bytes) -> Result<FromWorker, WireError> {
    if frame.len() > MAX_ANSWER_BYTES {
        let problem = format!("has {} bytes, at most {MAX_ANSWER_BYTES} are taken", frame.len());
        return Err(WireError::new("answer", problem));
    }
    check_entries::<FromWorker>(&frame)?;
    FromWorker::decode(frame).map_err(|error| WireError::new("answer", error.to_string()))
}

#[cfg(test)]
mod tests {
    use ncn_core::{DataType, OutputChunk, Tensor, Usage, Value, Values, compute::MAX_OUTPUT_VALUES, tensor::MAX_RANK};

    use super::*;
    use crate::proto::{self, from_worker, named_value};

    fn frame(message: from_worker::Message) -> Bytes {
        FromWorker { id: 7, message: Some(message) }.encode_to_vec().into()
    }

    fn chunk(values: Vec<proto::NamedValue>) -> Bytes {
        frame(from_worker::Message::Chunk(proto::OutputChunk { values, ..proto::OutputChunk::default() }))
    }

    #[test]
    fn honest_answers_are_read() {
        let tensor = Tensor::new(DataType::U8, vec![1, 0, usize::MAX, 1, 1, 1, 1, 1], Vec::new()).unwrap();
        let file = Value::File { media_type: "text/plain".into(), data: (&b"x"[..]).into() };
        let values = Values::from([("tensor", tensor.into()), ("text", "x".into()), ("file", file)]);
        let part = OutputChunk::last(values, Usage { input_units: 1, output_units: u64::MAX, duration_micros: 3 });
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
        let short = proto::NamedValue { name: "x".into(), value: Some(named_value::Value::Text("y".into())) };
        assert!(decode_answer(chunk(vec![short; MAX_OUTPUT_VALUES])).is_ok());
        let refused = decode_answer(chunk(vec![proto::NamedValue::default(); 1 << 16])).unwrap_err().to_string();
        assert!(refused.contains("too many entries"), "{refused}");
        let tensor = proto::Tensor { shape: vec![1; 1 << 20], ..proto::Tensor::default() };
        let value = Some(named_value::Value::Tensor(tensor));
        assert!(decode_answer(chunk(vec![proto::NamedValue { value, name: "x".into() }])).is_err());
        assert!(decode_answer(frame(from_worker::Message::Error("x".repeat(MAX_ANSWER_BYTES)))).is_err());
        for garbage in [&b"\xff\xff"[..], b"\x22\x05\x0a", b"\x22\x02\x0a\x09", b"\x23\x23\x23"] {
            assert!(decode_answer(Bytes::from_static(garbage)).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn no_message_is_longer_than_its_values_are_counted() {
        let tensor = |rank: usize| Tensor::new(DataType::U8, [vec![1; rank], vec![0]].concat(), Vec::new()).unwrap();
        let file = |bytes: usize| Value::File { media_type: "x".repeat(bytes), data: vec![0; bytes].into() };
        for bytes in [0, 1, 127, 128, 1 << 20] {
            let name = "n".repeat(bytes);
            for value in [tensor(0).into(), tensor(MAX_RANK - 1).into(), Value::Text("x".repeat(bytes)), file(bytes)] {
                let values = Values::from([(name.as_str(), value)]);
                let (size, named) = (values.size(), super::super::values_to_proto(values));
                let encoded = proto::OutputChunk { values: named, ..proto::OutputChunk::default() }.encoded_len();
                assert!(encoded <= size, "{encoded} bytes are counted as {size}");
            }
        }
    }
}
