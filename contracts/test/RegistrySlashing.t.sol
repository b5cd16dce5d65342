// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Deploy} from "./Deploy.sol";
import {RegistryFixture} from "./RegistryFixture.sol";

contract RegistrySlashingTest is RegistryFixture {
    // slash

    function test_SlashTakesAPartToTheTreasury() public {
        startSlashing();
        register(validator, MINIMUM_STAKE);
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(validator, 60 ether, 140 ether, EVIDENCE);
        vm.assertEq(slash(validator, 3000), 60 ether);
        vm.assertEq(registry.stakeOf(validator), 140 ether);
        vm.assertEq(token.balanceOf(treasury), 60 ether);
        vm.assertEq(token.balanceOf(address(registry)), 5 * MINIMUM_STAKE + 40 ether);
    }

    function test_SlashLeavesAValidatorThatKeepsTheMinimumActive() public {
        startSlashing();
        register(validator, MINIMUM_STAKE);
        slash(validator, 5000);
        vm.assertTrue(registry.isActive(validator));
        vm.assertEq(registry.stakeOf(validator), MINIMUM_STAKE);
        vm.assertEq(registry.withdrawableAt(validator), 0);
    }

    function test_SlashBelowTheMinimumSendsAway() public {
        startSlashing();
        address[] memory before = active();
        uint128 kept = MINIMUM_STAKE * 9999 / 10_000;
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(before[1], MINIMUM_STAKE - kept, kept, EVIDENCE);
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.UnstakeRequested(before[1], kept, uint64(NOW) + 1 + UNSTAKE_DELAY);
        slash(before[1], 1);
        vm.warp(NOW + 1);
        vm.assertFalse(registry.isActive(before[1]));
        vm.assertEq(registry.withdrawableAt(before[1]), NOW + 1 + UNSTAKE_DELAY);
        vm.assertEq(active().length, 4);

        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(before[1]));
        unstake(before[1]);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        withdraw(before[1]);
        vm.assertEq(registry.stakeOf(before[1]), 0);
    }

    function test_SlashOfALeavingValidatorKeepsItsDate() public {
        startSlashing();
        unstake(validator);
        vm.warp(NOW + 1 days);
        slash(validator, 3000);
        vm.assertEq(registry.withdrawableAt(validator), NOW + 1 + UNSTAKE_DELAY);
        vm.assertEq(registry.stakeOf(validator), 70 ether);
        vm.assertEq(active().length, 4);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        withdraw(validator);
        vm.assertEq(token.balanceOf(validator), 1070 ether);
    }

    /// The delay is over, but the stake is still there.
    function test_SlashReachesWhatCouldHaveBeenWithdrawn() public {
        startSlashing();
        unstake(validator);
        vm.warp(NOW + 10 * UNSTAKE_DELAY);
        slash(validator, 3000);
        withdraw(validator);
        vm.assertEq(token.balanceOf(validator), 1070 ether);
    }

    /// Those who were drawn together with it are still to be told from others.
    function test_SlashOfEverythingKeepsThePlaceForTheDelay() public {
        startSlashing();
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(validator, MINIMUM_STAKE, 0, EVIDENCE);
        slash(validator, 10_000);
        assertGone(validator);
    }

    function test_SlashOfEverythingKeepsALeavingOnesPlaceToo() public {
        startSlashing();
        unstake(validator);
        slash(validator, 10_000);
        assertGone(validator);
    }

    function assertGone(address account) private {
        vm.warp(NOW + 1);
        vm.assertFalse(registry.isActive(account));
        vm.assertEq(registry.stakeOf(account), 0);
        vm.assertEq(registry.withdrawableAt(account), NOW + 1 + UNSTAKE_DELAY);
        (, ValidatorRegistry.Member[] memory members,) = registry.history();
        vm.assertEq(members.length, 5);
        expectError(ValidatorRegistry.StillLeaving.selector, abi.encode(NOW + 1 + UNSTAKE_DELAY));
        register(account, MINIMUM_STAKE);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        uint256 balance = token.balanceOf(account);
        withdraw(account);
        vm.assertEq(token.balanceOf(account), balance);
        assertUnknown(account);
    }

    function test_SlashedOutComesBackAfterTheDelay() public {
        startSlashing();
        slash(validator, 3000);
        expectError(ValidatorRegistry.StillLeaving.selector, abi.encode(NOW + 1 + UNSTAKE_DELAY));
        register(validator, 30 ether);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        withdraw(validator);
        expectError(ValidatorRegistry.StakeBelowMinimum.selector, abi.encode(MINIMUM_STAKE - 1, MINIMUM_STAKE));
        register(validator, MINIMUM_STAKE - 1);
        register(validator, MINIMUM_STAKE);
        vm.warp(NOW + 2 + UNSTAKE_DELAY);
        vm.assertTrue(registry.isActive(validator));
        vm.assertEq(active().length, 5);
    }

    function test_SlashRefusesTheUnknown() public {
        startSlashing();
        expectError(ValidatorRegistry.NoStake.selector, abi.encode(newcomer));
        slash(newcomer, 1);
        unstake(validator);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        withdraw(validator);
        expectError(ValidatorRegistry.NoStake.selector, abi.encode(validator));
        slash(validator, 1);
    }

    function test_SlashRefusesNothingAndMoreThanEverything() public {
        startSlashing();
        expectError(ValidatorRegistry.InvalidBasisPoints.selector, abi.encode(0));
        slash(validator, 0);
        expectError(ValidatorRegistry.InvalidBasisPoints.selector, abi.encode(10_001));
        slash(validator, 10_001);
    }

    function testFuzz_SlashTakesItsPartRoundedUp(uint128 stake, uint16 basisPoints, bool leaving) public {
        startSlashing();
        basisPoints = uint16(within(basisPoints, 1, 10_000));
        stake = uint128(within(stake, MINIMUM_STAKE, type(uint112).max));
        vm.prank(owner);
        token.mint(newcomer, stake);
        register(newcomer, stake);
        if (leaving) unstake(newcomer);
        uint256 held = token.balanceOf(address(registry));

        uint256 amount = slash(newcomer, basisPoints);
        vm.assertTrue(amount > 0 && amount <= stake);
        // Rounded up: enough, and one unit less would not be.
        vm.assertTrue(amount * 10_000 >= uint256(stake) * basisPoints);
        vm.assertTrue((amount - 1) * 10_000 < uint256(stake) * basisPoints);
        vm.assertEq(registry.stakeOf(newcomer), stake - amount);
        vm.assertEq(token.balanceOf(treasury), amount);
        vm.assertEq(token.balanceOf(address(registry)), held - amount);
        vm.assertEq(registry.withdrawableAt(newcomer) == 0, !leaving && stake - amount >= MINIMUM_STAKE);
    }

    /// Down to the last unit, which goes whole.
    function test_SlashOfTheLastUnit() public {
        registry = Deploy.registry(token, owner, 2, UNSTAKE_DELAY, 3, 5, treasury);
        startSlashing();
        vm.prank(newcomer);
        token.approve(address(registry), 2);
        register(newcomer, 2);
        vm.assertEq(slash(newcomer, 1), 1);
        vm.assertEq(registry.withdrawableAt(newcomer), NOW + 1 + UNSTAKE_DELAY);
        vm.assertEq(slash(newcomer, 1), 1);
        vm.assertEq(registry.stakeOf(newcomer), 0);
    }
}
