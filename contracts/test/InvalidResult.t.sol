// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {Contribution, InferenceResult} from "../src/Messages.sol";
import {Slashing} from "../src/Slashing.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {SlashingFixture} from "./SlashingFixture.sol";

contract InvalidResultTest is SlashingFixture {
    bytes32 private digest;
    bytes32 private invalid;
    bytes32 private collusion;

    function setUp() public override {
        super.setUp();
        digest = digestOf(invalidCompletion());
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
        accuse(invalidCompletion(), approvals);
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
        vm.assertEq(token.balanceOf(treasury), 30 ether);
        vm.assertTrue(slashing.punished(invalid, validatorAt(0)));
        vm.assertFalse(slashing.punished(collusion, validatorAt(0)));
        vm.assertFalse(slashing.punished(invalid, validatorAt(1)));
    }

    function test_TwoApprovalsCostThirtyPercentEach() public {
        accuse(invalidCompletion(), first(2));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
        vm.assertEq(registry.stakeOf(validatorAt(1)), 70 ether);
        vm.assertEq(registry.stakeOf(validatorAt(2)), 100 ether);
        vm.assertEq(token.balanceOf(treasury), 60 ether);
    }

    function test_ALargeStakeStaysActive() public {
        stake(keys[0], MINIMUM_STAKE);
        accuse(invalidCompletion(), first(1));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 140 ether);
        vm.assertTrue(registry.isActive(validatorAt(0)));
    }

    /// Whatever the completion contradicts, alone.
    function test_EveryContradiction() public {
        addValidators("more ", 5);
        Accusation memory accusation = newAccusation();
        accusation.quote.requestId = keccak256("another request");
        slashOne(accusation, 0);
        accusation = newAccusation();
        accusation.result.requestId = keccak256("another request");
        slashOne(accusation, 1);
        accusation = newAccusation();
        accusation.quote.modelDigest = keccak256("another model");
        slashOne(accusation, 2);
        accusation = newAccusation();
        accusation.result.compute = accountOf("another node");
        slashOne(accusation, 3);
        accusation = newAccusation();
        accusation.completion.contributions[0].compute = accountOf("another node");
        slashOne(accusation, 4);
    }

    /// More or less than the units that the node has signed cost.
    function test_EveryWrongCost() public {
        addValidators("more ", 5);
        Accusation memory accusation = newAccusation();
        accusation.completion.contributions[0].cost -= 1;
        slashOne(accusation, 0);
        accusation = newAccusation();
        accusation.completion.contributions[0].cost += 1;
        slashOne(accusation, 1);
        accusation = newAccusation();
        accusation.result.outputUnits -= 1;
        slashOne(accusation, 2);
        accusation = newAccusation();
        accusation.result.inputUnits -= 1;
        slashOne(accusation, 3);
        accusation = newAccusation();
        accusation.quote.basePrice += 1;
        slashOne(accusation, 4);
        // What the node has signed costs more than the client has agreed to.
        accusation = newAccusation();
        accusation.result.outputUnits += 1;
        accusation.completion.contributions[0].cost += 0.4 ether;
        slashOne(accusation, 5);
        accusation = newAccusation();
        accusation.result.outputUnits = type(uint64).max;
        accusation.quote.outputPrice = type(uint128).max;
        slashOne(accusation, 6);
    }

    /// The second node is paid for what it gave, and the first one's input does not cost a second time.
    function test_TheCostOfATakeover() public {
        (Accusation memory accusation, InferenceResult memory second) = takeover();
        bytes memory approvals = approve(digestOf(accusation), first(1));
        expectError(Slashing.ValidCompletion.selector);
        accuse(accusation, approvals);
        accusation.result = second;
        expectError(Slashing.ValidCompletion.selector);
        accuse(accusation, 1, approvals);
        accusation.completion.contributions[1].cost = 4 ether + 1 ether;
        accuse(accusation, 1, approve(digestOf(accusation), first(1)));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
    }

    function test_RefusesAContributionThatIsNotThere() public {
        bytes memory approvals = approve(digest, first(1));
        expectError(Slashing.UnknownContribution.selector, abi.encode(1, 1));
        accuse(invalidCompletion(), 1, approvals);
    }

    function takeover() private returns (Accusation memory accusation, InferenceResult memory second) {
        accusation = newAccusation();
        (accusation.result.finish, accusation.result.outputUnits) = (0, 10);
        link(accusation);
        second = newAccusation().result;
        (second.compute, second.outputUnits) = (accountOf("second node"), 10);
        Contribution[] memory contributions = new Contribution[](2);
        contributions[0] = accusation.completion.contributions[0];
        contributions[0].cost = 6 ether;
        contributions[1] = Contribution(second.compute, resultHash(second), 4 ether);
        accusation.completion.contributions = contributions;
    }

    function slashOne(Accusation memory accusation, uint256 i) private {
        link(accusation);
        accuse(accusation, only(keys[i]));
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
        accuse(invalidCompletion(), approvals);
        vm.assertEq(token.balanceOf(treasury), 300 ether);
        vm.warp(NOW + 1);
        vm.assertEq(active().length, 2);
        for (uint256 i = 0; i < 3; ++i) {
            vm.assertEq(registry.stakeOf(validatorAt(i)), 0);
            vm.assertTrue(slashing.punished(collusion, validatorAt(i)));
        }
    }

    function test_MoreThanACertificateIsCollusionOfAll() public {
        accuse(invalidCompletion(), keys);
        vm.assertEq(token.balanceOf(treasury), 500 ether);
        vm.warp(NOW + 1);
        vm.assertEq(active().length, 0);
    }

    function test_LeavingSignersCountTowardsTheCertificate() public {
        unstake(validatorAt(0));
        unstake(validatorAt(2));
        accuse(invalidCompletion(), first(3));
        vm.assertEq(token.balanceOf(treasury), 300 ether);
    }

    function test_OneByOneFirstAndTogetherLater() public {
        for (uint256 i = 0; i < 3; ++i) {
            accuse(invalidCompletion(), only(keys[i]));
        }
        vm.assertEq(token.balanceOf(treasury), 90 ether);
        accuse(invalidCompletion(), first(3));
        vm.assertEq(token.balanceOf(treasury), 300 ether);
    }

    /// In the other order the lesser offence is not punished any more, even of who has staked again.
    function test_AfterTheCollusionNothingFollows() public {
        // Made up before: its quote would have a later expiry.
        Accusation memory accusation = invalidCompletion();
        accuse(accusation, first(3));
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        registry.withdrawStake(validatorAt(0));
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
        accuse(invalidCompletion(), first(3));
        accuse(invalidCompletion(), first(4));
        vm.assertEq(registry.stakeOf(validatorAt(3)), 0);
        vm.assertTrue(slashing.punished(collusion, validatorAt(3)));
        vm.assertEq(token.balanceOf(treasury), 400 ether);
    }

    function test_ALateSignerAloneIsNoCollusion() public {
        accuse(invalidCompletion(), first(3));
        accuse(invalidCompletion(), only(keys[3]));
        vm.assertEq(registry.stakeOf(validatorAt(3)), 70 ether);
    }

    /// What counts is what is needed to release a payment at that time.
    function test_TheThresholdIsTheRegistrys() public {
        vm.prank(owner);
        registry.setQuorum(4, 5);
        vm.warp(NOW + 1);
        accuse(invalidCompletion(), first(3));
        vm.assertEq(token.balanceOf(treasury), 90 ether);
        accuse(invalidCompletion(), first(4));
        vm.assertEq(token.balanceOf(treasury), 400 ether);
    }

    function test_StrangersArePassedOver() public {
        accuse(invalidCompletion(), merge(first(1), strangers(4)));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
        vm.assertEq(token.balanceOf(treasury), 30 ether);
    }

    function test_NothingToSlash() public {
        bytes memory approvals = approve(digest, strangers(3));
        expectError(Slashing.NothingToSlash.selector);
        accuse(invalidCompletion(), approvals);
        expectError(Slashing.NothingToSlash.selector);
        accuse(invalidCompletion(), "");
    }

    /// Another completion is another offence, also of the same request.
    function test_TwoCompletionsAreTwoOffences() public {
        accuse(invalidCompletion(), first(1));
        Accusation memory other = invalidCompletion();
        other.result.outputHash = keccak256("another output");
        link(other);
        accuse(other, first(1));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 49 ether);
    }

    function test_RefusesAnotherQuote() public {
        bytes memory approvals = approve(digest, first(1));
        Accusation memory changed = invalidCompletion();
        bytes32 approved = changed.completion.quote;
        changed.quote.total += 1;
        link(changed);
        bytes32 presented = changed.completion.quote;
        changed.completion.quote = approved;
        expectError(Slashing.QuoteMismatch.selector, abi.encode(approved, presented));
        accuse(changed, approvals);
    }

    function test_RefusesAnotherResult() public {
        bytes memory approvals = approve(digest, first(1));
        Accusation memory changed = invalidCompletion();
        changed.result.inputUnits += 1;
        bytes32 approved = changed.completion.contributions[0].result;
        expectError(Slashing.ResultMismatch.selector, abi.encode(approved, resultHash(changed.result)));
        accuse(changed, approvals);
    }

    function test_RefusesMalformedApprovals() public {
        bytes memory approvals = approve(digest, first(1));
        expectError(Approvals.MalformedApprovals.selector, abi.encode(66));
        accuse(invalidCompletion(), bytes.concat(approvals, hex"00"));
        expectError(Approvals.InvalidApproval.selector, abi.encode(1));
        accuse(invalidCompletion(), bytes.concat(approvals, new bytes(65)));
        expectError(Approvals.UnsortedApproval.selector, abi.encode(validatorAt(0)));
        accuse(invalidCompletion(), bytes.concat(approvals, approvals));
    }

    function test_BoundsTheNumberOfApprovals() public {
        expectError(Approvals.TooManyApprovals.selector, abi.encode(257, 256));
        accuse(invalidCompletion(), new bytes(257 * 65));
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        accuse(invalidCompletion(), new bytes(256 * 65));
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
        accuse(invalidCompletion(), first(signers));
        vm.assertEq(token.balanceOf(treasury), expected);
        vm.assertEq(token.balanceOf(address(registry)), held - expected);
    }
}
