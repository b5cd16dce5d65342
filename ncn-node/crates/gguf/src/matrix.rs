//! A model's weights: matrices of 8-bit blocks, whatever the file stores, so that one kernel serves every file.

use std::borrow::Cow;

use candle_core::{CpuStorage, quantized::GgmlDType};
use rayon::prelude::*;

use crate::{
    GgufError,
    header::{Header, TensorBytes},
    kernel::{self, BLOCK, Rows},
};

/// How many weights are unpacked at once while loading: what is in memory beside file and result.
const UNPACKED: usize = 1 << 20;
/// How many products are worth handing to another thread.
const WORTH_SHARING: usize = 1 << 16;

/// A matrix that vectors are multiplied with.
#[derive(Default)]
pub(crate) struct Matrix {
    columns: usize,
    values: Vec<[i8; BLOCK]>,
    scales: Vec<f32>,
}

impl Matrix {
    /// The tensors of these names, each of `columns` elements a row and of its number of rows, one below the other.
    pub(crate) fn load(header: &Header<'_>, columns: usize, parts: &[(&str, usize)]) -> Result<Self, GgufError> {
        let mut matrix = Self { columns, ..Self::default() };
        for &(name, rows) in parts {
            let refuse = |problem: String| GgufError::Tensor { name: name.into(), problem };
            let tensor = find(header, name, rows, columns)?;
            if !columns.is_multiple_of(BLOCK) {
                return Err(refuse(format!("has rows of {columns} elements: this engine runs multiples of {BLOCK}")));
            }
            let blocks = rows.saturating_mul(columns) / BLOCK;
            let reserved = matrix.values.try_reserve_exact(blocks).and_then(|()| matrix.scales.try_reserve_exact(blocks));
            reserved.map_err(|_| refuse("there is no memory for it: allow the model more".into()))?;
            for bytes in tensor.bytes.chunks(UNPACKED / tensor.kind.block_size() * tensor.kind.type_size()) {
                kernel::pack(&unpack(tensor.kind, bytes).map_err(refuse)?, &mut matrix.values, &mut matrix.scales);
            }
        }
        Ok(matrix)
    }

    fn rows(&self) -> Rows<'_> {
        Rows { width: self.columns / BLOCK, values: &self.values, scales: &self.scales }
    }

    /// Writes a row out.
    pub(crate) fn row(&self, row: usize, into: &mut [f32]) {
        let width = self.columns / BLOCK;
        let blocks = row * width..(row + 1) * width;
        let values = self.values.get(blocks.clone()).unwrap_or_default();
        let scales = self.scales.get(blocks).unwrap_or_default();
        for (into, (values, scale)) in into.chunks_exact_mut(BLOCK).zip(values.iter().zip(scales)) {
            for (into, value) in into.iter_mut().zip(values) {
                *into = f32::from(*value) * scale;
            }
        }
    }

    /// How much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice()) + size_of_val(self.scales.as_slice())
    }

    /// Multiplies with each of several vectors, one after the other in `vectors`. The products are written likewise.
    ///
    /// Each product is one sum over one row, in one order: threads share the rows and nothing else, so that their number does not show
    /// in the result.
    pub(crate) fn multiply(&self, vectors: &[f32], into: &mut Vec<f32>) {
        let (width, count) = (self.columns / BLOCK, vectors.len() / self.columns);
        let mut packed = Self { columns: self.columns, ..Self::default() };
        kernel::pack(vectors, &mut packed.values, &mut packed.scales);
        let rows = self.scales.len() / width;
        into.clear();
        into.resize(rows * count, 0.0);
        let together = (WORTH_SHARING / (self.columns * count)).max(1);
        let blocks = self.values.par_chunks(together * width).zip(self.scales.par_chunks(together * width));
        into.par_chunks_mut(together * count).zip(blocks).for_each(|(products, (values, scales))| {
            kernel::multiply(Rows { width, values, scales }, packed.rows(), products);
        });
        if count > 1 {
            let by_row = std::mem::replace(into, Vec::with_capacity(rows * count));
            for vector in 0..count {
                into.extend(by_row.iter().skip(vector).step_by(count));
            }
        }
    }
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
