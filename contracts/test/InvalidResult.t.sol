// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {Slashing} from "../src/Slashing.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {SlashingFixture} from "./SlashingFixture.sol";

contract InvalidResultTest is SlashingFixture {
    Accusation private accusation;
    bytes32 private digest;
    bytes32 private invalid;
    bytes32 private collusion;

    function setUp() public override {
        super.setUp();
        accusation = invalidCompletion();
        digest = digestOf(accusation);
        invalid = slashing.evidenceOf("INVALID_RESULT", digest);
        collusion = slashing.evidenceOf("COLLUSION", digest);
    }

    function test_OneApprovalCostsThirtyPercent() public {
        bytes memory approvals = approve(digest, keys[0]);
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(validatorAt(0), 30 ether, 70 ether, invalid);
        vm.expectEmit(address(slashing));
        emit Slashing.EvidenceAccepted(invalid, "INVALID_RESULT", 1);
        vm.prank(accountOf("anyone"));
        accuse(accusation, approvals);
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
        vm.assertEq(token.balanceOf(treasury), 30 ether);
        vm.assertTrue(slashing.punished(invalid, validatorAt(0)));
        vm.assertFalse(slashing.punished(collusion, validatorAt(0)));
        vm.assertFalse(slashing.punished(invalid, validatorAt(1)));
    }

    function test_TwoApprovalsCostThirtyPercentEach() public {
        accuse(accusation, first(2));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
        vm.assertEq(registry.stakeOf(validatorAt(1)), 70 ether);
        vm.assertEq(registry.stakeOf(validatorAt(2)), 100 ether);
        vm.assertEq(token.balanceOf(treasury), 60 ether);
    }

    function test_ALargeStakeStaysActive() public {
        stake(keys[0], MINIMUM_STAKE);
        accuse(accusation, first(1));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 140 ether);
        vm.assertTrue(registry.isActive(validatorAt(0)));
    }

    /// Whatever the completion contradicts, alone.
    function test_EveryContradiction() public {
        accusation = newAccusation();
        accusation.quote.requestId = keccak256("another request");
        slashOne(0);
        accusation = newAccusation();
        accusation.result.requestId = keccak256("another request");
        slashOne(1);
        accusation = newAccusation();
        accusation.quote.modelDigest = keccak256("another model");
        slashOne(2);
        accusation = newAccusation();
        accusation.result.compute = accountOf("another node");
        slashOne(3);
        accusation = newAccusation();
        accusation.completion.compute = accountOf("another node");
        slashOne(4);
    }

    function slashOne(uint256 i) private {
        Accusation memory linked = accusation;
        link(linked);
        accuse(linked, only(keys[i]));
        vm.assertEq(registry.stakeOf(validatorAt(i)), 70 ether);
    }

    function test_ACertificateIsCollusion() public {
        bytes memory approvals = approve(digest, first(3));
        for (uint256 i = 0; i < 3; ++i) {
            vm.expectEmit(address(registry));
            emit ValidatorRegistry.ValidatorSlashed(validatorAt(i), 100 ether, 0, collusion);
        }
        vm.expectEmit(address(slashing));
        emit Slashing.EvidenceAccepted(collusion, "COLLUSION", 3);
        accuse(accusation, approvals);
        vm.assertEq(token.balanceOf(treasury), 300 ether);
        vm.assertEq(registry.activeValidators().length, 2);
        for (uint256 i = 0; i < 3; ++i) {
            vm.assertEq(registry.stakeOf(validatorAt(i)), 0);
            vm.assertTrue(slashing.punished(collusion, validatorAt(i)));
        }
    }

    function test_MoreThanACertificateIsCollusionOfAll() public {
        accuse(accusation, keys);
        vm.assertEq(token.balanceOf(treasury), 500 ether);
        vm.assertEq(registry.activeValidators().length, 0);
    }

    function test_LeavingSignersCountTowardsTheCertificate() public {
        unstake(validatorAt(0));
        unstake(validatorAt(2));
        accuse(accusation, first(3));
        vm.assertEq(token.balanceOf(treasury), 300 ether);
    }

    function test_OneByOneFirstAndTogetherLater() public {
        for (uint256 i = 0; i < 3; ++i) {
            accuse(accusation, only(keys[i]));
        }
        vm.assertEq(token.balanceOf(treasury), 90 ether);
        accuse(accusation, first(3));
        vm.assertEq(token.balanceOf(treasury), 300 ether);
    }

    /// In the other order the lesser offence is not punished any more, even of who has staked again.
    function test_AfterTheCollusionNothingFollows() public {
        accuse(accusation, first(3));
        stake(keys[0], MINIMUM_STAKE);
        bytes memory approvals = approve(digest, first(1));
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
        approvals = approve(digest, first(3));
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
        vm.assertEq(registry.stakeOf(validatorAt(0)), MINIMUM_STAKE);
    }

    /// The fourth was part of the same certificate, though the others have nothing left.
    function test_ALateSignerJoinsTheCollusion() public {
        accuse(accusation, first(3));
        accuse(accusation, first(4));
        vm.assertEq(registry.stakeOf(validatorAt(3)), 0);
        vm.assertTrue(slashing.punished(collusion, validatorAt(3)));
        vm.assertEq(token.balanceOf(treasury), 400 ether);
    }

    function test_ALateSignerAloneIsNoCollusion() public {
        accuse(accusation, first(3));
        accuse(accusation, only(keys[3]));
        vm.assertEq(registry.stakeOf(validatorAt(3)), 70 ether);
    }

    /// What counts is what is needed to release a payment at that time.
    function test_TheThresholdIsTheRegistrys() public {
        vm.prank(owner);
        registry.setQuorum(4, 5);
        accuse(accusation, first(3));
        vm.assertEq(token.balanceOf(treasury), 90 ether);
        accuse(accusation, first(4));
        vm.assertEq(token.balanceOf(treasury), 400 ether);
    }

    function test_StrangersArePassedOver() public {
        accuse(accusation, merge(first(1), strangers(4)));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
        vm.assertEq(token.balanceOf(treasury), 30 ether);
    }

    function test_NothingToSlash() public {
        bytes memory approvals = approve(digest, strangers(3));
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, "");
    }

    /// Another completion is another offence, also of the same request.
    function test_TwoCompletionsAreTwoOffences() public {
        accuse(accusation, first(1));
        accusation.result.outputHash = keccak256("another output");
        Accusation memory other = accusation;
        link(other);
        accuse(other, first(1));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 49 ether);
    }

    function test_RefusesAnotherQuote() public {
        bytes memory approvals = approve(digest, first(1));
        bytes32 approved = accusation.completion.quote;
        accusation.quote.total += 1;
        Accusation memory changed = accusation;
        link(changed);
        bytes32 presented = changed.completion.quote;
        changed.completion.quote = approved;
        expectError(Slashing.QuoteMismatch.selector, abi.encode(approved, presented));
        accuse(changed, approvals);
    }

    function test_RefusesAnotherResult() public {
        bytes memory approvals = approve(digest, first(1));
        accusation.result.inputUnits += 1;
        bytes32 presented = resultHash(accusation.result);
        expectError(Slashing.ResultMismatch.selector, abi.encode(accusation.completion.result, presented));
        accuse(accusation, approvals);
    }

    function test_RefusesMalformedApprovals() public {
        bytes memory approvals = approve(digest, first(1));
        expectError(Approvals.MalformedApprovals.selector, abi.encode(66));
        accuse(accusation, bytes.concat(approvals, hex"00"));
        expectError(Approvals.InvalidApproval.selector, abi.encode(1));
        accuse(accusation, bytes.concat(approvals, new bytes(65)));
        expectError(Approvals.UnsortedApproval.selector, abi.encode(validatorAt(0)));
        accuse(accusation, bytes.concat(approvals, approvals));
    }

    function test_BoundsTheNumberOfApprovals() public {
        expectError(Approvals.TooManyApprovals.selector, abi.encode(257, 256));
        accuse(accusation, new bytes(257 * 65));
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        accuse(accusation, new bytes(256 * 65));
    }

    /// Over stakes of any size, what one call takes is the sum of what each offence costs.
    function testFuzz_WhatACallTakes(uint128[5] memory extra, uint256 signers) public {
        signers = within(signers, 1, 5);
        uint256 expected = 0;
        for (uint256 i = 0; i < 5; ++i) {
            uint256 more = within(extra[i], 1, 1000 ether);
            stake(keys[i], more);
            uint256 staked = MINIMUM_STAKE + more;
            if (i < signers) expected += signers >= 3 ? staked : (staked * 3000 + 9999) / 10_000;
        }
        uint256 held = token.balanceOf(address(registry));
        accuse(accusation, first(signers));
        vm.assertEq(token.balanceOf(treasury), expected);
        vm.assertEq(token.balanceOf(address(registry)), held - expected);
    }
}
