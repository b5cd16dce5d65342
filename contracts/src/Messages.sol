// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

// Everything that is signed on the network, as EIP-712 structs under the domain
// (name "NCN", version "1", chainId, verifyingContract = InferencePayment).
//
// This file is the one definition: the contracts import it, and ncn-core generates its Rust types from it.
// Fields are part of every digest, in this order; changing one is a new protocol version.

/// A client's order. Its EIP-712 digest is the request id, so the same order submitted twice is one request.
struct InferenceRequest {
    address client;
    bytes32 subnet;
    bytes32 modelDigest;
    bytes32 inputHash;
    string parameters;
    uint128 maxPrice;
    uint64 deadline;
    bytes32 nonce;
}

/// What the validators approve in preprocessing and the client's escrow commits to: who serves, at what price, until when.
struct Quote {
    bytes32 requestId;
    address client;
    address gateway;
    address compute;
    bytes32 modelDigest;
    uint128 total;
    uint16 gatewayBps;
    uint16 validatorsBps;
    uint16 treasuryBps;
    uint64 expiry;
    bytes32 trustRoot;
}

/// A compute node's word on what it ran.
struct InferenceResult {
    bytes32 requestId;
    address compute;
    bytes32 modelDigest;
    bytes32 inputHash;
    bytes32 outputHash;
    uint64 inputUnits;
    uint64 outputUnits;
    uint64 durationMicros;
    uint8 confinement;
}

/// What the validators approve once a result exists; M of these release an escrow. `quote` and `result` are struct hashes.
/// `compute` is the node that is paid: the one of the quote, or the one that took the task over.
struct Completion {
    bytes32 requestId;
    bytes32 quote;
    bytes32 result;
    address compute;
}

/// A gateway's seal over a finished request. `quote` and `result` are struct hashes; `preprocessing` and `completion` are
/// keccak256 of the certificates' concatenated 65-byte signatures.
struct ReceiptSeal {
    bytes32 requestId;
    bytes32 quote;
    bytes32 result;
    bytes32 preprocessing;
    bytes32 completion;
    bytes32 paymentTransaction;
    bytes32 settlementTransaction;
    uint64 issuedAt;
}

/// A client's permission to do one thing with its own request: 1 to follow it, 2 to cancel it.
struct TaskAccess {
    address client;
    bytes32 requestId;
    uint8 purpose;
}

/// A node's announcement of itself: newer sequence wins, gone after `expiresAt`.
struct NodeRecord {
    address node;
    uint8 role;
    bytes32 subnet;
    string endpoint;
    bytes32[] models;
    uint8 confinement;
    uint64 sequence;
    uint64 expiresAt;
}

/// A node's sign of life between two records.
struct Heartbeat {
    address node;
    uint64 sequence;
    uint64 sentAt;
}

/// A node's wish to leave the network. `sequence` outranks the record it withdraws.
struct Departure {
    address node;
    uint64 sequence;
}

/// A compute node's answer to a gateway's challenge when it opens its stream.
struct Attachment {
    address node;
    address gateway;
    bytes32 challenge;
}

/// One model that a subnet offers, at its price for a request.
struct SubnetModel {
    string name;
    bytes32 digest;
    uint128 price;
}

/// A gateway's definition of its subnet. The subnet's id is keccak256(abi.encode(owner, name)); a newer version replaces an older one.
struct Subnet {
    address owner;
    string name;
    SubnetModel[] models;
    uint16 gatewayBps;
    uint16 validatorsBps;
    uint16 treasuryBps;
    uint64 version;
}
