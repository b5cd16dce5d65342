//! Values, orders and answers in types that uniffi can carry.

use std::{collections::HashMap, time::Duration};

use ncn_client::{
    ChannelBalance, InferenceOutput,
    core::{self, Amount, Price, Quote, Tensor},
};
use serde_json::json;

use crate::{ErrorKind, NcnError, receipt::Receipt};

// In the token's smallest units, of which a token has 10^18: a whole number in every language, never a float.
uniffi::custom_type!(Amount, String, {
    remote,
    lower: |amount| amount.units().to_string(),
    try_lift: |units| Ok(Amount::new(units.parse()?)),
});

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Value {
    /// Text, such as a prompt or a label.
    Text {
        /// The text.
        text: String,
    },
    /// Numbers.
    Tensor {
        /// Its elements' type.
        dtype: DataType,
        /// Its dimensions.
        shape: Vec<u64>,
        /// Its elements in row-major order, little-endian.
        data: Vec<u8>,
    },
    /// A file, such as an image.
    File {
        /// For example `image/png`.
        media_type: String,
        /// The file's bytes.
        data: Vec<u8>,
    },
}

/// What a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum DataType {
    /// 32 bits, IEEE 754.
    F32,
    /// 32 bits, signed.
    I32,
    /// 64 bits, signed.
    I64,
    /// 8 bits, signed.
    I8,
    /// 8 bits, unsigned.
    U8,
    /// One byte each, 0 or 1.
    Bool,
}

impl From<DataType> for core::DataType {
    fn from(dtype: DataType) -> Self {
        match dtype {
            DataType::F32 => Self::F32,
            DataType::I32 => Self::I32,
            DataType::I64 => Self::I64,
            DataType::I8 => Self::I8,
            DataType::U8 => Self::U8,
            DataType::Bool => Self::Bool,
        }
    }
}

impl DataType {
    fn of(dtype: core::DataType) -> Result<Self, NcnError> {
        Ok(match dtype {
            core::DataType::F32 => Self::F32,
            core::DataType::I32 => Self::I32,
            core::DataType::I64 => Self::I64,
            core::DataType::I8 => Self::I8,
            core::DataType::U8 => Self::U8,
            core::DataType::Bool => Self::Bool,
            other => return Err(NcnError::new(ErrorKind::Internal, format!("a tensor of {other:?} cannot be passed on"))),
        })
    }
}

impl Value {
    fn read(self, name: &str) -> Result<core::Value, NcnError> {
        let invalid = |problem: String| NcnError::new(ErrorKind::Input, format!("input `{name}`: {problem}"));
        Ok(match self {
            Self::Text { text } => core::Value::Text(text),
            Self::File { media_type, data } => core::Value::File { media_type, data: data.into() },
            Self::Tensor { dtype, shape, data } => {
                let shape: Result<Vec<_>, _> = shape.into_iter().map(usize::try_from).collect();
                let shape = shape.map_err(|error| invalid(error.to_string()))?;
                core::Value::Tensor(Tensor::new(dtype.into(), shape, data).map_err(|error| invalid(error.to_string()))?)
            }
        })
    }

    fn of(value: core::Value) -> Result<Self, NcnError> {
        Ok(match value {
            core::Value::Text(text) => Self::Text { text },
            core::Value::File { media_type, data } => Self::File { media_type, data: data.into() },
            core::Value::Tensor(tensor) => Self::Tensor {
                dtype: DataType::of(tensor.data_type())?,
                shape: tensor.shape().iter().map(|size| *size as u64).collect(),
                data: tensor.data().to_vec(),
            },
            other => return Err(NcnError::new(ErrorKind::Internal, format!("a value cannot be passed on: {other:?}"))),
        })
    }
}

pub(crate) fn values(values: core::Values) -> Result<HashMap<String, Value>, NcnError> {
    values.into_iter().map(|(name, value)| Value::of(value).map(|value| (name, value))).collect()
}

/// What to run, on what, and on which terms.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Order {
    /// The model's name.
    pub model: String,
    /// Its inputs.
    pub inputs: HashMap<String, Value>,
    /// Its parameters, a JSON object.
    #[uniffi(default = "{}")]
    pub parameters: String,
    /// The most to pay; the client's limit by default.
    #[uniffi(default = None)]
    pub max_price: Option<Amount>,
    /// How long to wait, in seconds; the client's by default, or longer where the model needs it.
    #[uniffi(default = None)]
    pub timeout: Option<u64>,
}

impl Order {
    pub(crate) fn read(self) -> Result<ncn_client::Order, NcnError> {
        let inputs: Result<core::Values, NcnError> =
            self.inputs.into_iter().map(|(name, value)| value.read(&name).map(|value| (name, value))).collect();
        let mut order = ncn_client::Order::new(&self.model, inputs?).parameters(self.parameters);
        if let Some(limit) = self.max_price {
            order = order.max_price(limit);
        }
        if let Some(seconds) = self.timeout {
            order = order.timeout(Duration::from_secs(seconds));
        }
        Ok(order)
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Message {
    /// Who says it: `system`, `user` or `assistant`.
    pub role: String,
    /// What.
    pub content: String,
}

/// The input `messages` of a model that chats.
pub(crate) fn conversation(messages: &[Message]) -> HashMap<String, Value> {
    let messages: Vec<_> = messages.iter().map(|said| json!({ "role": said.role, "content": said.content })).collect();
    [("messages".into(), Value::Text { text: json!(messages).to_string() })].into()
}

/// A model that a gateway offers.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct ModelInfo {
    /// The name by which it is ordered.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is, in words.
    pub description: String,
    /// The SHA-256 of its manifest.
    pub digest: String,
    /// Its manifest, JSON: what it takes and gives.
    pub manifest: String,
    /// What its requests cost, in words.
    pub price: String,
    /// The least timeout that is taken, in seconds.
    pub least_timeout: u64,
}

impl From<core::ModelInfo> for ModelInfo {
    fn from(info: core::ModelInfo) -> Self {
        let manifest = info.model.manifest();
        Self {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            description: manifest.description.clone(),
            digest: info.model.digest().to_string(),
            manifest: String::from_utf8_lossy(info.model.bytes()).into_owned(),
            price: Price::to_string(&info.price),
            least_timeout: info.least_timeout.as_secs() + u64::from(info.least_timeout.subsec_nanos() > 0),
        }
    }
}

/// What a request may cost.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Estimate {
    /// The most that it can cost.
    pub maximum: Amount,
    /// What it costs if it takes what the gateway's requests took on average.
    pub typical: Amount,
    /// What it costs by the unit, in words.
    pub price: String,
}

impl From<ncn_client::Estimate> for Estimate {
    fn from(estimate: ncn_client::Estimate) -> Self {
        Self { maximum: estimate.maximum, typical: estimate.typical, price: Price::to_string(&estimate.price) }
    }
}

/// A quote that the validators have approved: what is about to be paid.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Offer {
    /// The request's id.
    pub request_id: String,
    /// The model's name.
    pub model: String,
    /// The most that is paid; what is not used comes back.
    pub total: Amount,
    /// To which gateway.
    pub gateway: String,
    /// Which compute node is to serve it.
    pub compute: String,
    /// Until when it can be paid, in seconds since 1970.
    pub expiry: u64,
}

impl Offer {
    pub(crate) fn new(model: &str, quote: &Quote) -> Self {
        Self {
            request_id: quote.request_id.to_string(),
            model: model.to_owned(),
            total: quote.total,
            gateway: quote.gateway.to_string(),
            compute: quote.compute.to_string(),
            expiry: quote.expiry,
        }
    }
}

/// A verified answer.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Answer {
    /// The request's id.
    pub request_id: String,
    /// What the model gave.
    pub output: HashMap<String, Value>,
    /// What it cost.
    pub cost: Amount,
    /// Why the output ended: `stop` or `length` when it is whole.
    pub finish: String,
    /// Units that went in.
    pub input_units: u64,
    /// Units that came out.
    pub output_units: u64,
    /// The steps that led to it, as client and gateway measured them.
    pub steps: Vec<StepTiming>,
    /// The proof of it, verified.
    pub receipt: Receipt,
}

/// How long a step took.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct StepTiming {
    /// Its name.
    pub step: String,
    /// How long it took, in microseconds.
    pub micros: u64,
}

impl Answer {
    pub(crate) fn of(answer: InferenceOutput) -> Result<Self, NcnError> {
        let (cost, finish, units) = (answer.cost(), answer.finish().to_string(), answer.usage().units());
        let micros = |took: Duration| took.as_micros().try_into().unwrap_or(u64::MAX);
        let steps = answer.steps.iter().map(|timing| StepTiming { step: timing.step.to_string(), micros: micros(timing.took) });
        Ok(Self {
            request_id: answer.receipt.request_id().to_string(),
            cost,
            finish,
            input_units: units.input,
            output_units: units.output,
            steps: steps.collect(),
            receipt: Receipt::of(&answer.receipt),
            output: values(answer.output)?,
        })
    }
}

/// What a channel comes to.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct ChannelInfo {
    /// Its id.
    pub id: String,
    /// The gateway that is paid out of it.
    pub gateway: String,
    /// All that was paid in.
    pub deposit: Amount,
    /// What served requests came to.
    pub spent: Amount,
    /// What requests in flight may come to.
    pub reserved: Amount,
    /// What is free.
    pub available: Amount,
    /// The last second in which it can be charged, since 1970.
    pub expiry: u64,
    /// Whether it is known to have been closed.
    pub closed: bool,
}

impl ChannelInfo {
    pub(crate) fn of(channel: &ncn_client::PayerChannel) -> Self {
        let (terms, sums) = (channel.terms(), channel.sums());
        let ChannelBalance { deposit, spent, reserved, expiry, closed } = sums;
        let (id, gateway) = (terms.id().to_string(), terms.gateway.to_string());
        Self { id, gateway, deposit, spent, reserved, available: sums.available(), expiry, closed }
    }
}
