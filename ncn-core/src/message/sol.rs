//! The structs as Solidity defines them, and how each Rust message becomes one.

use std::sync::LazyLock;

use alloy_primitives::{B256, keccak256};
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
    /// The hash of the struct's EIP-712 type.
    #[doc(hidden)]
    fn type_hash() -> B256;
    #[doc(hidden)]
    fn to_sol(&self) -> Self::Sol;
}

/// The Solidity face of a message, and the hash of its type: for a large struct, that takes as long as the hash of its fields.
macro_rules! sol_type {
    ($name:ident) => {
        type Sol = generated::$name;

        fn type_hash() -> B256 {
            static HASH: LazyLock<B256> = LazyLock::new(|| keccak256(generated::$name::eip712_encode_type().as_bytes()));
            *HASH
        }
    };
}

impl ToSol for super::InferenceRequest {
    sol_type!(InferenceRequest);

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
    sol_type!(Quote);

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
    sol_type!(Committee);

    fn to_sol(&self) -> Self::Sol {
        generated::Committee { threshold: self.threshold, members: self.members.clone() }
    }
}

impl ToSol for super::InferenceResult {
    sol_type!(InferenceResult);

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
    sol_type!(Contribution);

    fn to_sol(&self) -> Self::Sol {
        generated::Contribution { compute: self.compute, result: self.result, cost: self.cost.units() }
    }
}

impl ToSol for super::Completion {
    sol_type!(Completion);

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
    sol_type!(CompletionAuthorization);

    fn to_sol(&self) -> Self::Sol {
        generated::CompletionAuthorization { author: self.author, completion: self.completion }
    }
}

impl ToSol for super::Dispatch {
    sol_type!(Dispatch);

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
    sol_type!(Acknowledgement);

    fn to_sol(&self) -> Self::Sol {
        generated::Acknowledgement { gateway: self.gateway, result: self.result }
    }
}

impl ToSol for super::ReceiptSeal {
    sol_type!(ReceiptSeal);

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
    sol_type!(TaskAccess);

    fn to_sol(&self) -> Self::Sol {
        generated::TaskAccess { client: self.client, requestId: self.request_id, purpose: self.scope as u8 }
    }
}

impl ToSol for super::NodeRecord {
    sol_type!(NodeRecord);

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
    sol_type!(Heartbeat);

    fn to_sol(&self) -> Self::Sol {
        generated::Heartbeat { node: self.node, sequence: self.sequence, sentAt: self.sent_at }
    }
}

impl ToSol for crate::mempool::PendingRequests {
    sol_type!(PendingRequests);

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
    sol_type!(Departure);

    fn to_sol(&self) -> Self::Sol {
        generated::Departure { node: self.node, sequence: self.sequence }
    }
}

impl ToSol for super::SessionProof {
    sol_type!(Attachment);

    fn to_sol(&self) -> Self::Sol {
        generated::Attachment { node: self.node, gateway: self.gateway, challenge: self.challenge }
    }
}

impl ToSol for super::SubnetModel {
    sol_type!(SubnetModel);

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
    sol_type!(Subnet);

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
    sol_type!(Voucher);

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
    sol_type!(SettledCompletion);

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
    sol_type!(ChannelSettlement);

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
    sol_type!(SettlementRequest);

    fn to_sol(&self) -> Self::Sol {
        generated::SettlementRequest { gateway: self.gateway, settlement: self.settlement }
    }
}

impl ToSol for super::ChannelClose {
    sol_type!(ChannelClose);

    fn to_sol(&self) -> Self::Sol {
        generated::ChannelClose { channel: self.channel, settled: self.settled.units() }
    }
}

impl ToSol for super::DowntimeReport {
    sol_type!(DowntimeReport);

    fn to_sol(&self) -> Self::Sol {
        generated::DowntimeReport { validator: self.validator, since: self.since, until: self.until }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{Address, B256, U256};
    use alloy_sol_types::SolStruct as _;

    use super::*;
    use crate::{
        Completion, Contribution, Domain, FinishReason, Message as _,
        message::{Dispatch, Heartbeat},
    };

    fn library<T: ToSol>(message: &T, domain: &Domain) -> B256 {
        let domain = alloy_sol_types::Eip712Domain {
            name: Some("NCN".into()),
            version: Some("2".into()),
            chain_id: Some(U256::from(domain.chain_id)),
            verifying_contract: Some(domain.contract),
            salt: None,
        };
        message.to_sol().eip712_signing_hash(&domain)
    }

    #[test]
    fn digests_are_the_librarys_whatever_was_hashed_before() {
        let contribution =
            Contribution { compute: Address::repeat_byte(1), result: B256::repeat_byte(2), cost: crate::Amount::new(3) };
        let completion = Completion {
            request_id: B256::repeat_byte(4),
            quote: B256::repeat_byte(5),
            finish: FinishReason::Stop,
            contributions: vec![contribution; 2],
        };
        let heartbeat = Heartbeat { node: Address::repeat_byte(6), sequence: 7, sent_at: 8 };
        let dispatch = Dispatch {
            gateway: Address::repeat_byte(1),
            compute: Address::repeat_byte(2),
            quote: B256::repeat_byte(3),
            attempt: 1,
            resumed_from: B256::ZERO,
        };
        let one = Domain { chain_id: 1, contract: Address::repeat_byte(1) };
        let other_chain = Domain { chain_id: 2, ..one };
        let other_contract = Domain { contract: Address::repeat_byte(2), ..one };
        for domain in [one, one, other_chain, one, other_contract, other_contract] {
            assert_eq!(completion.digest(&domain), library(&completion, &domain));
            assert_eq!(heartbeat.digest(&domain), library(&heartbeat, &domain));
            assert_eq!(dispatch.digest(&domain), library(&dispatch, &domain));
        }
        assert_eq!(completion.struct_hash(), completion.to_sol().eip712_hash_struct());
    }
}
