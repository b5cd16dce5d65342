// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {
    Acknowledgement,
    Attachment,
    ChannelCharge,
    ChannelClose,
    ChannelPayout,
    ChannelSettlement,
    Committee,
    Completion,
    CompletionAuthorization,
    Contribution,
    Departure,
    Dispatch,
    DowntimeReport,
    Heartbeat,
    InferenceRequest,
    InferenceResult,
    NodeRecord,
    PendingRequests,
    Quote,
    ReceiptSeal,
    SettledCompletion,
    SettlementRequest,
    Subnet,
    SubnetModel,
    TaskAccess,
    Voucher
} from "./Messages.sol";

// That of every domain under which messages are signed.
string constant PROTOCOL_VERSION = "2";

/// @title The EIP-712 struct hash of every message in Messages.sol.
/// @notice The type strings repeat the structs by hand, because Solidity cannot derive them; the tests read Messages.sol and
/// compare, so a field that changes there and not here is noticed.
/// @dev Messages that reach a contract in a transaction are taken from calldata.
/// A struct without dynamic members is encoded in one go: its ABI encoding is its EIP-712 encoding.
library MessageHash {
    bytes32 internal constant INFERENCE_REQUEST = keccak256(
        "InferenceRequest(address client,bytes32 subnet,bytes32 modelDigest,bytes32 inputHash,string parameters,uint128 maxPrice,uint64 deadline,bytes32 nonce,bytes32 draw)"
    );
    bytes32 internal constant QUOTE = keccak256(
        "Quote(bytes32 requestId,address client,address gateway,address compute,bytes32 modelDigest,uint128 basePrice,uint128 inputPrice,uint128 outputPrice,uint8 inputUnit,uint8 outputUnit,uint64 maxInputUnits,uint64 maxOutputUnits,uint128 total,uint16 gatewayBps,uint16 validatorsBps,uint16 treasuryBps,uint64 expiry,bytes32 trustRoot,uint64 epoch,bytes32 salt,bytes32 committee)"
    );
    bytes32 internal constant COMMITTEE = keccak256("Committee(uint16 threshold,address[] members)");
    bytes32 internal constant INFERENCE_RESULT = keccak256(
        "InferenceResult(bytes32 requestId,address compute,bytes32 modelDigest,bytes32 inputHash,bytes32 outputHash,uint64 outputBytes,uint64 parts,bytes32 chain,bytes32 resumedFrom,uint8 continuation,uint64 inputUnits,uint64 outputUnits,uint64 durationMicros,uint8 confinement,uint8 finish)"
    );
    bytes32 internal constant CONTRIBUTION = keccak256("Contribution(address compute,bytes32 result,uint128 cost)");
    bytes32 internal constant COMPLETION = keccak256(
        "Completion(bytes32 requestId,bytes32 quote,uint8 finish,Contribution[] contributions)Contribution(address compute,bytes32 result,uint128 cost)"
    );
    bytes32 internal constant COMPLETION_AUTHORIZATION =
        keccak256("CompletionAuthorization(address author,bytes32 completion)");
    bytes32 internal constant DISPATCH =
        keccak256("Dispatch(address gateway,address compute,bytes32 quote,uint8 attempt,bytes32 resumedFrom)");
    bytes32 internal constant ACKNOWLEDGEMENT = keccak256("Acknowledgement(address gateway,bytes32 result)");
    bytes32 internal constant RECEIPT_SEAL = keccak256(
        "ReceiptSeal(bytes32 requestId,bytes32 quote,bytes32 preprocessing,bytes32 completion,bytes32 results,bytes32 approvals,uint8 paymentKind,bytes32 payment,bytes32 settlement,uint64 issuedAt)"
    );
    bytes32 internal constant TASK_ACCESS = keccak256("TaskAccess(address client,bytes32 requestId,uint8 purpose)");
    bytes32 internal constant NODE_RECORD = keccak256(
        "NodeRecord(address node,uint8 role,bytes32 subnet,string endpoint,bytes32[] models,uint8 confinement,uint64 sequence,uint64 expiresAt)"
    );
    bytes32 internal constant HEARTBEAT = keccak256("Heartbeat(address node,uint64 sequence,uint64 sentAt)");
    bytes32 internal constant PENDING_REQUESTS = keccak256(
        "PendingRequests(address gateway,bytes32 subnet,bytes32[] requests,uint64 sequence,uint64 expiresAt)"
    );
    bytes32 internal constant DEPARTURE = keccak256("Departure(address node,uint64 sequence)");
    bytes32 internal constant ATTACHMENT = keccak256("Attachment(address node,address gateway,bytes32 challenge)");
    bytes32 internal constant SUBNET_MODEL = keccak256(
        "SubnetModel(string name,bytes32 digest,uint128 basePrice,uint128 inputPrice,uint128 outputPrice,uint8 inputUnit,uint8 outputUnit)"
    );
    bytes32 internal constant SUBNET = keccak256(
        "Subnet(address owner,string name,address[] gateways,SubnetModel[] models,uint16 gatewayBps,uint16 validatorsBps,uint16 treasuryBps,uint64 version)SubnetModel(string name,bytes32 digest,uint128 basePrice,uint128 inputPrice,uint128 outputPrice,uint8 inputUnit,uint8 outputUnit)"
    );
    bytes32 internal constant VOUCHER = keccak256(
        "Voucher(bytes32 channel,bytes32 requestId,bytes32 quote,bytes32 committee,uint64 number,uint128 amount,uint128 cumulative)"
    );
    bytes32 internal constant SETTLED_COMPLETION =
        keccak256("SettledCompletion(bytes32 channel,bytes32 completion,uint128 amount,bytes32 resultSignatures)");
    bytes32 internal constant CHANNEL_CHARGE =
        keccak256("ChannelCharge(bytes32 channel,uint128 settledBefore,uint128 settledAfter,uint64 base,uint128 over)");
    bytes32 internal constant CHANNEL_PAYOUT = keccak256("ChannelPayout(address account,uint128 amount)");
    bytes32 internal constant CHANNEL_SETTLEMENT = keccak256(
        "ChannelSettlement(bytes32 root,uint64 count,ChannelCharge[] charges,ChannelPayout[] payouts)ChannelCharge(bytes32 channel,uint128 settledBefore,uint128 settledAfter,uint64 base,uint128 over)ChannelPayout(address account,uint128 amount)"
    );
    bytes32 internal constant SETTLEMENT_REQUEST = keccak256("SettlementRequest(address gateway,bytes32 settlement)");
    bytes32 internal constant CHANNEL_CLOSE = keccak256("ChannelClose(bytes32 channel,uint128 settled)");
    bytes32 internal constant DOWNTIME_REPORT =
        keccak256("DowntimeReport(address validator,uint64 since,uint64 until)");

    function hash(InferenceRequest calldata request) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                INFERENCE_REQUEST,
                request.client,
                request.subnet,
                request.modelDigest,
                request.inputHash,
                keccak256(bytes(request.parameters)),
                request.maxPrice,
                request.deadline,
                request.nonce,
                request.draw
            )
        );
    }

    function hash(Quote calldata quote) internal pure returns (bytes32) {
        return keccak256(abi.encode(QUOTE, quote));
    }

    function hash(Committee calldata committee) internal pure returns (bytes32) {
        return keccak256(abi.encode(COMMITTEE, committee.threshold, keccak256(abi.encodePacked(committee.members))));
    }

    function hash(InferenceResult calldata result) internal pure returns (bytes32) {
        return keccak256(abi.encode(INFERENCE_RESULT, result));
    }

    function hash(Contribution calldata contribution) internal pure returns (bytes32) {
        return keccak256(abi.encode(CONTRIBUTION, contribution));
    }

    function hash(Completion calldata completion) internal pure returns (bytes32) {
        return completionHash(completion.requestId, completion.quote, completion.finish, completion.contributions);
    }

    /// @notice The hash of a {Completion} of these members, for a contract that puts it together.
    function completionHash(bytes32 requestId, bytes32 quote, uint8 finish, Contribution[] calldata contributions)
        internal
        pure
        returns (bytes32)
    {
        bytes32[] memory hashes = new bytes32[](contributions.length);
        for (uint256 i = 0; i < hashes.length; ++i) {
            hashes[i] = hash(contributions[i]);
        }
        return keccak256(abi.encode(COMPLETION, requestId, quote, finish, keccak256(abi.encodePacked(hashes))));
    }

    function hash(CompletionAuthorization calldata authorization) internal pure returns (bytes32) {
        return keccak256(abi.encode(COMPLETION_AUTHORIZATION, authorization));
    }

    function hash(Dispatch calldata dispatch) internal pure returns (bytes32) {
        return keccak256(abi.encode(DISPATCH, dispatch));
    }

    function hash(Acknowledgement calldata acknowledgement) internal pure returns (bytes32) {
        return keccak256(abi.encode(ACKNOWLEDGEMENT, acknowledgement));
    }

    function hash(ReceiptSeal calldata seal) internal pure returns (bytes32) {
        return keccak256(abi.encode(RECEIPT_SEAL, seal));
    }

    function hash(TaskAccess memory access) internal pure returns (bytes32) {
        return keccak256(abi.encode(TASK_ACCESS, access));
    }

    function hash(NodeRecord calldata record) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                NODE_RECORD,
                record.node,
                record.role,
                record.subnet,
                keccak256(bytes(record.endpoint)),
                keccak256(abi.encodePacked(record.models)),
                record.confinement,
                record.sequence,
                record.expiresAt
            )
        );
    }

    function hash(Heartbeat calldata heartbeat) internal pure returns (bytes32) {
        return keccak256(abi.encode(HEARTBEAT, heartbeat));
    }

    function hash(PendingRequests calldata pending) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                PENDING_REQUESTS,
                pending.gateway,
                pending.subnet,
                keccak256(abi.encodePacked(pending.requests)),
                pending.sequence,
                pending.expiresAt
            )
        );
    }

    function hash(Departure calldata departure) internal pure returns (bytes32) {
        return keccak256(abi.encode(DEPARTURE, departure));
    }

    function hash(Attachment calldata attachment) internal pure returns (bytes32) {
        return keccak256(abi.encode(ATTACHMENT, attachment));
    }

    function hash(SubnetModel calldata model) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                SUBNET_MODEL,
                keccak256(bytes(model.name)),
                model.digest,
                model.basePrice,
                model.inputPrice,
                model.outputPrice,
                model.inputUnit,
                model.outputUnit
            )
        );
    }

    function hash(Subnet calldata subnet) internal pure returns (bytes32) {
        bytes32[] memory models = new bytes32[](subnet.models.length);
        for (uint256 i = 0; i < models.length; ++i) {
            models[i] = hash(subnet.models[i]);
        }
        return keccak256(
            abi.encode(
                SUBNET,
                subnet.owner,
                keccak256(bytes(subnet.name)),
                keccak256(abi.encodePacked(subnet.gateways)),
                keccak256(abi.encodePacked(models)),
                subnet.gatewayBps,
                subnet.validatorsBps,
                subnet.treasuryBps,
                subnet.version
            )
        );
    }

    function hash(Voucher calldata voucher) internal pure returns (bytes32) {
        return keccak256(abi.encode(VOUCHER, voucher));
    }

    function hash(SettledCompletion calldata settled) internal pure returns (bytes32) {
        return keccak256(abi.encode(SETTLED_COMPLETION, settled));
    }

    function hash(ChannelCharge calldata charge) internal pure returns (bytes32) {
        return keccak256(abi.encode(CHANNEL_CHARGE, charge));
    }

    function hash(ChannelPayout calldata payout) internal pure returns (bytes32) {
        return keccak256(abi.encode(CHANNEL_PAYOUT, payout));
    }

    function hash(ChannelSettlement calldata settlement) internal pure returns (bytes32) {
        bytes32[] memory charges = new bytes32[](settlement.charges.length);
        for (uint256 i = 0; i < charges.length; ++i) {
            charges[i] = hash(settlement.charges[i]);
        }
        bytes32[] memory payouts = new bytes32[](settlement.payouts.length);
        for (uint256 i = 0; i < payouts.length; ++i) {
            payouts[i] = hash(settlement.payouts[i]);
        }
        return keccak256(
            abi.encode(
                CHANNEL_SETTLEMENT,
                settlement.root,
                settlement.count,
                keccak256(abi.encodePacked(charges)),
                keccak256(abi.encodePacked(payouts))
            )
        );
    }

    function hash(SettlementRequest calldata request) internal pure returns (bytes32) {
        return keccak256(abi.encode(SETTLEMENT_REQUEST, request));
    }

    function hash(ChannelClose memory close) internal pure returns (bytes32) {
        return keccak256(abi.encode(CHANNEL_CLOSE, close));
    }

    function hash(DowntimeReport calldata report) internal pure returns (bytes32) {
        return keccak256(abi.encode(DOWNTIME_REPORT, report));
    }
}
