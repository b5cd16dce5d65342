//! From the bytes of any file to a tensor.

use crate::{DataType, Tensor};

/// No model looks at more bytes of a file; keeps a manifest from asking for absurd buffers.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// The first `begin` bytes and the last `end` bytes of a file, without white space around it; see
/// [`super::Preprocessing::Bytes`].
pub(super) fn to_tensor(data: &[u8], begin: usize, end: usize, block: usize, padding: i32) -> Result<Tensor, String> {
    let head = data.get(..block).unwrap_or(data);
    let head = head.get(head.iter().take_while(|byte| is_space(**byte)).count()..).unwrap_or_default();
    let head = head.get(..begin).unwrap_or(head);
    let tail = data.get(data.len().saturating_sub(block)..).unwrap_or(data);
    let kept = tail.len() - tail.iter().rev().take_while(|byte| is_space(**byte)).count();
    let tail = tail.get(..kept).unwrap_or_default();
    let tail = tail.get(tail.len().saturating_sub(end)..).unwrap_or(tail);

    let missing = begin + end - head.len() - tail.len();
    let numbers = head.iter().map(|byte| i32::from(*byte)).chain(std::iter::repeat_n(padding, missing));
    let numbers = numbers.chain(tail.iter().map(|byte| i32::from(*byte)));
    let data: Vec<u8> = numbers.flat_map(i32::to_le_bytes).collect();
    Tensor::new(DataType::I32, vec![1, begin + end], data).map_err(|error| error.to_string())
}

/// What Python's `bytes.strip` takes for white space.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(data: &[u8]) -> Vec<i32> {
        to_tensor(data, 3, 2, 6, 256).unwrap().to_i32().unwrap()
    }

    #[test]
    fn beginning_and_end_without_white_space() {
        assert_eq!(row(b" \n abcdefghi \t"), [97, 98, 99, 104, 105]);
        assert_eq!(row(b"ab"), [97, 98, 256, 97, 98], "a short file's end is its beginning too");
        assert_eq!(row(b"a"), [97, 256, 256, 256, 97]);
        assert_eq!(row(b""), [256; 5]);
        assert_eq!(row(b"      abc      "), [256; 5], "only so much of the file is looked at");
    }
}
