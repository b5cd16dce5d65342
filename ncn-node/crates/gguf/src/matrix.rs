//! A model's weights: matrices of floats as the file has them, and of 8-bit blocks for every kind of quantized ones, so that one kernel serves all of these.

use std::borrow::Cow;

use candle_core::{CpuStorage, quantized::GgmlDType};
use rayon::prelude::*;

use crate::{
    GgufError,
    floats::{self, BF16, F16, Weight},
    header::{Header, TensorBytes},
    kernel::{self, BLOCK, Rows},
};

/// How many weights are unpacked at once while loading: what is in memory beside file and result.
const UNPACKED: usize = 1 << 20;
/// How many products are worth handing to another thread.
const WORTH_SHARING: usize = 1 << 16;

/// A matrix that vectors are multiplied with.
pub(crate) struct Matrix {
    columns: usize,
    /// One below the other.
    parts: Vec<Part>,
}

/// Some rows of one kind.
enum Part {
    Blocks(Blocks),
    F32(Vec<f32>),
    F16(Vec<F16>),
    BF16(Vec<BF16>),
}

/// Weights, or vectors, in blocks of 8-bit numbers.
#[derive(Default)]
struct Blocks {
    values: Vec<[i8; BLOCK]>,
    scales: Vec<f32>,
}

impl Blocks {
    fn rows(&self, width: usize) -> Rows<'_> {
        Rows { width, values: &self.values, scales: &self.scales }
    }
}

impl Matrix {
    /// The tensors of these names, each of `columns` elements a row and of its number of rows, one below the other.
    pub(crate) fn load(header: &Header<'_>, columns: usize, parts: &[(&str, usize)]) -> Result<Self, GgufError> {
        let load = |&(name, rows): &(&str, usize)| {
            let refuse = |problem: String| GgufError::Tensor { name: name.into(), problem };
            let tensor = find(header, name, rows, columns)?;
            if !columns.is_multiple_of(BLOCK) {
                return Err(refuse(format!("has rows of {columns} elements: this engine runs multiples of {BLOCK}")));
            }
            Part::load(tensor, rows.saturating_mul(columns)).map_err(refuse)
        };
        Ok(Self { columns, parts: parts.iter().map(load).collect::<Result<_, _>>()? })
    }

    /// Writes a row out.
    pub(crate) fn row(&self, mut row: usize, into: &mut [f32]) {
        for part in &self.parts {
            let rows = part.rows(self.columns);
            if row < rows {
                return part.row(row, self.columns, into);
            }
            row -= rows;
        }
    }

    /// How much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }

    /// Multiplies with each of several vectors, one after the other in `vectors`. The products are written likewise.
    ///
    /// Each product is one sum over one row, in one order: threads share the rows and nothing else, so that their number does not show
    /// in the result.
    pub(crate) fn multiply(&self, vectors: &[f32], into: &mut Vec<f32>) {
        let count = vectors.len() / self.columns;
        let mut packed = Blocks::default();
        if self.parts.iter().any(|part| matches!(part, Part::Blocks(_))) {
            kernel::pack(vectors, &mut packed.values, &mut packed.scales);
        }
        let rows: usize = self.parts.iter().map(|part| part.rows(self.columns)).sum();
        into.clear();
        into.resize(rows * count, 0.0);
        let mut rest = into.as_mut_slice();
        for part in &self.parts {
            let (products, after) = rest.split_at_mut(part.rows(self.columns) * count);
            part.multiply(self.columns, vectors, &packed, products);
            rest = after;
        }
        if count > 1 {
            let by_row = std::mem::replace(into, Vec::with_capacity(rows * count));
            for vector in 0..count {
                into.extend(by_row.iter().skip(vector).step_by(count));
            }
        }
    }
}

impl Part {
    /// Floats stay what they are; all else becomes blocks.
    fn load(tensor: &TensorBytes<'_>, elements: usize) -> Result<Self, String> {
        Ok(match tensor.kind {
            GgmlDType::F32 => Self::F32(elements_of(tensor.bytes, elements, f32::from_le_bytes)?),
            GgmlDType::F16 => Self::F16(elements_of(tensor.bytes, elements, |bytes| F16(u16::from_le_bytes(bytes)))?),
            GgmlDType::BF16 => Self::BF16(elements_of(tensor.bytes, elements, |bytes| BF16(u16::from_le_bytes(bytes)))?),
            kind => {
                let (mut blocks, count) = (Blocks::default(), elements / BLOCK);
                let reserved = blocks.values.try_reserve_exact(count).and_then(|()| blocks.scales.try_reserve_exact(count));
                reserved.map_err(no_memory)?;
                for bytes in tensor.bytes.chunks(UNPACKED / kind.block_size() * kind.type_size()) {
                    kernel::pack(&unpack(kind, bytes)?, &mut blocks.values, &mut blocks.scales);
                }
                Self::Blocks(blocks)
            }
        })
    }

    fn rows(&self, columns: usize) -> usize {
        match self {
            Self::Blocks(blocks) => blocks.scales.len() / (columns / BLOCK),
            Self::F32(weights) => weights.len() / columns,
            Self::F16(weights) => weights.len() / columns,
            Self::BF16(weights) => weights.len() / columns,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Blocks(blocks) => size_of_val(blocks.values.as_slice()) + size_of_val(blocks.scales.as_slice()),
            Self::F32(weights) => size_of_val(weights.as_slice()),
            Self::F16(weights) => size_of_val(weights.as_slice()),
            Self::BF16(weights) => size_of_val(weights.as_slice()),
        }
    }

    fn row(&self, row: usize, columns: usize, into: &mut [f32]) {
        match self {
            Self::Blocks(blocks) => {
                let width = columns / BLOCK;
                let all = row * width..(row + 1) * width;
                let values = blocks.values.get(all.clone()).unwrap_or_default();
                let scales = blocks.scales.get(all).unwrap_or_default();
                for (into, (values, scale)) in into.chunks_exact_mut(BLOCK).zip(values.iter().zip(scales)) {
                    for (into, value) in into.iter_mut().zip(values) {
                        *into = f32::from(*value) * scale;
                    }
                }
            }
            Self::F32(weights) => copy(weights, row, columns, into),
            Self::F16(weights) => copy(weights, row, columns, into),
            Self::BF16(weights) => copy(weights, row, columns, into),
        }
    }

    fn multiply(&self, columns: usize, vectors: &[f32], packed: &Blocks, products: &mut [f32]) {
        let width = columns / BLOCK;
        let count = vectors.len() / columns;
        let together = (WORTH_SHARING / (columns * count)).max(1);
        match self {
            Self::Blocks(Blocks { values, scales }) => {
                let blocks = values.par_chunks(together * width).zip(scales.par_chunks(together * width));
                products.par_chunks_mut(together * count).zip(blocks).for_each(|(products, (values, scales))| {
                    kernel::multiply(Rows { width, values, scales }, packed.rows(width), products);
                });
            }
            Self::F32(weights) => multiply_floats(weights, columns, vectors, together, products),
            Self::F16(weights) => multiply_floats(weights, columns, vectors, together, products),
            Self::BF16(weights) => multiply_floats(weights, columns, vectors, together, products),
        }
    }
}

fn multiply_floats<W: Weight>(weights: &[W], columns: usize, vectors: &[f32], together: usize, products: &mut [f32]) {
    let count = vectors.len() / columns;
    let rows = weights.par_chunks(together * columns);
    products.par_chunks_mut(together * count).zip(rows).for_each(|(products, rows)| {
        floats::multiply(rows, vectors, columns, products);
    });
}

fn copy<W: Weight>(weights: &[W], row: usize, columns: usize, into: &mut [f32]) {
    let weights = weights.get(row * columns..(row + 1) * columns).unwrap_or_default();
    for (into, weight) in into.iter_mut().zip(weights) {
        *into = weight.to_f32();
    }
}

/// A tensor's elements as they are in the file.
fn elements_of<W: Weight, const SIZE: usize>(bytes: &[u8], elements: usize, read: fn([u8; SIZE]) -> W) -> Result<Vec<W>, String> {
    let mut weights = Vec::new();
    weights.try_reserve_exact(elements).map_err(no_memory)?;
    weights.extend(bytes.as_chunks::<SIZE>().0.iter().map(|bytes| read(*bytes)));
    if weights.iter().all(|weight| weight.is_finite()) { Ok(weights) } else { Err("holds what is no number".into()) }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn no_memory(_: std::collections::TryReserveError) -> String {
    "there is no memory for it: allow the model more".into()
}

/// A vector of weights.
pub(crate) fn vector(header: &Header<'_>, name: &str, length: usize) -> Result<Vec<f32>, GgufError> {
    let tensor = find(header, name, 1, length)?;
    unpack(tensor.kind, tensor.bytes).map_err(|problem| GgufError::tensor(name, problem))
}

fn find<'h, 'a>(header: &'h Header<'a>, name: &str, rows: usize, columns: usize) -> Result<&'h TensorBytes<'a>, GgufError> {
    let tensor = header.tensor(name).ok_or_else(|| GgufError::tensor(name, "is missing"))?;
    if (tensor.rows, tensor.columns) == (rows, columns) {
        Ok(tensor)
    } else {
        let (have, wide) = (tensor.rows, tensor.columns);
        Err(GgufError::tensor(
            name,
            format!("has {have} rows of {wide} elements; by the model's numbers it has {rows} of {columns}"),
        ))
    }
}

fn unpack(kind: GgmlDType, bytes: &[u8]) -> Result<Vec<f32>, String> {
    let count = bytes.len() / kind.type_size() * kind.block_size();
    // The copy lies where blocks may lie; the file's bytes need not.
    let unpacked = kind.from_data(Cow::Owned(bytes.to_vec())).dequantize(count).map_err(|error| error.to_string())?;
    match unpacked {
        CpuStorage::F32(weights) if weights.iter().all(|weight| weight.is_finite()) => Ok(weights),
        _ => Err("holds what is no number".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Floats are computed with as they are: what the sums say, but for the last digits.
    #[test]
    fn floats_lose_nothing() {
        const COLUMNS: usize = 64;
        let numbers: Vec<f32> = (0..192_u16).map(|n| (f32::from(n) * 0.7).sin() * 3.0).collect();
        let vectors: Vec<f32> = (0..320_u16).map(|n| (f32::from(n) * 0.3).cos()).collect();
        let bf16 = |x: f32| u16::try_from(x.to_bits() >> 16).unwrap();
        let f16 = |x: f32| half::f16::from_f32(x).to_bits();
        let bytes = |of: &dyn Fn(f32) -> Vec<u8>| numbers.iter().flat_map(|x| of(*x)).collect::<Vec<u8>>();
        let kinds = [
            (GgmlDType::F32, bytes(&|x| x.to_le_bytes().to_vec())),
            (GgmlDType::F16, bytes(&|x| f16(x).to_le_bytes().to_vec())),
            (GgmlDType::BF16, bytes(&|x| bf16(x).to_le_bytes().to_vec())),
        ];
        for (kind, bytes) in &kinds {
            let stored = unpack(*kind, bytes).unwrap();
            let tensor = TensorBytes { kind: *kind, rows: 3, columns: COLUMNS, bytes };
            let part = || Part::load(&tensor, numbers.len()).unwrap();
            let matrix = Matrix { columns: COLUMNS, parts: vec![part(), part()] };
            let mut products = Vec::new();
            matrix.multiply(&vectors, &mut products);
            for (vector, products) in vectors.chunks(COLUMNS).zip(products.chunks(6)) {
                for (row, product) in products.iter().enumerate() {
                    let weights = stored[row % 3 * COLUMNS..].iter().zip(vector);
                    let sum: f64 = weights.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    assert!((f64::from(*product) - sum).abs() < 1e-4, "{kind:?}: {product} is not {sum}");
                }
            }
            let mut row = vec![0.0; COLUMNS];
            matrix.row(4, &mut row);
            assert_eq!(row, stored[COLUMNS..2 * COLUMNS], "{kind:?}");
        }
        let bytes = f32::INFINITY.to_le_bytes().repeat(COLUMNS);
        assert!(Part::load(&TensorBytes { kind: GgmlDType::F32, rows: 1, columns: COLUMNS, bytes: &bytes }, COLUMNS).is_err());
    }
}
