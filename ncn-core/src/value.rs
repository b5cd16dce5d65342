//! What goes into a model and what comes out of it: named values.

use std::{collections::BTreeMap, fmt};

use alloy_primitives::B256;
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{DataType, Tensor, compute::MAX_OUTPUT_VALUES};

/// What each of [`Values`] takes beside its name and content: its place in the map, and the allocations' own bookkeeping. It is more
/// than any wire format adds to a value, so that values of a given size fit a message of that size.
pub const VALUE_OVERHEAD: usize = 128;

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Value {
    /// Numbers.
    Tensor(Tensor),
    /// Text, such as a prompt or a label.
    Text(String),
    /// A file, such as an image, in the form that its media type names.
    File {
        /// For example `image/png`.
        media_type: String,
        /// The file's bytes.
        #[serde(with = "crate::serial::bytes")]
        data: Bytes,
    },
}

impl Value {
    /// A PNG image.
    pub fn png(data: impl Into<Bytes>) -> Self {
        Self::File { media_type: "image/png".into(), data: data.into() }
    }

    /// The text, when this is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The tensor, when this is one.
    pub const fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// How many bytes it refers to: everything of it that has no fixed size.
    pub fn size(&self) -> usize {
        match self {
            Self::Tensor(tensor) => tensor.data().len() + size_of_val(tensor.shape()),
            Self::Text(text) => text.len(),
            Self::File { media_type, data } => media_type.len() + data.len(),
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// Named values, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Values(BTreeMap<String, Value>);

/// At most [`MAX_OUTPUT_VALUES`] are read, each name once: empty values take much more memory than they have in a message.
impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Named;

        impl<'de> Visitor<'de> for Named {
            type Value = Values;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("named values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Values, A::Error> {
                let mut values = Values::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if values.len() >= MAX_OUTPUT_VALUES {
                        return Err(A::Error::custom(format!("has more than {MAX_OUTPUT_VALUES} values")));
                    }
                    if values.insert(name, value).is_some() {
                        return Err(A::Error::custom("has two values of one name"));
                    }
                }
                Ok(values)
            }
        }

        deserializer.deserialize_map(Named)
    }
}

impl Values {
    /// No values.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value with this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// The text with this name.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_text()
    }

    /// Adds a value; one of the same name is replaced and returned.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        self.0.insert(name.into(), value.into())
    }

    /// Adds a later part of an output: a text is added to the end of the text with its name, any other value replaces the one with its
    /// name.
    pub fn append(&mut self, part: Self) {
        for (name, value) in part {
            match (self.0.get_mut(&name), value) {
                (Some(Value::Text(text)), Value::Text(more)) => text.push_str(&more),
                (_, value) => drop(self.0.insert(name, value)),
            }
        }
    }

    /// The first of these values, all parts of an output so far, that is not what `whole` begins with: a text that its text does not
    /// begin with, or any other value that it has otherwise. With `replaceable`, other values need only be there: a later part may
    /// have replaced them.
    pub fn misfit<'a>(&'a self, whole: &Self, replaceable: bool) -> Option<&'a str> {
        let fits = |(name, value): &(&str, &Value)| match (*value, whole.get(name)) {
            (Value::Text(begun), Some(Value::Text(text))) => text.starts_with(begun.as_str()),
            (value, Some(given)) => replaceable || value == given,
            (_, None) => false,
        };
        self.iter().find(|item| !fits(item)).map(|(name, _)| name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes they take: names, contents, and [`VALUE_OVERHEAD`] for each. No encoding of them on a wire is longer.
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| VALUE_OVERHEAD + name.len() + value.size()).sum()
    }

    /// How many bytes their contents have: of a text its UTF-8, of a tensor its elements, of a file its data. Names, shapes and media
    /// types do not count.
    pub fn content_bytes(&self) -> u64 {
        let content = |value: &Value| match value {
            Value::Tensor(tensor) => tensor.data().len(),
            Value::Text(text) => text.len(),
            Value::File { data, .. } => data.len(),
        };
        self.0.values().map(|value| content(value) as u64).sum()
    }

    /// SHA-256 of the values' one canonical encoding: `ncn.values.v1`, the count, and for each value, by name, its name, a tag and
    /// its parts. Every variable part is preceded by its length, every integer is a little-endian u64, so no two sets of values
    /// share an encoding. Hashed as it is made: payloads are not copied.
    pub fn hash(&self) -> B256 {
        let mut hasher = Sha256::new();
        let number = |hasher: &mut Sha256, n: usize| hasher.update((n as u64).to_le_bytes());
        let part = |hasher: &mut Sha256, bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        hasher.update(b"ncn.values.v1");
        number(&mut hasher, self.0.len());
        for (name, value) in &self.0 {
            part(&mut hasher, name.as_bytes());
            match value {
                Value::Tensor(tensor) => {
                    hasher.update([1, tensor.data_type() as u8]);
                    number(&mut hasher, tensor.shape().len());
                    for dimension in tensor.shape() {
                        number(&mut hasher, *dimension);
                    }
                    part(&mut hasher, tensor.data());
                }
                Value::Text(text) => {
                    hasher.update([2]);
                    part(&mut hasher, text.as_bytes());
                }
                Value::File { media_type, data } => {
                    hasher.update([3]);
                    part(&mut hasher, media_type.as_bytes());
                    part(&mut hasher, data);
                }
            }
        }
        B256::new(hasher.finalize().into())
    }

    /// As JSON, for people and scripts: texts as strings, tensors as `{dtype, shape, data}`, files as `{media_type, bytes}`.
    pub fn to_json(&self) -> serde_json::Value {
        let value = |value: &Value| match value {
            Value::Text(text) => json!(text),
            Value::File { media_type, data } => json!({ "media_type": media_type, "bytes": data.len() }),
            Value::Tensor(tensor) => {
                json!({ "dtype": tensor.data_type(), "shape": tensor.shape(), "data": elements(tensor) })
            }
        };
        self.0.iter().map(|(name, item)| (name.clone(), value(item))).collect::<serde_json::Map<_, _>>().into()
    }
}

fn elements(tensor: &Tensor) -> serde_json::Value {
    match tensor.data_type() {
        DataType::F32 => json!(tensor.to_f32().unwrap_or_default()),
        DataType::I32 => json!(tensor.to_i32().unwrap_or_default()),
        DataType::I64 => json!(tensor.to_i64().unwrap_or_default()),
        DataType::I8 => json!(tensor.data().iter().map(|byte| byte.cast_signed()).collect::<Vec<_>>()),
        DataType::Bool | DataType::U8 => json!(tensor.data().to_vec()),
    }
}

impl<N: Into<String>, V: Into<Value>> FromIterator<(N, V)> for Values {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(values: I) -> Self {
        Self(values.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl Extend<(String, Value)> for Values {
    fn extend<I: IntoIterator<Item = (String, Value)>>(&mut self, values: I) {
        self.0.extend(values);
    }
}

impl IntoIterator for Values {
    type Item = (String, Value);
    type IntoIter = std::collections::btree_map::IntoIter<String, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<N: Into<String>, V: Into<Value>, const COUNT: usize> From<[(N, V); COUNT]> for Values {
    fn from(values: [(N, V); COUNT]) -> Self {
        values.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every field that a sender can make longer makes the size larger, by as much.
        #[test]
        fn every_byte_counts(name in 0_usize..2_000, text in 0_usize..2_000, data in 0_usize..2_000, rank in 0_usize..8) {
            let long = |bytes: usize| "x".repeat(bytes);
            let size = |name: usize, value: Value| Values::from([(long(name), value)]).size();
            prop_assert_eq!(size(name, Value::Text(long(text))), VALUE_OVERHEAD + name + text);
            let file = Value::File { media_type: long(text), data: vec![0; data].into() };
            prop_assert_eq!(size(name, file), VALUE_OVERHEAD + name + text + data);
            let shape = [vec![1; rank], vec![data]].concat();
            let tensor = Tensor::new(DataType::U8, shape, vec![0; data]).unwrap();
            prop_assert_eq!(size(name, tensor.into()), VALUE_OVERHEAD + name + data + 8 * (rank + 1));
        }
    }

    #[test]
    fn parts_follow_each_other() {
        let tensor = |byte| Value::Tensor(Tensor::new(DataType::U8, vec![1], vec![byte]).unwrap());
        let mut values = Values::from([("text", Value::from("one")), ("tensor", tensor(1))]);
        values.append(Values::from([("text", Value::from(" two")), ("tensor", tensor(2)), ("end", Value::from("stop"))]));
        let whole = Values::from([("text", Value::from("one two")), ("tensor", tensor(2)), ("end", Value::from("stop"))]);
        assert_eq!(values, whole);
    }

    #[test]
    fn parts_are_what_an_output_begins_with() {
        let (one, other) = (Value::png(&b"1"[..]), Value::png(&b"2"[..]));
        let whole = Values::from([("text", Value::from("one two")), ("image", one.clone())]);
        let misfit = |parts: Values, replaceable| parts.misfit(&whole, replaceable).map(str::to_owned);
        assert_eq!(misfit(Values::new(), false), None);
        assert_eq!(misfit(Values::from([("text", Value::from("one t")), ("image", one)]), false), None);
        assert_eq!(misfit(Values::from([("text", "two")]), true).as_deref(), Some("text"));
        assert_eq!(misfit(Values::from([("image", other.clone())]), false).as_deref(), Some("image"));
        assert_eq!(misfit(Values::from([("image", other)]), true), None);
        assert_eq!(misfit(Values::from([("more", "")]), true).as_deref(), Some("more"));
    }

    #[test]
    fn different_values_have_different_hashes() {
        let tensor = |shape: Vec<usize>| Value::Tensor(Tensor::new(DataType::U8, shape, vec![1, 2, 3, 4]).unwrap());
        let signed = Tensor::new(DataType::I8, vec![4], vec![1, 2, 3, 4]).unwrap();
        let sets = [
            Values::new(),
            Values::from([("a", tensor(vec![4]))]),
            Values::from([("a", tensor(vec![2, 2]))]),
            Values::from([("b", tensor(vec![4]))]),
            Values::from([("a", signed)]),
            Values::from([("a", "text")]),
            Values::from([("at", "ext")]),
            Values::from([("a", "te"), ("b", "xt")]),
            Values::from([("a", Value::png(&b"text"[..]))]),
        ];
        let mut hashes: Vec<_> = sets.iter().map(Values::hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), sets.len());
        assert_eq!(sets[7].hash(), Values::from([("b", "xt"), ("a", "te")]).hash(), "the order of insertion does not matter");
    }

    #[test]
    fn no_more_values_are_read_than_may_be_and_each_name_once() {
        let values = |count: usize| (0..count).map(|n| format!("\"{n}\":{{\"text\":\"\"}}")).collect::<Vec<_>>().join(",");
        let read = |inner: &str| serde_json::from_str::<Values>(&format!("{{{inner}}}")).map(|read| read.len());
        assert_eq!(read(&values(MAX_OUTPUT_VALUES)).unwrap(), MAX_OUTPUT_VALUES);
        assert!(read(&values(MAX_OUTPUT_VALUES + 1)).unwrap_err().to_string().contains("more than"));
        assert!(read("\"a\":{\"text\":\"\"},\"a\":{\"text\":\"b\"}").unwrap_err().to_string().contains("one name"));
    }
}
