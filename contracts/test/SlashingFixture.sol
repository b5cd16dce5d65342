// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Hashes} from "@openzeppelin/contracts/utils/cryptography/Hashes.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {MessageHash} from "../src/MessageHash.sol";
import {
    ChannelCharge,
    ChannelPayout,
    ChannelSettlement,
    Completion,
    DowntimeReport,
    InferenceResult,
    Quote,
    SettledCompletion
} from "../src/Messages.sol";
import {PaymentChannel} from "../src/PaymentChannel.sol";
import {ISettlementDigest, Slashing} from "../src/Slashing.sol";
import {Deploy} from "./Deploy.sol";
import {Fixture} from "./Fixture.sol";

/// The network with its slasher, and what can be held against a validator.
abstract contract SlashingFixture is Fixture {
    /// A completion and what it names.
    struct Accusation {
        Quote quote;
        InferenceResult result;
        Completion completion;
    }

    /// One request of a settlement.
    struct Entry {
        ChannelSettlement settlement;
        SettledCompletion leaf;
        bytes32[] proof;
        Completion completion;
        InferenceResult result;
        bytes signature;
    }

    ISettlementDigest internal channel;
    Slashing internal slashing;

    function setUp() public virtual override {
        super.setUp();
        channel = ISettlementDigest(address(Deploy.channels(token, registry)));
        slashing = Deploy.slashing(registry, payment, channel);
        vm.prank(owner);
        registry.setSlasher(address(slashing));
    }

    function validatorAt(uint256 i) internal view returns (address) {
        return vm.addr(keys[i]);
    }

    function only(uint256 key) internal pure returns (uint256[] memory some) {
        some = new uint256[](1);
        some[0] = key;
    }

    /// Every signer of the two lists, ascending.
    function merge(uint256[] memory some, uint256[] memory others) internal pure returns (uint256[] memory all) {
        all = new uint256[](some.length + others.length);
        for (uint256 i = 0; i < all.length; ++i) {
            all[i] = i < some.length ? some[i] : others[i - some.length];
            for (uint256 j = i; j > 0 && vm.addr(all[j - 1]) > vm.addr(all[j]); --j) {
                (all[j - 1], all[j]) = (all[j], all[j - 1]);
            }
        }
    }

    function strangers(uint256 count) internal returns (uint256[] memory some) {
        for (uint256 i = 0; i < count; ++i) {
            string memory name = string.concat("stranger ", string(abi.encodePacked(bytes1(uint8(0x41 + i)))));
            some = merge(some, only(keyOf(name)));
        }
    }

    function stake(uint256 key, uint256 amount) internal {
        give(vm.addr(key), amount, address(registry));
        vm.prank(vm.addr(key));
        registry.registerValidator(amount);
    }

    function unstake(address validator) internal {
        vm.prank(validator);
        registry.requestUnstake();
    }

    function typedDataHash(bytes32 hash) internal view returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(payment.domainSeparator(), hash);
    }

    // Completions

    function newAccusation() internal view returns (Accusation memory accusation) {
        accusation.quote = newQuote();
        accusation.result = InferenceResult({
            requestId: accusation.quote.requestId,
            compute: compute,
            modelDigest: accusation.quote.modelDigest,
            inputHash: keccak256("input"),
            outputHash: keccak256("output"),
            outputBytes: 40,
            parts: 5,
            chain: keccak256("chain"),
            resumedFrom: 0,
            continuation: 0,
            inputUnits: 10,
            outputUnits: 20,
            durationMicros: 30,
            confinement: 1,
            finish: STOP
        });
        accusation.completion.requestId = accusation.quote.requestId;
        accusation.completion.finish = STOP;
        accusation.completion.contributions = contributionOf(accusation.quote);
        link(accusation);
    }

    /// Makes the completion name its quote and result as they are now.
    function link(Accusation memory accusation) internal pure {
        accusation.completion.quote = keccak256(abi.encode(MessageHash.QUOTE, accusation.quote));
        accusation.completion.contributions[0].result = resultHash(accusation.result);
    }

    /// Another model ran than the one that was quoted.
    function invalidCompletion() internal view returns (Accusation memory accusation) {
        accusation = newAccusation();
        accusation.result.modelDigest = keccak256("cheaper model");
        link(accusation);
    }

    function resultHash(InferenceResult memory result) internal pure returns (bytes32) {
        return keccak256(abi.encode(MessageHash.INFERENCE_RESULT, result));
    }

    function digestOf(Accusation memory accusation) internal view returns (bytes32) {
        return payment.completionDigest(accusation.completion);
    }

    function accuse(Accusation memory accusation, bytes memory approvals) internal {
        accuse(accusation, 0, approvals);
    }

    /// By the result of the contribution with this index.
    function accuse(Accusation memory accusation, uint256 index, bytes memory approvals) internal {
        slashing.slashInvalidResult(accusation.quote, accusation.result, accusation.completion, index, approvals);
    }

    function accuse(Accusation memory accusation, uint256[] memory signers) internal {
        accuse(accusation, approve(digestOf(accusation), signers));
    }

    // Settlements

    /// Four requests, of which the second is `signature` over a result that is fine.
    function newEntry(bytes memory signature) internal view returns (Entry memory entry) {
        Accusation memory accusation = newAccusation();
        (entry.completion, entry.result) = (accusation.completion, accusation.result);
        entry.signature = signature;
        entry.leaf = SettledCompletion({
            channel: keccak256("channel"),
            completion: hashOf(entry.completion),
            amount: 10 ether,
            resultSignatures: keccak256(signature)
        });
        entry.proof = new bytes32[](2);
        entry.proof[0] = keccak256("first leaf");
        entry.proof[1] = Hashes.commutativeKeccak256(keccak256("third leaf"), keccak256("fourth leaf"));
        entry.settlement.count = 4;
        entry.settlement.charges = new ChannelCharge[](1);
        entry.settlement.charges[0] = ChannelCharge(entry.leaf.channel, 0, 40 ether, 4, 0);
        entry.settlement.payouts = new ChannelPayout[](1);
        entry.settlement.payouts[0] = ChannelPayout(compute, 40 ether);
        plant(entry);
    }

    /// Makes the settlement's root the one of the leaf as it is now.
    function plant(Entry memory entry) internal pure {
        bytes32 node = leafHash(entry.leaf);
        for (uint256 i = 0; i < entry.proof.length; ++i) {
            node = Hashes.commutativeKeccak256(node, entry.proof[i]);
        }
        entry.settlement.root = node;
    }

    function leafHash(SettledCompletion memory leaf) internal pure returns (bytes32) {
        return keccak256(abi.encode(MessageHash.SETTLED_COMPLETION, leaf));
    }

    /// One whose result somebody else signed than the node that is paid for it.
    function invalidEntry() internal returns (Entry memory) {
        return newEntry(resultSignature(keyOf("impostor")));
    }

    function resultSignature(uint256 key) internal view returns (bytes memory) {
        return approve(typedDataHash(resultHash(newAccusation().result)), key);
    }

    function digestOf(Entry memory entry) internal view returns (bytes32) {
        return channel.settlementDigest(entry.settlement);
    }

    function accuse(Entry memory entry, bytes memory approvals) internal {
        slashing.slashInvalidSignature(
            entry.settlement, approvals, entry.leaf, entry.proof, entry.completion, entry.result, 0, entry.signature
        );
    }

    function accuse(Entry memory entry, uint256[] memory signers) internal {
        accuse(entry, approve(digestOf(entry), signers));
    }

    // Downtimes

    /// The validator with the highest address was silent for the last two days.
    function newReport() internal view returns (DowntimeReport memory) {
        return DowntimeReport({
            validator: validatorAt(4), since: uint64(block.timestamp - 2 days), until: uint64(block.timestamp)
        });
    }

    function digestOf(DowntimeReport memory downtime) internal view returns (bytes32) {
        return typedDataHash(keccak256(abi.encode(MessageHash.DOWNTIME_REPORT, downtime)));
    }

    function report(DowntimeReport memory downtime, bytes memory approvals) internal {
        slashing.slashDowntime(downtime, approvals);
    }

    function report(DowntimeReport memory downtime) internal {
        report(downtime, approve(digestOf(downtime), first(3)));
    }

    function refuseReport(
        DowntimeReport memory downtime,
        uint256[] memory signers,
        bytes4 selector,
        bytes memory fields
    ) internal {
        bytes memory approvals = approve(digestOf(downtime), signers);
        expectError(selector, fields);
        report(downtime, approvals);
    }

    function refuseReport(DowntimeReport memory downtime, bytes4 selector, bytes memory fields) internal {
        refuseReport(downtime, first(3), selector, fields);
    }

    /// The registry allows no report of this time.
    function refuseTime(DowntimeReport memory downtime) internal {
        (uint64 since, uint64 until) = registry.accountableTime(downtime.validator);
        refuseReport(downtime, Slashing.DowntimeNotAccountable.selector, abi.encode(since, until));
    }
}
