//! What is known of a tensor before the graph runs.

use std::fmt;

use ncn_core::DataType;

use super::super::graph::TensorProto;

/// The type of a tensor's elements in the graph, which is not the one that the engine computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
    F32,
    /// `f16` or `f64`, which the engine computes as `f32`.
    OtherFloat,
    I64,
    I32,
    I8,
    U8,
    Bool,
    /// Something that the engine does not compute with.
    Other,
}

impl Kind {
    /// By the number that ONNX gives it.
    pub(in super::super) const fn of(element: i64) -> Self {
        match element {
            1 => Self::F32,
            2 => Self::U8,
            3 => Self::I8,
            6 => Self::I32,
            7 => Self::I64,
            9 => Self::Bool,
            10 | 11 => Self::OtherFloat,
            _ => Self::Other,
        }
    }

    pub(in super::super) const fn of_data(data_type: DataType) -> Self {
        match data_type {
            DataType::F32 => Self::F32,
            DataType::I64 => Self::I64,
            DataType::I32 => Self::I32,
            DataType::I8 => Self::I8,
            DataType::U8 => Self::U8,
            DataType::Bool => Self::Bool,
            _ => Self::Other,
        }
    }

    /// What a manifest calls it, if the engine computes it as it is.
    pub(in super::super) const fn data_type(self) -> Option<DataType> {
        Some(match self {
            Self::F32 => DataType::F32,
            Self::I64 => DataType::I64,
            Self::I32 => DataType::I32,
            Self::I8 => DataType::I8,
            Self::U8 => DataType::U8,
            Self::Bool => DataType::Bool,
            Self::OtherFloat | Self::Other => return None,
        })
    }

    pub(super) const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::OtherFloat)
    }

    /// All values that the engine can hold for it.
    pub(super) fn range(self) -> (f64, f64) {
        match self {
            Self::F32 | Self::OtherFloat => (f64::NEG_INFINITY, f64::INFINITY),
            Self::I64 | Self::I32 | Self::Other => (f64::from(i32::MIN), f64::from(i32::MAX)),
            Self::I8 => (-128.0, 127.0),
            Self::U8 => (0.0, 255.0),
            Self::Bool => (0.0, 1.0),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.data_type(), self) {
            (Some(known), _) => known.fmt(f),
            (None, Self::OtherFloat) => f.write_str("f16 or f64, which this engine computes as f32"),
            (None, _) => f.write_str("something that this engine does not have"),
        }
    }
}

/// Bounds of a tensor's values and sizes. Integers that matter are below 2^53, so `f64` has them exactly, and rounding does not bring a
/// larger one back below 2^31.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Fact {
    pub(in super::super) kind: Kind,
    pub(in super::super) lo: f64,
    pub(in super::super) hi: f64,
    /// The most that each dimension can be, at least 1 (what has no elements may be given other sizes); none when their number is unknown.
    pub(super) shape: Option<Vec<f64>>,
    /// Whether each dimension is what `shape` says, and not less.
    pub(super) exact: bool,
    /// The most elements, at least 1.
    pub(super) count: f64,
    /// The elements, of a small constant of integers.
    pub(super) ints: Option<Vec<i64>>,
    /// Whether these are sums along a dimension.
    pub(super) sums: bool,
}

/// Constants with more elements of floats are not looked through.
const MOST_FLOATS: usize = 4_096;
const MOST_INTS: usize = 16;

impl Fact {
    pub(super) fn new(kind: Kind, (lo, hi): (f64, f64), shape: Option<Vec<f64>>, count: f64) -> Self {
        let shape = shape.map(|shape| shape.into_iter().map(|size| size.max(1.0)).collect());
        Self { kind, lo, hi, shape, exact: false, count: count.max(1.0), ints: None, sums: false }
    }

    /// Whose sizes are what they are said to be, if `exact`.
    pub(super) fn exactly(self, exact: bool) -> Self {
        Self { exact: exact && self.shape.is_some(), ..self }
    }

    /// The sizes, when they are known.
    pub(super) fn exact_shape(&self) -> Option<&[f64]> {
        self.shape.as_deref().filter(|_| self.exact)
    }

    /// Of these sizes, some of which may be 0.
    pub(super) fn of_sizes(kind: Kind, range: (f64, f64), sizes: Vec<f64>) -> Self {
        let exact = sizes.iter().all(|size| *size >= 1.0);
        Self::of_shape(kind, range, sizes).exactly(exact)
    }

    /// The most that a dimension can be, counted from the end if `axis` is negative.
    pub(super) fn along(&self, axis: i64) -> Option<f64> {
        let shape = self.shape.as_ref()?;
        let at = usize::try_from(axis.unsigned_abs()).ok()?;
        shape.get(if axis < 0 { shape.len().checked_sub(at)? } else { at }).copied()
    }

    /// Anything of this kind, in any shape.
    pub(super) fn any(kind: Kind) -> Self {
        Self::new(kind, kind.range(), None, f64::INFINITY)
    }

    pub(super) fn scalar(kind: Kind, range: (f64, f64)) -> Self {
        Self::new(kind, range, Some(Vec::new()), 1.0).exactly(true)
    }

    pub(super) fn of_shape(kind: Kind, range: (f64, f64), shape: Vec<f64>) -> Self {
        let count = shape.iter().map(|size| size.max(1.0)).product();
        Self::new(kind, range, Some(shape), count)
    }

    /// The largest dimension. A tensor of 2^31 elements a dimension does not fit any worker.
    pub(super) fn dim(&self) -> f64 {
        let most = self.shape.as_ref().map_or(f64::INFINITY, |shape| shape.iter().copied().fold(1.0, f64::max));
        most.min(f64::from(i32::MAX))
    }

    /// False when some of it may not fit 32 bits.
    pub(super) fn fits(&self) -> bool {
        self.kind.is_float() || (self.lo >= f64::from(i32::MIN) && self.hi <= f64::from(i32::MAX))
    }

    /// The largest absolute value.
    pub(super) const fn size(&self) -> f64 {
        self.lo.abs().max(self.hi.abs())
    }

    /// With other values.
    pub(super) fn valued(&self, kind: Kind, range: (f64, f64)) -> Self {
        Self { kind, lo: range.0, hi: range.1, ints: None, ..self.clone() }
    }

    /// With other sizes.
    pub(super) fn shaped(&self, shape: Option<Vec<f64>>, count: f64) -> Self {
        Self { sums: self.sums, ..Self::new(self.kind, (self.lo, self.hi), shape, count) }
    }

    /// What holds for both.
    pub(super) fn join(&self, other: &Self) -> Self {
        let shape = match (&self.shape, &other.shape) {
            (Some(a), Some(b)) if a.len() == b.len() => Some(a.iter().zip(b).map(|(a, b)| a.max(*b)).collect()),
            _ => None,
        };
        let ints = if self.ints == other.ints { self.ints.clone() } else { None };
        let exact = self.exact && other.exact && self.shape == other.shape;
        Self {
            kind: self.kind,
            lo: self.lo.min(other.lo),
            hi: self.hi.max(other.hi),
            shape,
            exact,
            count: self.count.max(other.count),
            ints,
            sums: self.sums || other.sums,
        }
    }

    /// Sizes of both, broadcast.
    pub(super) fn broadcast(&self, other: &Self) -> (Option<Vec<f64>>, f64) {
        let (Some(a), Some(b)) = (&self.shape, &other.shape) else { return (None, f64::INFINITY) };
        let rank = a.len().max(b.len());
        let at = |shape: &[f64], index: usize| (index + shape.len()).checked_sub(rank).and_then(|index| shape.get(index).copied());
        let shape: Vec<f64> = (0..rank).map(|index| at(a, index).unwrap_or(1.0).max(at(b, index).unwrap_or(1.0))).collect();
        let count = shape.iter().product::<f64>().min((self.count * other.count).max(0.0));
        (Some(shape), count)
    }

    /// Of a constant.
    #[allow(clippy::cast_precision_loss, reason = "rounding keeps values outside 32 bits outside")]
    pub(super) fn constant(tensor: &TensorProto) -> Self {
        let kind = Kind::of(tensor.data_type.into());
        let shape: Vec<f64> = tensor.dims.iter().map(|size| (*size).max(0) as f64).collect();
        let whole = Self::of_sizes(kind, kind.range(), shape);
        let raw = tensor.raw_data.as_deref().filter(|raw| !raw.is_empty());
        let ints = match (kind, raw) {
            (Kind::I64, Some(raw)) => raw.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
            (Kind::I64, None) => tensor.int64_data.clone(),
            (Kind::I32, Some(raw)) => raw.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes).into()).collect(),
            (Kind::I32, None) => tensor.int32_data.iter().map(|value| i64::from(*value)).collect(),
            (Kind::F32, _) => return whole.of_floats(tensor),
            _ => return whole,
        };
        whole.of_ints(ints)
    }

    #[allow(clippy::cast_precision_loss, reason = "rounding keeps values outside 32 bits outside")]
    pub(super) fn of_ints(mut self, ints: Vec<i64>) -> Self {
        if let (Some(lo), Some(hi)) = (ints.iter().min(), ints.iter().max()) {
            (self.lo, self.hi) = (*lo as f64, *hi as f64);
        }
        self.ints = (ints.len() <= MOST_INTS).then_some(ints);
        self
    }

    fn of_floats(mut self, tensor: &TensorProto) -> Self {
        let values: Vec<f32> = match tensor.raw_data.as_deref().filter(|raw| !raw.is_empty()) {
            Some(raw) if raw.len() <= MOST_FLOATS * 4 => raw.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            None if tensor.float_data.len() <= MOST_FLOATS => tensor.float_data.clone(),
            _ => return self,
        };
        if !values.is_empty() && values.iter().all(|value| value.is_finite()) {
            let values = || values.iter().map(|value| f64::from(*value));
            (self.lo, self.hi) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        }
        self
    }
}
