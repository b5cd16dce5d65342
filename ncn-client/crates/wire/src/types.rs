//! The messages that several services share.

use ncn_core::{
    Approval, ChannelParams, Confinement, Continuation, DataType, Delivery, FeeSplit, FinishReason, InferenceRequest,
    InferenceResult, NodeRecord, NodeRole, OutputChunk, Price, QuorumCertificate, Quote, Signed, SignedVoucher, Tensor, Unit,
    UnitPrice, Units, Usage, Value, Values, Voucher, compute::MAX_OUTPUT_VALUES,
};
use prost::bytes::Bytes;

use super::{MAX_MEDIA_TYPE_BYTES, WireError, address, amount, amount_bytes, bytes, hash, required, signature, small};
use crate::proto;

/// Named values, as a message lists them.
pub fn values_to_proto(values: Values) -> Vec<proto::NamedValue> {
    let value = |value| match value {
        Value::Tensor(tensor) => Some(proto::named_value::Value::Tensor(proto::Tensor {
            data_type: i32::from(tensor.data_type() as u8),
            shape: tensor.shape().iter().map(|dimension| *dimension as u64).collect(),
            data: tensor.data().clone(),
        })),
        Value::Text(text) => Some(proto::named_value::Value::Text(text)),
        Value::File { media_type, data } => Some(proto::named_value::Value::File(proto::File { media_type, data })),
        _ => None,
    };
    values.into_iter().map(|(name, item)| proto::NamedValue { name, value: value(item) }).collect()
}

/// Named values of a message; each name once. Contents are copied: the message's own are parts of whatever was received in one piece
/// with them, which would be kept as long as they are, and not be counted by [`Values::size`].
pub fn values_from_proto(named: Vec<proto::NamedValue>) -> Result<Values, WireError> {
    if named.len() > MAX_OUTPUT_VALUES {
        return Err(WireError::new("values", format!("are {}, at most {MAX_OUTPUT_VALUES} are taken", named.len())));
    }
    let mut values = Values::new();
    for proto::NamedValue { name, value } in named {
        let value = match required("values.value", value)? {
            proto::named_value::Value::Text(text) => Value::Text(text),
            proto::named_value::Value::File(proto::File { media_type, data }) => {
                if media_type.len() > MAX_MEDIA_TYPE_BYTES {
                    let problem = format!("has {} bytes, at most {MAX_MEDIA_TYPE_BYTES} are taken", media_type.len());
                    return Err(WireError::new("values.file.media_type", problem));
                }
                Value::File { media_type, data: Bytes::copy_from_slice(&data) }
            }
            proto::named_value::Value::Tensor(tensor) => Value::Tensor(tensor.try_into()?),
        };
        if values.insert(name, value).is_some() {
            return Err(WireError::new("values.name", "appears twice"));
        }
    }
    Ok(values)
}

impl TryFrom<proto::Tensor> for Tensor {
    type Error = WireError;

    fn try_from(tensor: proto::Tensor) -> Result<Self, WireError> {
        let data_type = u8::try_from(tensor.data_type).ok().and_then(DataType::from_code);
        let data_type = data_type.ok_or_else(|| WireError::new("tensor.data_type", "is unknown"))?;
        let shape: Result<Vec<_>, _> = tensor.shape.into_iter().map(usize::try_from).collect();
        let shape = shape.map_err(|_| WireError::new("tensor.shape", "is too large"))?;
        Self::new(data_type, shape, Bytes::copy_from_slice(&tensor.data))
            .map_err(|error| WireError::new("tensor", error.to_string()))
    }
}

impl From<OutputChunk> for proto::OutputChunk {
    fn from(chunk: OutputChunk) -> Self {
        let OutputChunk { values, usage, finish } = chunk;
        Self { values: values_to_proto(values), usage: Some(usage.into()), finish: finish_to_code(finish) }
    }
}

/// A part of an output.
pub fn chunk_from_proto(chunk: proto::OutputChunk) -> Result<OutputChunk, WireError> {
    Ok(OutputChunk {
        values: values_from_proto(chunk.values)?,
        usage: chunk.usage.map(Into::into).unwrap_or_default(),
        finish: finish("chunk.finish", chunk.finish)?,
    })
}

impl From<Usage> for proto::Usage {
    fn from(Usage { input_units, output_units, duration_micros }: Usage) -> Self {
        Self { input_units, output_units, duration_micros }
    }
}

impl From<proto::Usage> for Usage {
    fn from(proto::Usage { input_units, output_units, duration_micros }: proto::Usage) -> Self {
        Self { input_units, output_units, duration_micros }
    }
}

impl From<FeeSplit> for proto::Split {
    fn from(split: FeeSplit) -> Self {
        Self {
            gateway_bps: split.gateway_bps.into(),
            validators_bps: split.validators_bps.into(),
            treasury_bps: split.treasury_bps.into(),
        }
    }
}

impl TryFrom<proto::Split> for FeeSplit {
    type Error = WireError;

    fn try_from(split: proto::Split) -> Result<Self, WireError> {
        Ok(Self {
            gateway_bps: small("split.gateway_bps", split.gateway_bps)?,
            validators_bps: small("split.validators_bps", split.validators_bps)?,
            treasury_bps: small("split.treasury_bps", split.treasury_bps)?,
        })
    }
}

impl From<UnitPrice> for proto::UnitPrice {
    fn from(UnitPrice { unit, price }: UnitPrice) -> Self {
        Self { unit: unit as u32, price: amount_bytes(price) }
    }
}

impl TryFrom<proto::UnitPrice> for UnitPrice {
    type Error = WireError;

    fn try_from(price: proto::UnitPrice) -> Result<Self, WireError> {
        let unit = Unit::from_code(small("price.unit", price.unit)?);
        Ok(Self {
            unit: unit.ok_or_else(|| WireError::new("price.unit", format!("{} is no unit", price.unit)))?,
            price: amount("price.price", &price.price)?,
        })
    }
}

impl From<Price> for proto::Price {
    fn from(Price { base, input, output }: Price) -> Self {
        Self { base: amount_bytes(base), input: Some(input.into()), output: Some(output.into()) }
    }
}

impl TryFrom<proto::Price> for Price {
    type Error = WireError;

    fn try_from(price: proto::Price) -> Result<Self, WireError> {
        Ok(Self {
            base: amount("price.base", &price.base)?,
            input: required("price.input", price.input)?.try_into()?,
            output: required("price.output", price.output)?.try_into()?,
        })
    }
}

impl From<Quote> for proto::Quote {
    fn from(quote: Quote) -> Self {
        Self {
            request_id: bytes(quote.request_id),
            client: bytes(quote.client),
            gateway: bytes(quote.gateway),
            compute: bytes(quote.compute),
            model_digest: bytes(quote.model_digest),
            total: amount_bytes(quote.total),
            split: Some(quote.split.into()),
            expiry: quote.expiry,
            trust_root: bytes(quote.trust_root),
            price: Some(quote.price.into()),
            max_input_units: quote.max_units.input,
            max_output_units: quote.max_units.output,
            epoch: quote.epoch,
            salt: bytes(quote.salt),
            committee: bytes(quote.committee),
        }
    }
}

impl TryFrom<proto::Quote> for Quote {
    type Error = WireError;

    fn try_from(quote: proto::Quote) -> Result<Self, WireError> {
        Ok(Self {
            request_id: hash("quote.request_id", &quote.request_id)?,
            client: address("quote.client", &quote.client)?,
            gateway: address("quote.gateway", &quote.gateway)?,
            compute: address("quote.compute", &quote.compute)?,
            model_digest: hash("quote.model_digest", &quote.model_digest)?,
            price: required("quote.price", quote.price)?.try_into()?,
            max_units: Units { input: quote.max_input_units, output: quote.max_output_units },
            total: amount("quote.total", &quote.total)?,
            split: required("quote.split", quote.split)?.try_into()?,
            expiry: quote.expiry,
            trust_root: hash("quote.trust_root", &quote.trust_root)?,
            epoch: quote.epoch,
            salt: hash("quote.salt", &quote.salt)?,
            committee: hash("quote.committee", &quote.committee)?,
        })
    }
}

/// The order alone; inputs and quote are the caller's to add.
impl From<Signed<InferenceRequest>> for proto::InferenceRequest {
    fn from(Signed { message, signature }: Signed<InferenceRequest>) -> Self {
        Self {
            client: bytes(message.client),
            subnet: bytes(message.subnet),
            model_digest: bytes(message.model_digest),
            input_hash: bytes(message.input_hash),
            parameters: message.parameters,
            max_price: amount_bytes(message.max_price),
            deadline: message.deadline,
            nonce: bytes(message.nonce),
            draw: bytes(message.draw),
            ticket: Bytes::new(),
            signature: bytes(signature.as_bytes()),
            inputs: Vec::new(),
            quote: None,
            voucher: None,
            finish_by: 0,
            preprocessing: None,
            before: Vec::new(),
            prefix: Vec::new(),
            dispatches: Vec::new(),
        }
    }
}

impl TryFrom<proto::InferenceRequest> for Signed<InferenceRequest> {
    type Error = WireError;

    fn try_from(request: proto::InferenceRequest) -> Result<Self, WireError> {
        let message = InferenceRequest {
            client: address("request.client", &request.client)?,
            subnet: hash("request.subnet", &request.subnet)?,
            model_digest: hash("request.model_digest", &request.model_digest)?,
            input_hash: hash("request.input_hash", &request.input_hash)?,
            parameters: request.parameters,
            max_price: amount("request.max_price", &request.max_price)?,
            deadline: request.deadline,
            nonce: hash("request.nonce", &request.nonce)?,
            draw: hash("request.draw", &request.draw)?,
        };
        Ok(Self { message, signature: signature("request.signature", &request.signature)? })
    }
}

impl From<Signed<InferenceResult>> for proto::ComputeCompletion {
    fn from(Signed { message, signature }: Signed<InferenceResult>) -> Self {
        Self {
            request_id: bytes(message.request_id),
            compute: bytes(message.compute),
            model_digest: bytes(message.model_digest),
            input_hash: bytes(message.input_hash),
            output_hash: bytes(message.output_hash),
            usage: Some(message.usage.into()),
            confinement: message.confinement as u32,
            signature: bytes(signature.as_bytes()),
            output_bytes: message.output_bytes,
            parts: message.parts,
            chain: bytes(message.chain),
            resumed_from: bytes(message.resumed_from),
            continuation: message.continuation.map_or(0, |continuation| continuation as u32),
            finish: finish_to_code(message.finish),
        }
    }
}

fn confinement(field: &'static str, code: u32) -> Result<Confinement, WireError> {
    Confinement::from_code(small(field, code)?).ok_or_else(|| WireError::new(field, format!("{code} is no level")))
}

impl TryFrom<proto::ComputeCompletion> for Signed<InferenceResult> {
    type Error = WireError;

    fn try_from(result: proto::ComputeCompletion) -> Result<Self, WireError> {
        let message = InferenceResult {
            request_id: hash("result.request_id", &result.request_id)?,
            compute: address("result.compute", &result.compute)?,
            model_digest: hash("result.model_digest", &result.model_digest)?,
            input_hash: hash("result.input_hash", &result.input_hash)?,
            output_hash: hash("result.output_hash", &result.output_hash)?,
            output_bytes: result.output_bytes,
            parts: result.parts,
            chain: hash("result.chain", &result.chain)?,
            resumed_from: hash("result.resumed_from", &result.resumed_from)?,
            continuation: continuation("result.continuation", result.continuation)?,
            usage: required("result.usage", result.usage)?.into(),
            confinement: confinement("result.confinement", result.confinement)?,
            finish: finish("result.finish", result.finish)?,
        };
        Ok(Self { message, signature: signature("result.signature", &result.signature)? })
    }
}

fn continuation(field: &'static str, code: u32) -> Result<Option<Continuation>, WireError> {
    optional(field, code, Continuation::from_code, "way to go on")
}

/// What a code stands for, of which 0 is nothing.
fn optional<T>(field: &'static str, code: u32, read: fn(u8) -> Option<T>, what: &str) -> Result<Option<T>, WireError> {
    if code == 0 {
        return Ok(None);
    }
    read(small(field, code)?).map(Some).ok_or_else(|| WireError::new(field, format!("{code} is no {what}")))
}

/// A result's reason to end, which 0 has not.
pub(super) fn finish(field: &'static str, code: u32) -> Result<Option<FinishReason>, WireError> {
    optional(field, code, FinishReason::from_code, "reason")
}

pub(super) fn finish_to_code(finish: Option<FinishReason>) -> u32 {
    finish.map_or(0, |finish| finish as u32)
}

impl From<Delivery> for proto::Delivery {
    fn from(delivery: Delivery) -> Self {
        Self { results: delivery.results.into_iter().map(Into::into).collect(), finish: delivery.finish as u32 }
    }
}

impl TryFrom<proto::Delivery> for Delivery {
    type Error = WireError;

    fn try_from(delivery: proto::Delivery) -> Result<Self, WireError> {
        Ok(Self {
            results: delivery.results.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            finish: required("delivery.finish", finish("delivery.finish", delivery.finish)?)?,
        })
    }
}

impl From<Approval> for proto::ValidatorSignature {
    fn from(approval: Approval) -> Self {
        Self { validator: bytes(approval.validator), signature: bytes(approval.signature.as_bytes()) }
    }
}

impl TryFrom<proto::ValidatorSignature> for Approval {
    type Error = WireError;

    fn try_from(approval: proto::ValidatorSignature) -> Result<Self, WireError> {
        Ok(Self {
            validator: address("approval.validator", &approval.validator)?,
            signature: signature("approval.signature", &approval.signature)?,
        })
    }
}

fn approvals(certificate: &QuorumCertificate) -> Vec<proto::ValidatorSignature> {
    certificate.approvals().iter().copied().map(Into::into).collect()
}

fn certificate(approvals: Vec<proto::ValidatorSignature>) -> Result<QuorumCertificate, WireError> {
    Ok(QuorumCertificate::new(approvals.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?))
}

/// A certificate is one thing, whichever phase it is of; the wire has a message for each.
macro_rules! certificates {
    ($($validation:ty),* $(,)?) => {$(
        impl From<QuorumCertificate> for $validation {
            fn from(certificate: QuorumCertificate) -> Self {
                Self { approvals: approvals(&certificate) }
            }
        }

        impl TryFrom<$validation> for QuorumCertificate {
            type Error = WireError;

            fn try_from(validation: $validation) -> Result<Self, WireError> {
                certificate(validation.approvals)
            }
        }
    )*};
}

certificates!(proto::PreprocessingValidation, proto::CompletionValidation, proto::SettlementValidation);

impl From<SignedVoucher> for proto::ChannelPayment {
    fn from(SignedVoucher { terms, voucher, signature }: SignedVoucher) -> Self {
        Self {
            client: bytes(terms.client),
            gateway: bytes(terms.gateway),
            salt: bytes(terms.salt),
            request_id: bytes(voucher.request_id),
            quote: bytes(voucher.quote),
            committee: bytes(voucher.committee),
            number: voucher.number,
            amount: amount_bytes(voucher.amount),
            cumulative: amount_bytes(voucher.cumulative),
            signature: bytes(signature.as_bytes()),
        }
    }
}

impl TryFrom<proto::ChannelPayment> for SignedVoucher {
    type Error = WireError;

    fn try_from(payment: proto::ChannelPayment) -> Result<Self, WireError> {
        let terms = ChannelParams {
            client: address("voucher.client", &payment.client)?,
            gateway: address("voucher.gateway", &payment.gateway)?,
            salt: hash("voucher.salt", &payment.salt)?,
        };
        let voucher = Voucher {
            channel: terms.id(),
            request_id: hash("voucher.request_id", &payment.request_id)?,
            quote: hash("voucher.quote", &payment.quote)?,
            committee: hash("voucher.committee", &payment.committee)?,
            number: payment.number,
            amount: amount("voucher.amount", &payment.amount)?,
            cumulative: amount("voucher.cumulative", &payment.cumulative)?,
        };
        Ok(Self { terms, voucher, signature: signature("voucher.signature", &payment.signature)? })
    }
}

pub(super) fn role_to_code(role: NodeRole) -> u32 {
    role as u32
}

pub(super) fn role_from_code(field: &'static str, code: u32) -> Result<NodeRole, WireError> {
    let roles = [NodeRole::Gateway, NodeRole::Compute, NodeRole::Validator];
    roles.into_iter().find(|role| role_to_code(*role) == code).ok_or_else(|| WireError::new(field, format!("{code} is no role")))
}

impl From<Signed<NodeRecord>> for proto::NodeInfo {
    fn from(Signed { message, signature }: Signed<NodeRecord>) -> Self {
        Self {
            node: bytes(message.node),
            role: role_to_code(message.role),
            subnet: bytes(message.subnet),
            endpoint: message.endpoint,
            models: message.models.iter().map(bytes).collect(),
            confinement: message.confinement as u32,
            sequence: message.sequence,
            expires_at: message.expires_at,
            signature: bytes(signature.as_bytes()),
        }
    }
}

impl TryFrom<proto::NodeInfo> for Signed<NodeRecord> {
    type Error = WireError;

    fn try_from(node: proto::NodeInfo) -> Result<Self, WireError> {
        let models = node.models.iter().map(|model: &Bytes| hash("node.models", model));
        let message = NodeRecord {
            node: address("node.node", &node.node)?,
            role: role_from_code("node.role", node.role)?,
            subnet: hash("node.subnet", &node.subnet)?,
            endpoint: node.endpoint,
            models: models.collect::<Result<_, _>>()?,
            confinement: confinement("node.confinement", node.confinement)?,
            sequence: node.sequence,
            expires_at: node.expires_at,
        };
        Ok(Self { message, signature: signature("node.signature", &node.signature)? })
    }
}
