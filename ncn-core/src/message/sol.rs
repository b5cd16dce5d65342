//! The structs as Solidity defines them, and how each Rust message becomes one.

use alloy_sol_types::SolStruct;

/// Generated from the contracts' own source, so that the two sides cannot disagree about a field.
#[allow(missing_docs, unreachable_pub, clippy::pedantic)]
mod generated {
    alloy_sol_types::sol!("../contracts/src/Messages.sol");
}

/// A message's Solidity face. Sealed: the set of messages is the protocol.
#[allow(unreachable_pub)]
pub trait ToSol {
    #[doc(hidden)]
    type Sol: SolStruct;
    #[doc(hidden)]
    fn to_sol(&self) -> Self::Sol;
}

impl ToSol for super::InferenceRequest {
    type Sol = generated::InferenceRequest;

    fn to_sol(&self) -> Self::Sol {
        generated::InferenceRequest {
            client: self.client,
            subnet: self.subnet,
            modelDigest: self.model_digest,
            inputHash: self.input_hash,
            parameters: self.parameters.clone(),
            maxPrice: self.max_price.units(),
            deadline: self.deadline,
            nonce: self.nonce,
            draw: self.draw,
        }
    }
}

impl ToSol for super::Quote {
    type Sol = generated::Quote;

    fn to_sol(&self) -> Self::Sol {
        generated::Quote {
            requestId: self.request_id,
            client: self.client,
            gateway: self.gateway,
            compute: self.compute,
            modelDigest: self.model_digest,
            basePrice: self.price.base.units(),
            inputPrice: self.price.input.price.units(),
            outputPrice: self.price.output.price.units(),
            inputUnit: self.price.input.unit as u8,
            outputUnit: self.price.output.unit as u8,
            maxInputUnits: self.max_units.input,
            maxOutputUnits: self.max_units.output,
            total: self.total.units(),
            gatewayBps: self.split.gateway_bps,
            validatorsBps: self.split.validators_bps,
            treasuryBps: self.split.treasury_bps,
            expiry: self.expiry,
            trustRoot: self.trust_root,
            epoch: self.epoch,
            salt: self.salt,
            committee: self.committee,
        }
    }
}

impl ToSol for super::Committee {
    type Sol = generated::Committee;

    fn to_sol(&self) -> Self::Sol {
        generated::Committee { threshold: self.threshold, members: self.members.clone() }
    }
}

impl ToSol for super::InferenceResult {
    type Sol = generated::InferenceResult;

    fn to_sol(&self) -> Self::Sol {
        generated::InferenceResult {
            requestId: self.request_id,
            compute: self.compute,
            modelDigest: self.model_digest,
            inputHash: self.input_hash,
            outputHash: self.output_hash,
            outputBytes: self.output_bytes,
            parts: self.parts,
            chain: self.chain,
            resumedFrom: self.resumed_from,
            continuation: self.continuation.map_or(0, |continuation| continuation as u8),
            inputUnits: self.usage.input_units,
            outputUnits: self.usage.output_units,
            durationMicros: self.usage.duration_micros,
            confinement: self.confinement as u8,
            finish: self.finish.map_or(0, |finish| finish as u8),
        }
    }
}

impl ToSol for super::Contribution {
    type Sol = generated::Contribution;

    fn to_sol(&self) -> Self::Sol {
        generated::Contribution { compute: self.compute, result: self.result, cost: self.cost.units() }
    }
}

impl ToSol for super::Completion {
    type Sol = generated::Completion;

    fn to_sol(&self) -> Self::Sol {
        generated::Completion {
            requestId: self.request_id,
            quote: self.quote,
            finish: self.finish as u8,
            contributions: self.contributions.iter().map(ToSol::to_sol).collect(),
        }
    }
}

impl ToSol for super::CompletionAuthorization {
    type Sol = generated::CompletionAuthorization;

    fn to_sol(&self) -> Self::Sol {
        generated::CompletionAuthorization { author: self.author, completion: self.completion }
    }
}

impl ToSol for super::Dispatch {
    type Sol = generated::Dispatch;

    fn to_sol(&self) -> Self::Sol {
        generated::Dispatch {
            gateway: self.gateway,
            compute: self.compute,
            quote: self.quote,
            attempt: self.attempt,
            resumedFrom: self.resumed_from,
        }
    }
}

impl ToSol for super::Acknowledgement {
    type Sol = generated::Acknowledgement;

    fn to_sol(&self) -> Self::Sol {
        generated::Acknowledgement { gateway: self.gateway, result: self.result }
    }
}

impl ToSol for super::ReceiptSeal {
    type Sol = generated::ReceiptSeal;

    fn to_sol(&self) -> Self::Sol {
        generated::ReceiptSeal {
            requestId: self.request_id,
            quote: self.quote,
            preprocessing: self.preprocessing,
            completion: self.completion,
            results: self.results,
            approvals: self.approvals,
            paymentKind: self.payment_kind as u8,
            payment: self.payment,
            settlement: self.settlement,
            issuedAt: self.issued_at,
        }
    }
}

impl ToSol for super::TaskCapability {
    type Sol = generated::TaskAccess;

    fn to_sol(&self) -> Self::Sol {
        generated::TaskAccess { client: self.client, requestId: self.request_id, purpose: self.scope as u8 }
    }
}

impl ToSol for super::NodeRecord {
    type Sol = generated::NodeRecord;

    fn to_sol(&self) -> Self::Sol {
        generated::NodeRecord {
            node: self.node,
            role: self.role as u8,
            subnet: self.subnet,
            endpoint: self.endpoint.clone(),
            models: self.models.clone(),
            confinement: self.confinement as u8,
            sequence: self.sequence,
            expiresAt: self.expires_at,
        }
    }
}

impl ToSol for super::Heartbeat {
    type Sol = generated::Heartbeat;

    fn to_sol(&self) -> Self::Sol {
        generated::Heartbeat { node: self.node, sequence: self.sequence, sentAt: self.sent_at }
    }
}

impl ToSol for crate::mempool::PendingRequests {
    type Sol = generated::PendingRequests;

    fn to_sol(&self) -> Self::Sol {
        generated::PendingRequests {
            gateway: self.gateway,
            subnet: self.subnet,
            requests: self.requests.clone(),
            sequence: self.sequence,
            expiresAt: self.expires_at,
        }
    }
}

impl ToSol for super::Deregistration {
    type Sol = generated::Departure;

    fn to_sol(&self) -> Self::Sol {
        generated::Departure { node: self.node, sequence: self.sequence }
    }
}

impl ToSol for super::SessionProof {
    type Sol = generated::Attachment;

    fn to_sol(&self) -> Self::Sol {
        generated::Attachment { node: self.node, gateway: self.gateway, challenge: self.challenge }
    }
}

impl ToSol for super::SubnetModel {
    type Sol = generated::SubnetModel;

    fn to_sol(&self) -> Self::Sol {
        generated::SubnetModel {
            name: self.name.clone(),
            digest: self.digest,
            basePrice: self.price.base.units(),
            inputPrice: self.price.input.price.units(),
            outputPrice: self.price.output.price.units(),
            inputUnit: self.price.input.unit as u8,
            outputUnit: self.price.output.unit as u8,
        }
    }
}

impl ToSol for super::Subnet {
    type Sol = generated::Subnet;

    fn to_sol(&self) -> Self::Sol {
        generated::Subnet {
            owner: self.owner,
            name: self.name.clone(),
            gateways: self.gateways.clone(),
            models: self.models.iter().map(ToSol::to_sol).collect(),
            gatewayBps: self.split.gateway_bps,
            validatorsBps: self.split.validators_bps,
            treasuryBps: self.split.treasury_bps,
            version: self.version,
        }
    }
}

impl ToSol for super::Voucher {
    type Sol = generated::Voucher;

    fn to_sol(&self) -> Self::Sol {
        generated::Voucher {
            channel: self.channel,
            requestId: self.request_id,
            quote: self.quote,
            committee: self.committee,
            number: self.number,
            amount: self.amount.units(),
            cumulative: self.cumulative.units(),
        }
    }
}

impl ToSol for super::SettlementLeaf {
    type Sol = generated::SettledCompletion;

    fn to_sol(&self) -> Self::Sol {
        generated::SettledCompletion {
            channel: self.channel,
            completion: self.completion,
            amount: self.amount.units(),
            resultSignatures: self.result_signatures,
        }
    }
}

impl ToSol for super::ChannelSettlement {
    type Sol = generated::ChannelSettlement;

    fn to_sol(&self) -> Self::Sol {
        let charge = |charge: &super::ChannelCharge| generated::ChannelCharge {
            channel: charge.channel,
            settledBefore: charge.settled_before.units(),
            settledAfter: charge.settled_after.units(),
            base: charge.numbers.base,
            over: charge.numbers.over,
        };
        let payout =
            |payout: &super::ChannelPayout| generated::ChannelPayout { account: payout.account, amount: payout.amount.units() };
        generated::ChannelSettlement {
            root: self.root,
            count: self.count,
            charges: self.charges.iter().map(charge).collect(),
            payouts: self.payouts.iter().map(payout).collect(),
        }
    }
}

impl ToSol for super::SettlementRequest {
    type Sol = generated::SettlementRequest;

    fn to_sol(&self) -> Self::Sol {
        generated::SettlementRequest { gateway: self.gateway, settlement: self.settlement }
    }
}

impl ToSol for super::ChannelClose {
    type Sol = generated::ChannelClose;

    fn to_sol(&self) -> Self::Sol {
        generated::ChannelClose { channel: self.channel, settled: self.settled.units() }
    }
}

impl ToSol for super::DowntimeReport {
    type Sol = generated::DowntimeReport;

    fn to_sol(&self) -> Self::Sol {
        generated::DowntimeReport { validator: self.validator, since: self.since, until: self.until }
    }
}
