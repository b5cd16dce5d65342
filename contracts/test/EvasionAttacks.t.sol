// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {DowntimeReport, Quote} from "../src/Messages.sol";
import {Slashing} from "../src/Slashing.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Deploy} from "./Deploy.sol";
import {SlashingFixture} from "./SlashingFixture.sol";
import {HookToken} from "./Tokens.sol";

/// Attempts of a guilty validator to keep its stake, or its say.
contract EvasionAttacks is SlashingFixture {
    /// It has to judge what was quoted while it was there, as long as there is something left to punish it by.
    function test_SlashedValidatorApprovesWhatItHadToJudge() public {
        Quote memory quote = newEscrow();
        accuse(invalidCompletion(), only(keys[1]));
        vm.warp(NOW + 1);
        vm.assertFalse(registry.isActive(validatorAt(1)));
        complete(quote, approve(digestOf(quote), first(3)));
    }

    function test_ValidatorWithoutAStakeCannotApprove() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        burn(1);
        expectError(ValidatorRegistry.NoStake.selector, abi.encode(validatorAt(1)));
        complete(quote, approvals);
        // The others can do without it.
        uint256[] memory rest = first(4);
        (rest[1], rest[2], rest[3]) = (keys[2], keys[3], keys[4]);
        complete(quote, approve(digestOf(quote), rest));
    }

    function test_SlashedValidatorCannotReport() public {
        DowntimeReport memory downtime = newReport();
        bytes memory approvals = approve(digestOf(downtime), first(3));
        accuse(invalidCompletion(), only(keys[0]));
        expectError(Slashing.UnreliableReporter.selector, abi.encode(validatorAt(0), NOW));
        report(downtime, approvals);
        vm.warp(NOW + 1);
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(validatorAt(0)));
        report(downtime, approvals);
    }

    function test_UnstakingDoesNotSave() public {
        unstake(validatorAt(0));
        vm.warp(NOW + UNSTAKE_DELAY);
        accuse(invalidCompletion(), only(keys[0]));
        vm.assertEq(registry.withdrawableAt(validatorAt(0)), NOW + 1 + UNSTAKE_DELAY);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        registry.withdrawStake(validatorAt(0));
        vm.assertEq(token.balanceOf(validatorAt(0)), 70 ether);
        vm.assertEq(token.balanceOf(treasury), 30 ether);
    }

    function test_UnstakingDoesNotSaveFromCollusion() public {
        for (uint256 i = 0; i < 3; ++i) {
            unstake(validatorAt(i));
        }
        accuse(invalidCompletion(), first(3));
        vm.assertEq(token.balanceOf(treasury), 300 ether);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        registry.withdrawStake(validatorAt(0));
        vm.assertEq(token.balanceOf(validatorAt(0)), 0);
    }

    /// The delay is the time in which evidence has to come.
    function test_AfterTheWithdrawalThereIsNothingLeft() public {
        Accusation memory accusation = invalidCompletion();
        unstake(validatorAt(0));
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        registry.withdrawStake(validatorAt(0));
        bytes memory approvals = approve(digestOf(accusation), first(1));
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
        // It was not forgotten either.
        stake(keys[0], MINIMUM_STAKE);
        accuse(accusation, approvals);
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
    }

    /// An accomplice brings the lesser evidence first, so that the graver finds it used.
    function test_LesserEvidenceFirst() public {
        Accusation memory accusation = invalidCompletion();
        accuse(accusation, first(2));
        accuse(accusation, only(keys[2]));
        accuse(accusation, first(3));
        vm.assertEq(token.balanceOf(treasury), 300 ether);
    }

    /// An accomplice leaves one signer out, who would then be alone.
    function test_OneLeftOutOfTheCollusion() public {
        Accusation memory accusation = invalidCompletion();
        accuse(accusation, first(3));
        accuse(accusation, first(4));
        vm.assertEq(token.balanceOf(treasury), 400 ether);
    }

    function test_EvidenceReplay() public {
        stake(keys[0], 10 * MINIMUM_STAKE);
        stake(keys[1], 10 * MINIMUM_STAKE);
        Accusation memory accusation = invalidCompletion();
        Entry memory entry = invalidEntry();
        bytes memory approvals = approve(digestOf(accusation), first(2));
        bytes memory vouchers = approve(digestOf(entry), first(2));
        accuse(accusation, approvals);
        accuse(entry, vouchers);
        uint256 left = registry.stakeOf(validatorAt(0));

        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
        expectError(Slashing.NothingToSlash.selector);
        accuse(entry, vouchers);
        // In parts, and with strangers around.
        approvals = approve(digestOf(accusation), first(1));
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
        vouchers = approve(digestOf(entry), merge(first(2), strangers(3)));
        expectError(Slashing.NothingToSlash.selector);
        accuse(entry, vouchers);
        // Another one's part in it does not punish these again.
        accuse(entry, first(3));
        vm.assertEq(registry.stakeOf(validatorAt(0)), left);
        vm.assertEq(registry.stakeOf(validatorAt(1)), left);
    }

    /// Staking again is a new stake, not a new offence.
    function test_EvidenceReplayAfterAComeback() public {
        Accusation memory accusation = invalidCompletion();
        accuse(accusation, first(3));
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        for (uint256 i = 0; i < 3; ++i) {
            registry.withdrawStake(validatorAt(i));
            stake(keys[i], MINIMUM_STAKE);
        }
        bytes memory approvals = approve(digestOf(accusation), first(3));
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
        approvals = approve(digestOf(accusation), first(1));
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
    }

    /// A token with hooks lets the slasher in again, in the middle of a slashing.
    function test_SlashReentered() public {
        HookToken hooked = overHookedToken();
        vm.prank(owner);
        registry.setSlasher(address(hooked));
        hooked.hook(address(registry), abi.encodeCall(ValidatorRegistry.slash, (validatorAt(0), 5000, "again")));
        vm.prank(address(hooked));
        registry.slash(validatorAt(0), 5000, "once");
        assertReentryRefused(hooked);
        vm.assertEq(registry.stakeOf(validatorAt(0)), 50 ether);
        vm.assertEq(hooked.balanceOf(treasury), 50 ether);
    }

    /// A colluder destroys its own stake first, so that the others do not make a certificate with a stake any more.
    function test_ABurntStakeStillCounts() public {
        burn(0);
        accuse(invalidCompletion(), first(3));
        vm.assertEq(registry.stakeOf(validatorAt(1)), 0);
        vm.assertEq(registry.stakeOf(validatorAt(2)), 0);
    }

    /// In any order: the lesser part of the evidence is brought before.
    function test_ABurntStakeStillCountsAfterLesserEvidence() public {
        accuse(invalidCompletion(), only(keys[1]));
        burn(0);
        accuse(invalidCompletion(), first(3));
        vm.assertEq(registry.stakeOf(validatorAt(1)), 0);
        vm.assertEq(registry.stakeOf(validatorAt(2)), 0);
    }

    /// As long as the stake would be here if its owner had left instead: afterwards it is a stranger's signature.
    function test_ABurntStakeCountsForTheDelay() public {
        burn(0);
        vm.assertEq(registry.withdrawableAt(validatorAt(0)), NOW + 1 + UNSTAKE_DELAY);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        accuse(invalidCompletion(), first(3));
        vm.assertEq(registry.stakeOf(validatorAt(1)), 70 ether);
        vm.assertEq(registry.stakeOf(validatorAt(2)), 70 ether);
    }

    /// Contradictions of its own making, three tenths at a time, rounded up.
    function burn(uint256 i) private {
        Accusation memory own = invalidCompletion();
        for (uint256 n = 0; registry.stakeOf(validatorAt(i)) != 0; ++n) {
            own.result.outputHash = bytes32(n);
            link(own);
            accuse(own, only(keys[i]));
        }
    }

    /// Or the evidence, while half of it has been dealt with.
    function test_EvidenceReentered() public {
        HookToken hooked = overHookedToken();
        Accusation memory accusation = invalidCompletion();
        bytes memory approvals = approve(digestOf(accusation), first(2));
        bytes memory again = abi.encodeCall(
            Slashing.slashInvalidResult, (accusation.quote, accusation.result, accusation.completion, 0, approvals)
        );
        hooked.hook(address(slashing), again);
        accuse(accusation, approvals);
        assertReentryRefused(hooked);
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
        vm.assertEq(registry.stakeOf(validatorAt(1)), 70 ether);
        vm.assertEq(hooked.balanceOf(treasury), 60 ether);
    }

    /// Two validators with a stake in a token that calls back.
    function overHookedToken() private returns (HookToken hooked) {
        hooked = new HookToken();
        registry = Deploy.registry(hooked, owner, MINIMUM_STAKE, UNSTAKE_DELAY, 3, 5, treasury);
        slashing = Deploy.slashing(registry, payment, channel);
        vm.prank(owner);
        registry.setSlasher(address(slashing));
        for (uint256 i = 0; i < 2; ++i) {
            hooked.mint(validatorAt(i), MINIMUM_STAKE);
            vm.startPrank(validatorAt(i));
            hooked.approve(address(registry), MINIMUM_STAKE);
            registry.registerValidator(MINIMUM_STAKE);
            vm.stopPrank();
        }
    }

    function assertReentryRefused(HookToken hooked) private view {
        bytes memory refusal = abi.encodeWithSelector(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        vm.assertFalse(hooked.succeeded());
        vm.assertEq(keccak256(hooked.answer()), keccak256(refusal));
    }
}
