//! Named numbers with a type and a shape.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, SeqAccess, Visitor},
};

/// The type of a tensor's elements. All are stored little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
#[non_exhaustive]
pub enum DataType {
    /// One byte, 0 or 1.
    Bool = 1,
    /// Unsigned, 8 bits.
    U8 = 2,
    /// Signed, 8 bits.
    I8 = 3,
    /// Signed, 32 bits.
    I32 = 4,
    /// Signed, 64 bits.
    I64 = 5,
    /// IEEE 754, 32 bits.
    F32 = 6,
}

impl DataType {
    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::I32 | Self::F32 => 4,
            Self::I64 => 8,
        }
    }

    /// The type with this code (its discriminant), as hashes and wires use it.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Bool,
            2 => Self::U8,
            3 => Self::I8,
            4 => Self::I32,
            5 => Self::I64,
            6 => Self::F32,
            _ => return None,
        })
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "bool",
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::F32 => "f32",
        })
    }
}

/// A dense tensor, row-major, little-endian. Its data is shared, not copied, when it is cloned.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct Tensor {
    data_type: DataType,
    shape: Vec<usize>,
    #[serde(with = "crate::serial::bytes")]
    data: Bytes,
}

/// A tensor as it is read, before anyone knows whether its bytes fit its shape.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    data_type: DataType,
    #[serde(deserialize_with = "shape")]
    shape: Vec<usize>,
    #[serde(with = "crate::serial::bytes")]
    data: Bytes,
}

/// No more dimensions than a tensor can have are read: a list of them takes much more memory, and time, than the tensor it would be of.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Dimensions;

    impl<'de> Visitor<'de> for Dimensions {
        type Value = Vec<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a tensor's dimensions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<usize>, A::Error> {
            let mut shape = Vec::new();
            while let Some(dimension) = list.next_element()? {
                if shape.len() >= MAX_RANK {
                    return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
                }
                shape.push(dimension);
            }
            Ok(shape)
        }
    }

    deserializer.deserialize_seq(Dimensions)
}

impl TryFrom<Parts> for Tensor {
    type Error = TensorError;

    fn try_from(parts: Parts) -> Result<Self, TensorError> {
        Self::new(parts.data_type, parts.shape, parts.data)
    }
}

/// Why bytes are no tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// More dimensions than any model has.
    #[error("{0} dimensions, at most {MAX_RANK} are taken")]
    Rank(usize),
    /// Data and shape disagree.
    #[error("a {data_type} tensor of shape {shape:?} takes {} bytes, not {actual}", .expected.map_or_else(|| "too many".into(), |bytes| bytes.to_string()))]
    Size {
        /// The elements' type.
        data_type: DataType,
        /// The stated shape.
        shape: Vec<usize>,
        /// What the shape takes; `None` when it is more than can be addressed.
        expected: Option<usize>,
        /// What is there.
        actual: usize,
    },
    /// The elements have another type than was asked for.
    #[error("the tensor holds {actual}, not {expected}")]
    Type {
        /// What was asked for.
        expected: DataType,
        /// What it is.
        actual: DataType,
    },
}

/// The most dimensions that a tensor can have.
pub const MAX_RANK: usize = 8;

impl Tensor {
    /// A tensor of these bytes; refuses when they do not fit the shape.
    pub fn new(data_type: DataType, shape: Vec<usize>, data: impl Into<Bytes>) -> Result<Self, TensorError> {
        let data = data.into();
        if shape.len() > MAX_RANK {
            return Err(TensorError::Rank(shape.len()));
        }
        let expected = shape.iter().try_fold(data_type.size(), |size, dimension| size.checked_mul(*dimension));
        if expected != Some(data.len()) {
            return Err(TensorError::Size { data_type, shape, expected, actual: data.len() });
        }
        Ok(Self { data_type, shape, data })
    }

    /// A tensor of `f32`s.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self, TensorError> {
        Self::new(DataType::F32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    /// The elements' type.
    pub const fn data_type(&self) -> DataType {
        self.data_type
    }

    /// The size of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, row-major, little-endian.
    pub const fn data(&self) -> &Bytes {
        &self.data
    }

    /// The elements as `f32`s.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        self.elements(DataType::F32, f32::from_le_bytes)
    }

    /// The elements as `i32`s.
    pub fn to_i32(&self) -> Result<Vec<i32>, TensorError> {
        self.elements(DataType::I32, i32::from_le_bytes)
    }

    /// The elements as `i64`s.
    pub fn to_i64(&self) -> Result<Vec<i64>, TensorError> {
        self.elements(DataType::I64, i64::from_le_bytes)
    }

    fn elements<T, const N: usize>(&self, expected: DataType, read: fn([u8; N]) -> T) -> Result<Vec<T>, TensorError> {
        if self.data_type != expected {
            return Err(TensorError::Type { expected, actual: self.data_type });
        }
        let (chunks, _) = self.data.as_chunks::<N>();
        Ok(chunks.iter().map(|chunk| read(*chunk)).collect())
    }
}

/// Without the data, which may be large.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.data_type, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_dimensions_are_read_than_there_can_be() {
        let read = |rank: usize| {
            let shape = vec!["1"; rank].join(",");
            serde_json::from_str::<Tensor>(&format!("{{\"data_type\":\"u8\",\"shape\":[{shape}],\"data\":\"AQ==\"}}"))
        };
        assert_eq!(read(MAX_RANK).unwrap().shape().len(), MAX_RANK);
        // The rest is not even looked at.
        let refused = read(1_000).unwrap_err();
        assert!(refused.to_string().contains("more than 8 dimensions") && refused.column() < 100, "{refused}");
    }

    #[test]
    fn lying_shapes_are_refused() {
        assert!(Tensor::new(DataType::F32, vec![2, 2], vec![0; 16]).is_ok());
        for shape in [vec![2, 3], vec![], vec![usize::MAX, 2], vec![0, 4], vec![1; MAX_RANK + 1]] {
            assert!(Tensor::new(DataType::F32, shape.clone(), vec![0; 16]).is_err(), "{shape:?}");
        }
        assert!(Tensor::new(DataType::I64, vec![0, 4], Vec::new()).is_ok());
    }

    #[test]
    fn elements_come_back() {
        let tensor = Tensor::from_f32(vec![3], &[1.5, -2.0, 0.25]).unwrap();
        assert_eq!(tensor.to_f32().unwrap(), [1.5, -2.0, 0.25]);
        assert!(tensor.to_i64().is_err());
    }
}
