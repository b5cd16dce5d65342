//! Small ONNX graphs, written as protocol buffers. Field numbers: `onnx.proto3`.

pub(crate) const FLOAT: u64 = 1;
pub(crate) const UINT8: u64 = 2;
pub(crate) const INT64: u64 = 7;
pub(crate) const BOOL: u64 = 9;
pub(crate) const FLOAT16: u64 = 10;
pub(crate) const DOUBLE: u64 = 11;

fn number(tag: u64, value: u64) -> Vec<u8> {
    [varint(tag << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

fn field(tag: u64, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [varint(tag << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// A value with a type and sizes, of which those of 0 are open.
pub(crate) fn value(name: &str, element: u64, sizes: &[u64]) -> Vec<u8> {
    let size = |size: &u64| field(1, if *size == 0 { field(2, "n") } else { number(1, *size) });
    let shape: Vec<u8> = sizes.iter().flat_map(size).collect();
    [field(1, name), field(2, field(1, [number(1, element), field(2, shape)].concat()))].concat()
}

/// A constant of integers, in one dimension, or in none.
pub(crate) fn integers(name: &str, sizes: &[u64], values: &[i64]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let sizes: Vec<u8> = sizes.iter().flat_map(|size| number(1, *size)).collect();
    [sizes, number(2, INT64), field(8, name), field(9, raw)].concat()
}

/// A constant of floats.
pub(crate) fn floats(name: &str, sizes: &[u64], values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let sizes: Vec<u8> = sizes.iter().flat_map(|size| number(1, *size)).collect();
    [sizes, number(2, FLOAT), field(8, name), field(9, raw)].concat()
}

/// An operator with attributes.
pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes: Vec<u8> = inputs.iter().flat_map(|name| field(1, name)).collect();
    bytes.extend(outputs.iter().flat_map(|name| field(2, name)));
    bytes.extend([field(3, outputs[0]), field(4, op)].concat());
    bytes.extend(attributes.iter().flat_map(|attribute| field(5, attribute)));
    bytes
}

/// An attribute that is a number.
pub(crate) fn integer(name: &str, value: u64) -> Vec<u8> {
    [field(1, name), number(3, value), number(20, 2)].concat()
}

/// An attribute that is a text.
pub(crate) fn text(name: &str, value: &str) -> Vec<u8> {
    [field(1, name), field(4, value), number(20, 3)].concat()
}

/// An attribute that is a constant.
pub(crate) fn constant(name: &str, tensor: &[u8]) -> Vec<u8> {
    [field(1, name), field(5, tensor), number(20, 4)].concat()
}

/// An attribute that is a list of numbers.
pub(crate) fn numbers(name: &str, values: &[u64]) -> Vec<u8> {
    let values: Vec<u8> = values.iter().flat_map(|value| number(8, *value)).collect();
    [field(1, name).as_slice(), &values, &number(20, 7)].concat()
}

/// An attribute that is a graph.
pub(crate) fn body(name: &str, graph: &[u8]) -> Vec<u8> {
    [field(1, name), field(6, graph), number(20, 5)].concat()
}

pub(crate) fn graph(nodes: &[Vec<u8>], constants: &[Vec<u8>], inputs: &[Vec<u8>], outputs: &[Vec<u8>]) -> Vec<u8> {
    let all = |tag: u64, parts: &[Vec<u8>]| parts.iter().flat_map(|part| field(tag, part)).collect::<Vec<u8>>();
    [all(1, nodes), field(2, "graph"), all(5, constants), all(11, inputs), all(12, outputs)].concat()
}

/// A file, of the operators as they were in version 17.
pub(crate) fn model(graph: &[u8]) -> Vec<u8> {
    model_of(graph, 17)
}

/// A file, of the operators as they were in a version.
pub(crate) fn model_of(graph: &[u8], opset: u64) -> Vec<u8> {
    [number(1, 8), field(7, graph), field(8, number(2, opset))].concat()
}
