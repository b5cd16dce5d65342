//! The messages that several services share.

use ncn_core::{
    Approval, ChannelParams, Confinement, DataType, Domain, FeeSplit, InferenceRequest, InferenceResult, NodeRecord, NodeRole,
    OutputChunk, PayeeRole, Payout, PayoutSchedule, QuorumCertificate, Quote, Receipt, Signed, SignedVoucher, StreamCheckpoint,
    Tensor, TrustRoot, Usage, Value, Values, Voucher, compute::MAX_OUTPUT_VALUES, receipt::Payment,
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
        Self { values: values_to_proto(chunk.values), usage: chunk.usage.map(Into::into) }
    }
}

/// A part of an output.
pub fn chunk_from_proto(chunk: proto::OutputChunk) -> Result<OutputChunk, WireError> {
    Ok(OutputChunk { values: values_from_proto(chunk.values)?, usage: chunk.usage.map(Into::into) })
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
            total: amount("quote.total", &quote.total)?,
            split: required("quote.split", quote.split)?.try_into()?,
            expiry: quote.expiry,
            trust_root: hash("quote.trust_root", &quote.trust_root)?,
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
            signature: bytes(signature.as_bytes()),
            inputs: Vec::new(),
            quote: None,
            voucher: None,
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
            usage: required("result.usage", result.usage)?.into(),
            confinement: confinement("result.confinement", result.confinement)?,
        };
        Ok(Self { message, signature: signature("result.signature", &result.signature)? })
    }
}

impl From<Signed<StreamCheckpoint>> for proto::StreamCheckpoint {
    fn from(Signed { message, signature }: Signed<StreamCheckpoint>) -> Self {
        Self {
            request_id: bytes(message.request_id),
            compute: bytes(message.compute),
            parts: message.parts,
            hash: bytes(message.hash),
            signature: bytes(signature.as_bytes()),
        }
    }
}

impl TryFrom<proto::StreamCheckpoint> for Signed<StreamCheckpoint> {
    type Error = WireError;

    fn try_from(checkpoint: proto::StreamCheckpoint) -> Result<Self, WireError> {
        let message = StreamCheckpoint {
            request_id: hash("checkpoint.request_id", &checkpoint.request_id)?,
            compute: address("checkpoint.compute", &checkpoint.compute)?,
            parts: checkpoint.parts,
            hash: hash("checkpoint.hash", &checkpoint.hash)?,
        };
        Ok(Self { message, signature: signature("checkpoint.signature", &checkpoint.signature)? })
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
            amount: amount("voucher.amount", &payment.amount)?,
            cumulative: amount("voucher.cumulative", &payment.cumulative)?,
        };
        Ok(Self { terms, voucher, signature: signature("voucher.signature", &payment.signature)? })
    }
}

const RECIPIENTS: [PayeeRole; 4] = [PayeeRole::Compute, PayeeRole::Gateway, PayeeRole::Validator, PayeeRole::Treasury];

impl From<Payout> for proto::Payout {
    fn from(payout: Payout) -> Self {
        let role = match payout.role {
            PayeeRole::Compute => 1,
            PayeeRole::Gateway => 2,
            PayeeRole::Validator => 3,
            PayeeRole::Treasury => 4,
        };
        Self { role, address: bytes(payout.address), amount: amount_bytes(payout.amount) }
    }
}

impl TryFrom<proto::Payout> for Payout {
    type Error = WireError;

    fn try_from(payout: proto::Payout) -> Result<Self, WireError> {
        let role = payout.role.checked_sub(1).and_then(|index| RECIPIENTS.get(index as usize));
        Ok(Self {
            role: *role.ok_or_else(|| WireError::new("payout.role", "is unknown"))?,
            address: address("payout.address", &payout.address)?,
            amount: amount("payout.amount", &payout.amount)?,
        })
    }
}

impl From<PayoutSchedule> for proto::PaymentTree {
    fn from(tree: PayoutSchedule) -> Self {
        Self { total: amount_bytes(tree.total), payouts: tree.payouts.into_iter().map(Into::into).collect() }
    }
}

impl TryFrom<proto::PaymentTree> for PayoutSchedule {
    type Error = WireError;

    fn try_from(tree: proto::PaymentTree) -> Result<Self, WireError> {
        Ok(Self {
            total: amount("payments.total", &tree.total)?,
            payouts: tree.payouts.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<TrustRoot> for proto::TrustRoot {
    fn from(trust: TrustRoot) -> Self {
        Self {
            domain: Some(proto::Domain { chain_id: trust.domain.chain_id, contract: bytes(trust.domain.contract) }),
            validators: trust.validators.iter().map(bytes).collect(),
            threshold: trust.threshold.into(),
            committee_size: trust.committee_size.into(),
            treasury: bytes(trust.treasury),
            token: bytes(trust.token),
            channels: bytes(trust.channels),
        }
    }
}

impl TryFrom<proto::TrustRoot> for TrustRoot {
    type Error = WireError;

    fn try_from(trust: proto::TrustRoot) -> Result<Self, WireError> {
        let domain = required("trust_root.domain", trust.domain)?;
        let validators = trust.validators.iter().map(|validator: &Bytes| address("trust_root.validators", validator));
        Ok(Self {
            domain: Domain { chain_id: domain.chain_id, contract: address("trust_root.domain.contract", &domain.contract)? },
            validators: validators.collect::<Result<_, _>>()?,
            threshold: small("trust_root.threshold", trust.threshold)?,
            committee_size: small("trust_root.committee_size", trust.committee_size)?,
            treasury: address("trust_root.treasury", &trust.treasury)?,
            token: address("trust_root.token", &trust.token)?,
            channels: address("trust_root.channels", &trust.channels)?,
        })
    }
}

impl From<Receipt> for proto::Receipt {
    fn from(receipt: Receipt) -> Self {
        Self {
            version: receipt.version,
            trust_root: Some(receipt.trust_root.into()),
            request: Some(receipt.request.into()),
            quote: Some(receipt.quote.into()),
            preprocessing: Some(receipt.preprocessing.into()),
            payment: Some(match receipt.payment {
                Payment::Escrow { transaction, settlement } => {
                    let escrow = proto::EscrowPayment { transaction: bytes(transaction), settlement: bytes(settlement) };
                    proto::receipt::Payment::Escrow(escrow)
                }
                Payment::Channel(payment) => proto::receipt::Payment::Channel((*payment).into()),
            }),
            result: Some(receipt.result.into()),
            completion: Some(receipt.completion.into()),
            payments: Some(receipt.payments.into()),
            issued_at: receipt.issued_at,
            seal: bytes(receipt.seal.as_bytes()),
        }
    }
}

impl TryFrom<proto::Receipt> for Receipt {
    type Error = WireError;

    fn try_from(receipt: proto::Receipt) -> Result<Self, WireError> {
        Ok(Self {
            version: receipt.version,
            trust_root: required("receipt.trust_root", receipt.trust_root)?.try_into()?,
            request: required("receipt.request", receipt.request)?.try_into()?,
            quote: required("receipt.quote", receipt.quote)?.try_into()?,
            preprocessing: required("receipt.preprocessing", receipt.preprocessing)?.try_into()?,
            payment: match required("receipt.payment", receipt.payment)? {
                proto::receipt::Payment::Escrow(escrow) => Payment::Escrow {
                    transaction: hash("receipt.escrow.transaction", &escrow.transaction)?,
                    settlement: hash("receipt.escrow.settlement", &escrow.settlement)?,
                },
                proto::receipt::Payment::Channel(payment) => Payment::Channel(Box::new(payment.try_into()?)),
            },
            result: required("receipt.result", receipt.result)?.try_into()?,
            completion: required("receipt.completion", receipt.completion)?.try_into()?,
            payments: required("receipt.payments", receipt.payments)?.try_into()?,
            issued_at: receipt.issued_at,
            seal: signature("receipt.seal", &receipt.seal)?,
        })
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
