// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

// Everything that is signed on the network, as EIP-712 structs under the domain
// (name "NCN", version "2", chainId, verifyingContract = InferencePayment). Vouchers, settlements of channels and their closing have
// PaymentChannel as verifyingContract.
//
// This file is the one definition: the contracts import it, and ncn-core generates its Rust types from it.
// Fields are part of every digest, in this order; changing one is a new protocol version.

/// A client's order. Its EIP-712 digest is the request id, so the same order submitted twice is one request. `draw` is the hash of a salt
/// that the gateway has chosen and tells with its quote only: who judges depends on both sides' choices, and neither knew the other's.
struct InferenceRequest {
    address client;
    bytes32 subnet;
    bytes32 modelDigest;
    bytes32 inputHash;
    string parameters;
    uint128 maxPrice;
    uint64 deadline;
    bytes32 nonce;
    bytes32 draw;
}

/// What the validators approve in preprocessing and the client's escrow commits to: who serves, at what price, until when.
/// A request costs `basePrice` and, for each unit that it takes in and gives out, `inputPrice` and `outputPrice`. `total` is what it
/// costs with `maxInputUnits` and `maxOutputUnits`: the most that it can cost. What units are, `inputUnit` and `outputUnit` name.
/// `trustRoot` is the hash of the network as it was from the second `epoch` on, and `committee` the struct hash of the {Committee} that was
/// drawn of its validators by `salt` and request id: they judge the request from beginning to end, whoever joins or leaves.
struct Quote {
    bytes32 requestId;
    address client;
    address gateway;
    address compute;
    bytes32 modelDigest;
    uint128 basePrice;
    uint128 inputPrice;
    uint128 outputPrice;
    uint8 inputUnit;
    uint8 outputUnit;
    uint64 maxInputUnits;
    uint64 maxOutputUnits;
    uint128 total;
    uint16 gatewayBps;
    uint16 validatorsBps;
    uint16 treasuryBps;
    uint64 expiry;
    bytes32 trustRoot;
    uint64 epoch;
    bytes32 salt;
    bytes32 committee;
}

/// Who judges a request, and how many of them it takes. The members ascend.
struct Committee {
    uint16 threshold;
    address[] members;
}

/// A gateway's word that a compute node is to serve the request of this quote, `attempt` counting from 0: from the beginning, or after the
/// parts that `resumedFrom` is the chain of. Two of the same quote and attempt that differ are evidence against the gateway.
struct Dispatch {
    address gateway;
    address compute;
    bytes32 quote;
    uint8 attempt;
    bytes32 resumedFrom;
}

/// A gateway's word that it has got what a compute node's InferenceResult says, by its struct hash: what the node can claim by itself,
/// should its gateway not complete the request.
struct Acknowledgement {
    address gateway;
    bytes32 result;
}

/// A compute node's word on what it ran and gave: `outputHash` and `outputBytes` are those of the output so far, which came in `parts`
/// parts that `chain` is the hash of. `resumedFrom` is the chain of another node's parts that this one went on from, 0 where it began
/// itself; `continuation` says how: 1 it ran the request again and came to the same parts, 2 it took them as context, 0 it began itself.
/// Units are those of its own parts. `finish` says why there is no more; 0 while more is to come.
struct InferenceResult {
    bytes32 requestId;
    address compute;
    bytes32 modelDigest;
    bytes32 inputHash;
    bytes32 outputHash;
    uint64 outputBytes;
    uint64 parts;
    bytes32 chain;
    bytes32 resumedFrom;
    uint8 continuation;
    uint64 inputUnits;
    uint64 outputUnits;
    uint64 durationMicros;
    uint8 confinement;
    uint8 finish;
}

/// What one compute node gave of a request's output, and what that costs. `result` is a struct hash.
struct Contribution {
    address compute;
    bytes32 result;
    uint128 cost;
}

/// What the validators approve once a request was served; M of these release an escrow. `quote` is a struct hash. The first contribution
/// costs the base, its input units and its output units; each further one, of a node that took the task over, its output units.
struct Completion {
    bytes32 requestId;
    bytes32 quote;
    uint8 finish;
    Contribution[] contributions;
}

/// The word of `author` that this completion is the one it wants approved and paid. `completion` is the struct hash of the Completion:
/// validators judge only what the quote's own gateway brings, or, once that has given the request up or let it expire, the node that has
/// served last.
struct CompletionAuthorization {
    address author;
    bytes32 completion;
}

/// A gateway's seal over a finished request. `quote` and `completion` are struct hashes; `preprocessing` and `approvals` are keccak256 of
/// the concatenated 65-byte signatures of the certificates, and `results` of those of the compute nodes under their results. `paymentKind` is 1 for an escrow: `payment` and `settlement` are
/// its transactions; 2 for a channel: `payment` is the voucher's digest and `settlement` is zero, because a batch follows.
struct ReceiptSeal {
    bytes32 requestId;
    bytes32 quote;
    bytes32 preprocessing;
    bytes32 completion;
    bytes32 results;
    bytes32 approvals;
    uint8 paymentKind;
    bytes32 payment;
    bytes32 settlement;
    uint64 issuedAt;
}

/// A client's permission to do one thing with its own request: 1 to follow it, 2 to cancel it, 3 to
/// close the channel whose id stands in the request id's place.
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

/// A gateway's word on which requests it works on. A newer `sequence` replaces an older announcement.
struct PendingRequests {
    address gateway;
    bytes32 subnet;
    bytes32[] requests;
    uint64 sequence;
    uint64 expiresAt;
}

/// A compute node's answer to a gateway's challenge when it opens its stream.
struct Attachment {
    address node;
    address gateway;
    bytes32 challenge;
}

/// One model that a subnet offers, at its price: see {Quote}.
struct SubnetModel {
    string name;
    bytes32 digest;
    uint128 basePrice;
    uint128 inputPrice;
    uint128 outputPrice;
    uint8 inputUnit;
    uint8 outputUnit;
}

/// An owner's definition of its subnet, in which it and these gateways coordinate requests. The subnet's id is keccak256(abi.encode(owner, name)); a newer version replaces an older one.
struct Subnet {
    address owner;
    string name;
    address[] gateways;
    SubnetModel[] models;
    uint16 gatewayBps;
    uint16 validatorsBps;
    uint16 treasuryBps;
    uint64 version;
}

/// A client's promise to pay for one request out of its channel. `amount` is the most that this request may cost. `cumulative` is the
/// most that the channel may be charged altogether, from its opening on, with this request and all that are in flight with it.
/// `committee` is the quote's: a batch that charges the channel by this voucher takes its approval. The client counts the requests of the
/// channel by `number`, so that none is settled twice.
struct Voucher {
    bytes32 channel;
    bytes32 requestId;
    bytes32 quote;
    bytes32 committee;
    uint64 number;
    uint128 amount;
    uint128 cumulative;
}

/// One request of a batch: a leaf of the settlement's Merkle tree. `completion` is a struct hash, `amount` what it costs, and
/// `resultSignatures` keccak256 of the compute nodes' 65-byte signatures over their results, one after the other.
struct SettledCompletion {
    bytes32 channel;
    bytes32 completion;
    uint128 amount;
    bytes32 resultSignatures;
}

/// What a settlement takes out of one channel. `settledBefore` is what the channel had been charged before, so that the same
/// settlement cannot be made twice, and settlements of one channel follow each other. `base` and `over` say which of the vouchers' numbers
/// are over then, because their requests were settled or are given up: all below `base`, and `base + i` where bit i of `over` is set.
struct ChannelCharge {
    bytes32 channel;
    uint128 settledBefore;
    uint128 settledAfter;
    uint64 base;
    uint128 over;
}

/// What one account gets out of a settlement, for all its requests.
struct ChannelPayout {
    address account;
    uint128 amount;
}

/// What M of N validators approve before a batch of requests is settled. `root` is the Merkle root over `count` SettledCompletions.
struct ChannelSettlement {
    bytes32 root;
    uint64 count;
    ChannelCharge[] charges;
    ChannelPayout[] payouts;
}

/// A gateway's wish to have a batch settled: validators judge only what the gateway itself brings. `settlement` is the struct hash of
/// the ChannelSettlement.
struct SettlementRequest {
    address gateway;
    bytes32 settlement;
}

/// A gateway's word that it will charge a channel no more than `settled`: with it the client has the rest back at once.
struct ChannelClose {
    bytes32 channel;
    uint128 settled;
}

/// What M of N validators approve when another one did not answer from `since` to `until`.
struct DowntimeReport {
    address validator;
    uint64 since;
    uint64 until;
}
