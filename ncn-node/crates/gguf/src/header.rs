//! Reading a GGUF file's header. Nothing in it is believed: every count and offset is held against the bytes that are there before
//! anything is allocated or read, and what is kept are references into those bytes.

use std::collections::HashMap;

use candle_core::quantized::GgmlDType;

use crate::GgufError;

/// More than any model has.
const MAX_FIELDS: u64 = 4096;
/// More than any model has.
const MAX_TENSORS: u64 = 65_536;
/// How long a field's or a tensor's name may be.
const MAX_NAME_BYTES: usize = 256;
/// How many dimensions a tensor may have.
const MAX_DIMENSIONS: u32 = 4;

/// What a GGUF file says about itself, and its tensors' bytes.
pub(crate) struct Header<'a> {
    fields: HashMap<&'a str, Field<'a>>,
    tensors: HashMap<&'a str, TensorBytes<'a>>,
}

/// The value of a field. Integers of all widths are one kind, and so are floats.
#[derive(Clone, Copy)]
enum Field<'a> {
    Integer(i128),
    Float(f64),
    Flag(bool),
    Text(&'a str),
    List(List<'a>),
}

/// A list's elements, still as bytes.
#[derive(Clone, Copy)]
struct List<'a> {
    kind: u32,
    count: usize,
    bytes: &'a [u8],
}

/// A tensor's type, shape and bytes, which fit each other.
pub(crate) struct TensorBytes<'a> {
    /// How its elements are stored.
    pub(crate) kind: GgmlDType,
    /// How many rows it has: the product of all dimensions but the first.
    pub(crate) rows: usize,
    /// How many elements a row has.
    pub(crate) columns: usize,
    /// The elements.
    pub(crate) bytes: &'a [u8],
}

/// Into how many files a model is split.
const SPLIT: &str = "split.count";

impl<'a> Header<'a> {
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, GgufError> {
        let mut reader = Reader { file, at: 0 };
        if reader.take(4)? != b"GGUF" {
            return Err(GgufError::Header("does not start with GGUF: name a GGUF file".into()));
        }
        let version = reader.u32()?;
        if (2..=3).contains(&version.swap_bytes()) {
            return Err(GgufError::Header("is big-endian: convert the model for little-endian machines".into()));
        }
        if !(2..=3).contains(&version) {
            return Err(GgufError::Header(format!("version {version}: convert it to version 3")));
        }
        let (tensors, fields) = (reader.u64()?, reader.u64()?);
        if tensors > MAX_TENSORS || fields > MAX_FIELDS {
            return Err(GgufError::Header(format!(
                "names {tensors} tensors and {fields} fields, at most {MAX_TENSORS} and {MAX_FIELDS} are read"
            )));
        }
        let mut header = Header { fields: HashMap::new(), tensors: HashMap::new() };
        for _ in 0..fields {
            let name = reader.name()?;
            let kind = reader.u32()?;
            let value = reader.field(name, kind)?;
            if header.fields.insert(name, value).is_some() {
                return Err(GgufError::field(name, "is there twice"));
            }
        }
        if let Some(parts) = header.optional(SPLIT, Header::count)?.filter(|parts| *parts > 1) {
            return Err(GgufError::field(SPLIT, format!("is {parts}: join the parts, as by `llama-gguf-split --merge`")));
        }
        let mut places = Vec::new();
        for _ in 0..tensors {
            places.push((reader.name()?, reader.place()?));
        }
        let alignment = header.optional("general.alignment", Header::count)?.unwrap_or(32);
        if !alignment.is_power_of_two() {
            return Err(GgufError::field("general.alignment", "has to be a power of two"));
        }
        let start = reader.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        let data = file.get(start..).unwrap_or_default();
        let mut left = data.len();
        for (name, place) in places {
            let tensor = place.within(data).map_err(|problem| GgufError::Tensor { name: name.into(), problem })?;
            // Tensors that share bytes would make a small file take any amount of memory.
            let rest = left.checked_sub(tensor.bytes.len());
            left = rest.ok_or_else(|| GgufError::tensor(name, "shares bytes with another tensor"))?;
            if header.tensors.insert(name, tensor).is_some() {
                return Err(GgufError::tensor(name, "is there twice"));
            }
        }
        Ok(header)
    }

    fn field(&self, name: &str) -> Result<Field<'a>, GgufError> {
        self.fields.get(name).copied().ok_or_else(|| GgufError::field(name, "is missing"))
    }

    /// `None` when there is no such field; what `read` makes of it otherwise.
    pub(crate) fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&Self, &str) -> Result<T, GgufError>,
    ) -> Result<Option<T>, GgufError> {
        self.fields.contains_key(name).then(|| read(self, name)).transpose()
    }

    pub(crate) fn count(&self, name: &str) -> Result<usize, GgufError> {
        match self.field(name)? {
            Field::Integer(value) => {
                usize::try_from(value).map_err(|_| GgufError::field(name, format!("is {value}, which is no count")))
            }
            _ => Err(GgufError::field(name, "has to be an integer")),
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "what is stored as f32 comes back as it was")]
    pub(crate) fn float(&self, name: &str) -> Result<f32, GgufError> {
        match self.field(name)? {
            Field::Float(value) if value.is_finite() => Ok(value as f32),
            _ => Err(GgufError::field(name, "has to be a finite float")),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, GgufError> {
        match self.field(name)? {
            Field::Flag(value) => Ok(value),
            _ => Err(GgufError::field(name, "has to be true or false")),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<&'a str, GgufError> {
        match self.field(name)? {
            Field::Text(value) => Ok(value),
            _ => Err(GgufError::field(name, "has to be a text")),
        }
    }

    pub(crate) fn texts(&self, name: &str) -> Result<Vec<&'a str>, GgufError> {
        let Field::List(List { kind: kind::TEXT, count, bytes }) = self.field(name)? else {
            return Err(GgufError::field(name, "has to be a list of texts"));
        };
        let mut reader = Reader { file: bytes, at: 0 };
        (0..count).map(|_| reader.text()).collect()
    }

    /// A list of 32-bit integers, signed or not.
    pub(crate) fn integers(&self, name: &str) -> Result<Vec<i32>, GgufError> {
        match self.field(name)? {
            Field::List(List { kind: kind::I32 | kind::U32, bytes, .. }) => {
                Ok(bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect())
            }
            _ => Err(GgufError::field(name, "has to be a list of 32-bit integers")),
        }
    }

    /// The tensor, when there is one of this name.
    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorBytes<'a>> {
        self.tensors.get(name)
    }

    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &'a str> {
        self.tensors.keys().copied()
    }
}

/// Where a tensor says that it is.
struct Place {
    kind: u32,
    columns: u64,
    rows: u64,
    offset: u64,
}

impl Place {
    fn within(self, data: &[u8]) -> Result<TensorBytes<'_>, String> {
        let kind = element_kind(self.kind).ok_or_else(|| match other_kind(self.kind) {
            Some(name) => format!("its elements are {name}, which this engine does not run: quantize the model to Q4_K_M or Q8_0, or serve it with another engine"),
            None => format!("its elements are of the unknown type {}", self.kind),
        })?;
        let (block, size) = (kind.block_size() as u64, kind.type_size() as u64);
        if self.columns == 0 || self.rows == 0 || !self.columns.is_multiple_of(block) {
            return Err(format!("its rows of {} elements are no whole blocks of {block}", self.columns));
        }
        let bytes = (self.columns / block).checked_mul(size).and_then(|row| row.checked_mul(self.rows));
        let range = bytes.and_then(|bytes| {
            let end = self.offset.checked_add(bytes)?;
            Some(usize::try_from(self.offset).ok()?..usize::try_from(end).ok()?)
        });
        let bytes = range.and_then(|range| data.get(range)).ok_or("lies outside the file: fetch it again")?;
        let size = |count: u64| usize::try_from(count).map_err(|_| "is too large".to_owned());
        Ok(TensorBytes { kind, rows: size(self.rows)?, columns: size(self.columns)?, bytes })
    }
}

/// The format's numbers for types of elements.
fn element_kind(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

/// The names of types of elements that only other engines run.
fn other_kind(number: u32) -> Option<&'static str> {
    Some(match number {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}

/// The format's numbers for types of fields.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const FLAG: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const LIST: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

/// Reads from the start of a file to its end, and never past it.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(count);
        let bytes = end.and_then(|end| self.file.get(self.at..end));
        let bytes =
            bytes.ok_or_else(|| GgufError::Header(format!("ends within its header, at byte {}: fetch it again", self.at)))?;
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<&'a str, GgufError> {
        let length = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let at = self.at;
        std::str::from_utf8(self.take(length)?).map_err(|_| GgufError::Header(format!("the text at byte {at} is not UTF-8")))
    }

    fn name(&mut self) -> Result<&'a str, GgufError> {
        let name = self.text()?;
        if name.len() > MAX_NAME_BYTES {
            return Err(GgufError::Header(format!("has a name of {} bytes, at most {MAX_NAME_BYTES} are read", name.len())));
        }
        Ok(name)
    }

    fn field(&mut self, name: &str, kind: u32) -> Result<Field<'a>, GgufError> {
        Ok(match kind {
            kind::U8 => Field::Integer(u8::from_le_bytes(self.array()?).into()),
            kind::I8 => Field::Integer(i8::from_le_bytes(self.array()?).into()),
            kind::U16 => Field::Integer(u16::from_le_bytes(self.array()?).into()),
            kind::I16 => Field::Integer(i16::from_le_bytes(self.array()?).into()),
            kind::U32 => Field::Integer(self.u32()?.into()),
            kind::I32 => Field::Integer(i32::from_le_bytes(self.array()?).into()),
            kind::U64 => Field::Integer(self.u64()?.into()),
            kind::I64 => Field::Integer(i64::from_le_bytes(self.array()?).into()),
            kind::F32 => Field::Float(f32::from_le_bytes(self.array()?).into()),
            kind::F64 => Field::Float(f64::from_le_bytes(self.array()?)),
            kind::FLAG => Field::Flag(self.array::<1>()? != [0]),
            kind::TEXT => Field::Text(self.text()?),
            kind::LIST => Field::List(self.list(name)?),
            other => return Err(GgufError::field(name, format!("is of the unknown type {other}"))),
        })
    }

    fn list(&mut self, name: &str) -> Result<List<'a>, GgufError> {
        let kind = self.u32()?;
        let count = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let size = match kind {
            kind::U8 | kind::I8 | kind::FLAG => 1,
            kind::U16 | kind::I16 => 2,
            kind::U32 | kind::I32 | kind::F32 => 4,
            kind::U64 | kind::I64 | kind::F64 => 8,
            kind::TEXT => {
                let start = self.at;
                // Ends at the file's end at the latest, whatever the count says: each text takes 8 bytes or more.
                for _ in 0..count {
                    self.text()?;
                }
                return Ok(List { kind, count, bytes: self.file.get(start..self.at).unwrap_or_default() });
            }
            other => return Err(GgufError::field(name, format!("is a list of the type {other}, which is not read"))),
        };
        let bytes = self.take(count.saturating_mul(size))?;
        Ok(List { kind, count, bytes })
    }

    fn place(&mut self) -> Result<Place, GgufError> {
        let dimensions = self.u32()?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err(GgufError::Header(format!("has a tensor of {dimensions} dimensions, at most {MAX_DIMENSIONS} are read")));
        }
        let columns = self.u64()?;
        let mut rows = 1_u64;
        for _ in 1..dimensions {
            // A product that does not fit is larger than any file: it is refused as lying outside of it.
            rows = rows.saturating_mul(self.u64()?);
        }
        Ok(Place { kind: self.u32()?, columns, rows, offset: self.u64()? })
    }
}
