// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {MessageHash, PROTOCOL_VERSION} from "../src/MessageHash.sol";
import "../src/Messages.sol";

/// @title Opens the struct hashes to callers off chain.
/// @notice Tests in other languages compare their hashes with these. It is deployed nowhere else.
contract MessageHarness {
    function hashInferenceRequest(InferenceRequest calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashQuote(Quote calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashCommittee(Committee calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashInferenceResult(InferenceResult calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashContribution(Contribution calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashCompletion(Completion calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashCompletionAuthorization(CompletionAuthorization calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashDispatch(Dispatch calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashAcknowledgement(Acknowledgement calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashReceiptSeal(ReceiptSeal calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashTaskAccess(TaskAccess calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashNodeRecord(NodeRecord calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashHeartbeat(Heartbeat calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashPendingRequests(PendingRequests calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashDeparture(Departure calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashAttachment(Attachment calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashSubnetModel(SubnetModel calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashSubnet(Subnet calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashVoucher(Voucher calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashSettledCompletion(SettledCompletion calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashChannelSettlement(ChannelSettlement calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashSettlementRequest(SettlementRequest calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashChannelClose(ChannelClose calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    function hashDowntimeReport(DowntimeReport calldata message) external pure returns (bytes32) {
        return MessageHash.hash(message);
    }

    /// @notice The digest that is signed, for a payment contract at `payment` on chain `chainId`.
    function digest(uint256 chainId, address payment, bytes32 structHash) external pure returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("NCN"),
                keccak256(bytes(PROTOCOL_VERSION)),
                chainId,
                payment
            )
        );
        return MessageHashUtils.toTypedDataHash(domain, structHash);
    }
}
