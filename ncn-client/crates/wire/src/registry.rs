//! The messages to the registry and its validators.

use ncn_core::{
    Address, Amount, ApprovedSubnet, B256, BatchRequest, ChannelCharge, ChannelParams, ChannelPayout, ChannelSettlement, Committee,
    CompletionAuthorization, CompletionRequest, Delivery, Deregistration, Heartbeat, Message as _, NodeChange, NodeQuery,
    PreprocessingRequest, Quote, SettlementRequest, Signed, SignedVoucher, Subnet, SubnetModel, Voucher,
    channel::{Batch, BatchEntry, Numbers},
    mempool::PendingRequests,
};
use prost::bytes::Bytes;

use super::{
    WireError, address, amount, amount_bytes, bytes,
    gateway::dispatches,
    hash, required, signature, small,
    types::{role_from_code, role_to_code},
};
use crate::proto;

impl From<Signed<Heartbeat>> for proto::UpdateNodeHeartbeatRequest {
    fn from(Signed { message, signature }: Signed<Heartbeat>) -> Self {
        Self {
            node: bytes(message.node),
            sequence: message.sequence,
            sent_at: message.sent_at,
            signature: bytes(signature.as_bytes()),
        }
    }
}

impl TryFrom<proto::UpdateNodeHeartbeatRequest> for Signed<Heartbeat> {
    type Error = WireError;

    fn try_from(beat: proto::UpdateNodeHeartbeatRequest) -> Result<Self, WireError> {
        let message = Heartbeat { node: address("heartbeat.node", &beat.node)?, sequence: beat.sequence, sent_at: beat.sent_at };
        Ok(Self { message, signature: signature("heartbeat.signature", &beat.signature)? })
    }
}

impl From<Signed<Deregistration>> for proto::DeregisterNodeRequest {
    fn from(Signed { message, signature }: Signed<Deregistration>) -> Self {
        Self { node: bytes(message.node), sequence: message.sequence, signature: bytes(signature.as_bytes()) }
    }
}

impl TryFrom<proto::DeregisterNodeRequest> for Signed<Deregistration> {
    type Error = WireError;

    fn try_from(deregistration: proto::DeregisterNodeRequest) -> Result<Self, WireError> {
        let message = Deregistration { node: address("departure.node", &deregistration.node)?, sequence: deregistration.sequence };
        Ok(Self { message, signature: signature("departure.signature", &deregistration.signature)? })
    }
}

fn optional_hash(field: &'static str, value: &Bytes) -> Result<Option<B256>, WireError> {
    if value.is_empty() { Ok(None) } else { hash(field, value).map(Some) }
}

fn optional_address(field: &'static str, value: &Bytes) -> Result<Option<Address>, WireError> {
    if value.is_empty() { Ok(None) } else { address(field, value).map(Some) }
}

impl From<NodeQuery> for proto::DiscoverNodesRequest {
    fn from(query: NodeQuery) -> Self {
        Self {
            role: query.role.map(role_to_code).unwrap_or_default(),
            subnet: query.subnet.map(bytes).unwrap_or_default(),
            model: query.model.map(bytes).unwrap_or_default(),
            node: query.node.map(bytes).unwrap_or_default(),
        }
    }
}

impl TryFrom<proto::DiscoverNodesRequest> for NodeQuery {
    type Error = WireError;

    fn try_from(query: proto::DiscoverNodesRequest) -> Result<Self, WireError> {
        Ok(Self {
            role: if query.role == 0 { None } else { Some(role_from_code("query.role", query.role)?) },
            subnet: optional_hash("query.subnet", &query.subnet)?,
            model: optional_hash("query.model", &query.model)?,
            node: optional_address("query.node", &query.node)?,
        })
    }
}

impl From<NodeChange> for proto::NodeChange {
    fn from(change: NodeChange) -> Self {
        use proto::node_change::Change as Sent;
        let change = match change {
            NodeChange::Live(record) => Sent::Live(record.into()),
            NodeChange::Gone(node) => Sent::Gone(bytes(node)),
            NodeChange::Synced => Sent::Synced(proto::Ack {}),
        };
        Self { change: Some(change) }
    }
}

impl TryFrom<proto::NodeChange> for NodeChange {
    type Error = WireError;

    fn try_from(change: proto::NodeChange) -> Result<Self, WireError> {
        use proto::node_change::Change as Sent;
        Ok(match required("change", change.change)? {
            Sent::Live(record) => Self::Live(record.try_into()?),
            Sent::Gone(node) => Self::Gone(address("gone", &node)?),
            Sent::Synced(proto::Ack {}) => Self::Synced,
        })
    }
}

impl From<Signed<Subnet>> for proto::CreateSubnetRequest {
    fn from(Signed { message, signature }: Signed<Subnet>) -> Self {
        let models = message.models.into_iter().map(|model| proto::ModelDescriptor {
            name: model.name,
            digest: bytes(model.digest),
            price: Some(model.price.into()),
        });
        let subnet = proto::SubnetMetadata {
            owner: bytes(message.owner),
            name: message.name,
            models: models.collect(),
            split: Some(message.split.into()),
            version: message.version,
            gateways: message.gateways.iter().map(bytes).collect(),
        };
        Self { subnet: Some(subnet), signature: bytes(signature.as_bytes()) }
    }
}

impl TryFrom<proto::CreateSubnetRequest> for Signed<Subnet> {
    type Error = WireError;

    fn try_from(request: proto::CreateSubnetRequest) -> Result<Self, WireError> {
        let subnet = required("subnet", request.subnet)?;
        let models = subnet.models.into_iter().map(|model| {
            Ok(SubnetModel {
                name: model.name,
                digest: hash("subnet.models.digest", &model.digest)?,
                price: required("subnet.models.price", model.price)?.try_into()?,
            })
        });
        let gateways = subnet.gateways.iter().map(|gateway| address("subnet.gateways", gateway));
        let message = Subnet {
            owner: address("subnet.owner", &subnet.owner)?,
            name: subnet.name,
            gateways: gateways.collect::<Result<_, WireError>>()?,
            models: models.collect::<Result<_, WireError>>()?,
            split: required("subnet.split", subnet.split)?.try_into()?,
            version: subnet.version,
        };
        Ok(Self { message, signature: signature("subnet.signature", &request.signature)? })
    }
}

impl From<ApprovedSubnet> for proto::ApprovedSubnet {
    fn from(ApprovedSubnet { definition, approvals }: ApprovedSubnet) -> Self {
        let proto::PreprocessingValidation { approvals } = approvals.into();
        Self { definition: Some(definition.into()), approvals }
    }
}

impl TryFrom<proto::ApprovedSubnet> for ApprovedSubnet {
    type Error = WireError;

    fn try_from(proto::ApprovedSubnet { definition, approvals }: proto::ApprovedSubnet) -> Result<Self, WireError> {
        let definition = required("subnet.definition", definition)?.try_into()?;
        Ok(Self { definition, approvals: proto::PreprocessingValidation { approvals }.try_into()? })
    }
}

impl From<Signed<PendingRequests>> for proto::PendingRequests {
    fn from(Signed { message, signature }: Signed<PendingRequests>) -> Self {
        Self {
            gateway: bytes(message.gateway),
            subnet: bytes(message.subnet),
            requests: message.requests.iter().map(bytes).collect(),
            sequence: message.sequence,
            expires_at: message.expires_at,
            signature: bytes(signature.as_bytes()),
        }
    }
}

impl TryFrom<proto::PendingRequests> for Signed<PendingRequests> {
    type Error = WireError;

    fn try_from(pending: proto::PendingRequests) -> Result<Self, WireError> {
        let requests = pending.requests.iter().map(|request| hash("pending.requests", request));
        let message = PendingRequests {
            gateway: address("pending.gateway", &pending.gateway)?,
            subnet: hash("pending.subnet", &pending.subnet)?,
            requests: requests.collect::<Result<_, WireError>>()?,
            sequence: pending.sequence,
            expires_at: pending.expires_at,
        };
        Ok(Self { message, signature: signature("pending.signature", &pending.signature)? })
    }
}

impl From<PreprocessingRequest> for proto::InferenceRequest {
    fn from(request: PreprocessingRequest) -> Self {
        Self { quote: Some(request.quote.into()), ..request.request.into() }
    }
}

impl TryFrom<proto::InferenceRequest> for PreprocessingRequest {
    type Error = WireError;

    fn try_from(mut request: proto::InferenceRequest) -> Result<Self, WireError> {
        let quote = required("request.quote", request.quote.take())?.try_into()?;
        Ok(Self { request: request.try_into()?, quote })
    }
}

impl From<CompletionRequest> for proto::CompletionRequest {
    fn from(request: CompletionRequest) -> Self {
        Self {
            request: Some(request.request.into()),
            quote: Some(request.quote.into()),
            delivery: Some(request.delivery.into()),
            preprocessing: request.preprocessing.map(Into::into),
            voucher: request.voucher.map(Into::into),
            authorization: bytes(request.authorization.signature.as_bytes()),
            author: bytes(request.authorization.message.author),
            dispatches: request.dispatches.into_iter().map(Into::into).collect(),
            acknowledgement: request.acknowledgement.map(Into::into),
        }
    }
}

impl TryFrom<proto::CompletionRequest> for CompletionRequest {
    type Error = WireError;

    fn try_from(request: proto::CompletionRequest) -> Result<Self, WireError> {
        let quote: Quote = required("quote", request.quote)?.try_into()?;
        let delivery: Delivery = required("delivery", request.delivery)?.try_into()?;
        // What is wrong with a delivery, its validation says.
        let completion = delivery.completion(&quote).map(|completion| completion.struct_hash()).unwrap_or_default();
        let message = CompletionAuthorization { author: address("author", &request.author)?, completion };
        let authorization = Signed { message, signature: signature("authorization", &request.authorization)? };
        let voucher = request.voucher.map(TryInto::try_into).transpose()?;
        let preprocessing = request.preprocessing.map(TryInto::try_into).transpose()?;
        let acknowledgement = request.acknowledgement.map(TryInto::try_into).transpose()?;
        let (request, dispatches) = (required("request", request.request)?.try_into()?, dispatches(request.dispatches)?);
        Ok(Self { request, quote, delivery, preprocessing, voucher, dispatches, acknowledgement, authorization })
    }
}

impl From<&BatchRequest> for proto::SettlementBatch {
    fn from(BatchRequest { batch, committees, request }: &BatchRequest) -> Self {
        let entry = |entry: &BatchEntry| proto::BatchEntry {
            quote: Some(entry.quote.clone().into()),
            delivery: Some(entry.delivery.clone().into()),
            certificate: Some(entry.certificate.clone().into()),
            salt: bytes(entry.payment.terms.salt),
            cumulative: amount_bytes(entry.payment.voucher.cumulative),
            voucher_signature: bytes(entry.payment.signature.as_bytes()),
            number: entry.payment.voucher.number,
        };
        let charge = |charge: &ChannelCharge| proto::ChannelCharge {
            channel: bytes(charge.channel),
            settled_before: amount_bytes(charge.settled_before),
            settled_after: amount_bytes(charge.settled_after),
            base: charge.numbers.base,
            over: amount_bytes(Amount::new(charge.numbers.over)),
        };
        let committee = |committee: &Committee| proto::Committee {
            threshold: committee.threshold.into(),
            members: committee.members.iter().map(bytes).collect(),
        };
        let payout =
            |payout: &ChannelPayout| proto::ChannelPayout { account: bytes(payout.account), amount: amount_bytes(payout.amount) };
        Self {
            entries: batch.entries.iter().map(entry).collect(),
            root: bytes(batch.settlement.root),
            charges: batch.settlement.charges.iter().map(charge).collect(),
            payouts: batch.settlement.payouts.iter().map(payout).collect(),
            gateway: bytes(request.message.gateway),
            signature: bytes(request.signature.as_bytes()),
            committees: committees.iter().map(committee).collect(),
        }
    }
}

impl TryFrom<proto::SettlementBatch> for BatchRequest {
    type Error = WireError;

    fn try_from(batch: proto::SettlementBatch) -> Result<Self, WireError> {
        let entry = |entry: proto::BatchEntry| {
            let quote: Quote = required("entries.quote", entry.quote)?.try_into()?;
            let salt = hash("entries.salt", &entry.salt)?;
            let terms = ChannelParams { client: quote.client, gateway: quote.gateway, salt };
            let voucher = Voucher::new(&terms, &quote, entry.number, amount("entries.cumulative", &entry.cumulative)?);
            let signature = signature("entries.voucher_signature", &entry.voucher_signature)?;
            Ok(BatchEntry {
                delivery: required("entries.delivery", entry.delivery)?.try_into()?,
                certificate: required("entries.certificate", entry.certificate)?.try_into()?,
                payment: SignedVoucher { terms, voucher, signature },
                quote,
            })
        };
        let charge = |charge: proto::ChannelCharge| {
            Ok(ChannelCharge {
                channel: hash("charges.channel", &charge.channel)?,
                settled_before: amount("charges.settled_before", &charge.settled_before)?,
                settled_after: amount("charges.settled_after", &charge.settled_after)?,
                numbers: Numbers { base: charge.base, over: amount("charges.over", &charge.over)?.units() },
            })
        };
        let committee = |committee: proto::Committee| {
            let member = |member: &Bytes| address("committees.members", member);
            Ok(Committee {
                threshold: small("committees.threshold", committee.threshold)?,
                members: committee.members.iter().map(member).collect::<Result<_, WireError>>()?,
            })
        };
        let committees = batch.committees.into_iter().map(committee).collect::<Result<_, WireError>>()?;
        let payout = |payout: proto::ChannelPayout| {
            Ok(ChannelPayout {
                account: address("payouts.account", &payout.account)?,
                amount: amount("payouts.amount", &payout.amount)?,
            })
        };
        let settlement = ChannelSettlement {
            root: hash("root", &batch.root)?,
            count: batch.entries.len() as u64,
            charges: batch.charges.into_iter().map(charge).collect::<Result<_, WireError>>()?,
            payouts: batch.payouts.into_iter().map(payout).collect::<Result<_, WireError>>()?,
        };
        let message = SettlementRequest { gateway: address("gateway", &batch.gateway)?, settlement: settlement.struct_hash() };
        let request = Signed { message, signature: signature("signature", &batch.signature)? };
        let entries = batch.entries.into_iter().map(entry).collect::<Result<_, WireError>>()?;
        Ok(Self { batch: Batch { entries, settlement }, committees, request })
    }
}
