// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {MessageHash} from "../src/MessageHash.sol";
import {Slashing} from "../src/Slashing.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {SlashingFixture} from "./SlashingFixture.sol";

contract InvalidSignatureTest is SlashingFixture {
    uint256 private constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    bytes32 private evidence;

    function setUp() public override {
        super.setUp();
        evidence = slashing.evidenceOf("INVALID_SIGNATURE", payment.completionDigest(invalidEntry().completion));
    }

    function test_VouchingCostsHalf() public {
        Entry memory entry = invalidEntry();
        bytes memory approvals = approve(digestOf(entry), first(1));
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(validatorAt(0), 50 ether, 50 ether, evidence);
        vm.expectEmit(address(slashing));
        emit Slashing.EvidenceAccepted(evidence, "INVALID_SIGNATURE", 1);
        vm.prank(accountOf("anyone"));
        accuse(entry, approvals);
        vm.assertEq(registry.stakeOf(validatorAt(0)), 50 ether);
        vm.assertEq(token.balanceOf(treasury), 50 ether);
        vm.assertTrue(slashing.punished(evidence, validatorAt(0)));
    }

    /// A whole certificate is the usual case of a settlement, and no more than that.
    function test_VouchingTogetherCostsHalfEach() public {
        Entry memory entry = invalidEntry();
        accuse(entry, first(3));
        for (uint256 i = 0; i < 3; ++i) {
            vm.assertEq(registry.stakeOf(validatorAt(i)), 50 ether);
        }
        vm.assertEq(token.balanceOf(treasury), 150 ether);
    }

    function test_LeavingOnesPayAndStrangersArePassedOver() public {
        Entry memory entry = invalidEntry();
        unstake(validatorAt(0));
        accuse(entry, merge(first(2), strangers(2)));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 50 ether);
        vm.assertEq(registry.stakeOf(validatorAt(1)), 50 ether);
        vm.assertEq(registry.withdrawableAt(validatorAt(0)), NOW + 1 + UNSTAKE_DELAY);
    }

    /// No signature at all, and every form of one that recovery does not take.
    function test_EveryInvalidSignature() public {
        uint256 key = keyOf("compute");
        bytes memory valid = resultSignature(key);
        bytes memory changed = bytes.concat(valid);
        changed[64] = bytes1(uint8(changed[64]) - 27);
        slashOne("", 0);
        slashOne(bytes.concat(valid, hex"00"), 1);
        slashOne(new bytes(65), 2);
        slashOne(changed, 3);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, typedDataHash(resultHash(newAccusation().result)));
        slashOne(abi.encodePacked(r, ORDER - uint256(s), v == 27 ? uint8(28) : uint8(27)), 4);
    }

    /// Signed by the right node, but for another chain.
    function test_ASignatureFromAnotherDomain() public {
        vm.chainId(CHAIN + 1);
        bytes memory signature = resultSignature(keyOf("compute"));
        vm.chainId(CHAIN);
        slashOne(signature, 0);
    }

    function slashOne(bytes memory signature, uint256 i) private {
        accuse(newEntry(signature), only(keys[i]));
        vm.assertEq(registry.stakeOf(validatorAt(i)), 50 ether);
    }

    function test_ABatchOfOne() public {
        Entry memory entry = invalidEntry();
        entry.proof = new bytes32[](0);
        entry.settlement.root = leafHash(entry.leaf);
        entry.settlement.count = 1;
        accuse(entry, first(1));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 50 ether);
    }

    /// A settlement that comes to nothing is approved again with the same requests.
    function test_OneCompletionIsPaidForOnce() public {
        Entry memory entry = invalidEntry();
        accuse(entry, first(2));
        entry.settlement.charges[0].settledBefore = 1 ether;
        bytes memory approvals = approve(digestOf(entry), first(2));
        expectError(Slashing.NothingToSlash.selector);
        accuse(entry, approvals);
        accuse(entry, first(3));
        vm.assertEq(token.balanceOf(treasury), 150 ether);
    }

    function test_TwoCompletionsAreTwoOffences() public {
        Entry memory entry = invalidEntry();
        accuse(entry, first(1));
        entry.completion.requestId = keccak256("another request");
        replant(entry);
        accuse(entry, first(1));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 25 ether);
    }

    function test_NothingToSlash() public {
        Entry memory entry = invalidEntry();
        bytes memory approvals = approve(digestOf(entry), strangers(3));
        expectError(Slashing.NothingToSlash.selector);
        accuse(entry, approvals);
        expectError(Slashing.NothingToSlash.selector);
        accuse(entry, "");
    }

    function test_RefusesAValidSignature() public {
        Entry memory entry = newEntry(resultSignature(keyOf("compute")));
        bytes memory approvals = approve(digestOf(entry), first(3));
        expectError(Slashing.ValidSignature.selector, abi.encode(compute));
        accuse(entry, approvals);
    }

    function test_RefusesAnotherSignatureThanSettled() public {
        Entry memory entry = invalidEntry();
        bytes memory approvals = approve(digestOf(entry), first(3));
        entry.signature[0] ^= 0x01;
        bytes memory fields = abi.encode(entry.leaf.resultSignatures, keccak256(entry.signature));
        expectError(Slashing.SignatureMismatch.selector, fields);
        accuse(entry, approvals);
    }

    function test_RefusesAnotherCompletionThanSettled() public {
        Entry memory entry = invalidEntry();
        bytes memory approvals = approve(digestOf(entry), first(3));
        bytes32 settled = entry.leaf.completion;
        entry.completion.contributions[0].compute = accountOf("another node");
        replant(entry);
        bytes32 presented = entry.leaf.completion;
        entry.leaf.completion = settled;
        plant(entry);
        expectError(Slashing.CompletionMismatch.selector, abi.encode(settled, presented));
        accuse(entry, approvals);
    }

    function test_RefusesAnotherResultThanCompleted() public {
        Entry memory entry = invalidEntry();
        bytes memory approvals = approve(digestOf(entry), first(3));
        entry.result.outputHash = keccak256("another output");
        bytes32 presented = resultHash(entry.result);
        expectError(Slashing.ResultMismatch.selector, abi.encode(entry.completion.contributions[0].result, presented));
        accuse(entry, approvals);
    }

    function test_RefusesALeafThatIsNotInTheSettlement() public {
        Entry memory entry = invalidEntry();
        bytes memory approvals = approve(digestOf(entry), first(3));
        entry.leaf.amount += 1;
        bytes memory fields = abi.encode(leafHash(entry.leaf), entry.settlement.root);
        expectError(Slashing.NotInSettlement.selector, fields);
        accuse(entry, approvals);
    }

    function test_RefusesMalformedApprovals() public {
        Entry memory entry = invalidEntry();
        bytes memory approvals = approve(digestOf(entry), first(1));
        expectError(Approvals.MalformedApprovals.selector, abi.encode(64));
        accuse(entry, new bytes(64));
        expectError(Approvals.UnsortedApproval.selector, abi.encode(validatorAt(0)));
        accuse(entry, bytes.concat(approvals, approvals));
        expectError(Approvals.TooManyApprovals.selector, abi.encode(257, 256));
        accuse(entry, new bytes(257 * 65));
    }

    /// Makes leaf and root follow the completion.
    function replant(Entry memory entry) private pure {
        entry.leaf.completion = hashOf(entry.completion);
        plant(entry);
    }
}
