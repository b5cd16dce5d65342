// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {RegistryFixture} from "./RegistryFixture.sol";

contract RegistryStakingTest is RegistryFixture {
    // registerValidator

    function test_RegisterStakesAndActivates() public {
        vm.assertFalse(registry.isActive(newcomer));
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorRegistered(newcomer, 150 ether, 150 ether);
        register(newcomer, 150 ether);
        // In this second others have been drawn already.
        vm.assertFalse(registry.isActive(newcomer));
        vm.warp(NOW + 1);
        vm.assertTrue(registry.isActive(newcomer));
        vm.assertEq(registry.stakeOf(newcomer), 150 ether);
        vm.assertEq(token.balanceOf(newcomer), 850 ether);
        vm.assertEq(token.balanceOf(address(registry)), 5 * MINIMUM_STAKE + 150 ether);
        vm.assertEq(active()[5], newcomer);
    }

    function test_RegisterTopsUpWithoutASecondSeat() public {
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorRegistered(validator, 1, MINIMUM_STAKE + 1);
        register(validator, 1);
        vm.assertEq(registry.stakeOf(validator), MINIMUM_STAKE + 1);
        vm.assertEq(active().length, 5);
    }

    /// A stake that comes and goes would make validators of nobody who has to answer for anything.
    function test_RegisterWhileLeavingIsRefused() public {
        unstake(validator);
        expectError(ValidatorRegistry.StillLeaving.selector, abi.encode(NOW + 1 + UNSTAKE_DELAY));
        register(validator, MINIMUM_STAKE);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        expectError(ValidatorRegistry.StillLeaving.selector, abi.encode(NOW + 1 + UNSTAKE_DELAY));
        register(validator, MINIMUM_STAKE);
        withdraw(validator);
        register(validator, MINIMUM_STAKE);
        vm.warp(NOW + 2 + UNSTAKE_DELAY);
        vm.assertTrue(registry.isActive(validator));
    }

    function test_RegisterRefusesNothing() public {
        expectError(ValidatorRegistry.ZeroAmount.selector);
        register(validator, 0);
    }

    function test_RegisterRefusesLessThanTheMinimum() public {
        expectError(ValidatorRegistry.StakeBelowMinimum.selector, abi.encode(MINIMUM_STAKE - 1, MINIMUM_STAKE));
        register(newcomer, MINIMUM_STAKE - 1);
    }

    function test_RegisterNeedsAnApproval() public {
        vm.prank(newcomer);
        token.approve(address(registry), MINIMUM_STAKE - 1);
        bytes memory fields = abi.encode(address(registry), MINIMUM_STAKE - 1, MINIMUM_STAKE);
        expectError(IERC20Errors.ERC20InsufficientAllowance.selector, fields);
        register(newcomer, MINIMUM_STAKE);
    }

    function test_RegisterRefusesAStakeThatDoesNotFit() public {
        vm.prank(owner);
        token.mint(newcomer, type(uint128).max);
        uint256 amount = uint256(type(uint112).max) + 1;
        expectError(SafeCast.SafeCastOverflowedUintDowncast.selector, abi.encode(112, amount));
        register(newcomer, amount);
    }

    function test_RegisterStopsAtTheLimit() public {
        for (uint256 i = 5; i < registry.MAX_VALIDATORS(); ++i) {
            address account = vm.addr(i + 1);
            give(account, MINIMUM_STAKE, address(registry));
            register(account, MINIMUM_STAKE);
        }
        expectError(ValidatorRegistry.TooManyValidators.selector);
        register(newcomer, MINIMUM_STAKE);
        // Who leaves keeps its place until its stake is gone; then the next one has it, and the last place fits its field.
        unstake(validator);
        expectError(ValidatorRegistry.TooManyValidators.selector);
        register(newcomer, MINIMUM_STAKE);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        withdraw(validator);
        register(newcomer, MINIMUM_STAKE);
        vm.warp(NOW + 2 + UNSTAKE_DELAY);
        vm.assertEq(active()[255], newcomer);
        unstake(newcomer);
        vm.warp(NOW + 3 + 2 * UNSTAKE_DELAY);
        withdraw(newcomer);
        vm.assertEq(active().length, 255);
    }

    function test_AValidatorIsOneSlot() public {
        register(newcomer, MINIMUM_STAKE);
        vm.record();
        register(newcomer, MINIMUM_STAKE);
        (, bytes32[] memory writes) = vm.accesses(address(registry));
        for (uint256 i = 1; i < writes.length; ++i) {
            vm.assertEq(writes[i], writes[0]);
        }
        vm.assertTrue(writes.length > 0);
    }

    // requestUnstake

    function test_UnstakeDeactivatesAndKeepsTheStake() public {
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.UnstakeRequested(validator, MINIMUM_STAKE, uint64(NOW) + 1 + UNSTAKE_DELAY);
        unstake(validator);
        vm.assertTrue(registry.isActive(validator));
        vm.warp(NOW + 1);
        vm.assertFalse(registry.isActive(validator));
        vm.assertEq(registry.stakeOf(validator), MINIMUM_STAKE);
        vm.assertEq(registry.withdrawableAt(validator), NOW + 1 + UNSTAKE_DELAY);
        vm.assertEq(token.balanceOf(address(registry)), 5 * MINIMUM_STAKE);
    }

    function test_WithdrawLeavesTheOthersInPlace() public {
        address[] memory before = active();
        unstake(before[1]);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        withdraw(before[1]);
        address[] memory expected = new address[](4);
        (expected[0], expected[1], expected[2], expected[3]) = (before[0], before[4], before[2], before[3]);
        vm.assertEq(active(), expected);
        // The moved one still knows its place.
        unstake(before[4]);
        vm.warp(NOW + 2 + 2 * UNSTAKE_DELAY);
        withdraw(before[4]);
        vm.assertEq(active().length, 3);
        vm.assertEq(active()[1], before[3]);
        vm.assertFalse(registry.isActive(before[4]));
        vm.assertTrue(registry.isActive(before[3]));
    }

    function test_WithdrawOfTheLastInTheList() public {
        address last = active()[4];
        unstake(last);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        withdraw(last);
        vm.assertFalse(registry.isActive(last));
        vm.assertEq(active().length, 4);
    }

    function test_UnstakeRefusesOthers() public {
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(newcomer));
        unstake(newcomer);
        unstake(validator);
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(validator));
        unstake(validator);
    }

    // accountableTime

    function assertAccountable(address account, uint256 since, uint256 until) private view {
        (uint64 from, uint64 to) = registry.accountableTime(account);
        vm.assertEq(from, since);
        vm.assertEq(to, until);
    }

    function test_AccountableFromTheStakeOn() public {
        assertAccountable(newcomer, 0, 0);
        register(newcomer, MINIMUM_STAKE);
        vm.warp(NOW + 1 days);
        register(newcomer, 1);
        assertAccountable(newcomer, NOW + 1, NOW + 1 days);
        assertAccountable(validator, STARTED, NOW + 1 days);
    }

    function test_AccountableUntilItLeaves() public {
        unstake(validator);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        assertAccountable(validator, STARTED, NOW);
        withdraw(validator);
        assertAccountable(validator, 0, 0);
        register(validator, MINIMUM_STAKE);
        vm.warp(NOW + 2 + UNSTAKE_DELAY);
        assertAccountable(validator, NOW + 2 + UNSTAKE_DELAY, NOW + 2 + UNSTAKE_DELAY);
    }

    function test_ASlashingStartsAnew() public {
        startSlashing();
        register(validator, MINIMUM_STAKE);
        slash(validator, 1);
        assertAccountable(validator, NOW, NOW);
        // Below the minimum it leaves, and is accountable for nothing before.
        vm.warp(NOW + 1 days);
        slash(validator, 9000);
        assertAccountable(validator, NOW + 1 days, NOW + 1 days);
        vm.warp(NOW + 2 days);
        slash(validator, 10_000);
        assertAccountable(validator, 0, 0);
    }

    // withdrawStake

    function test_WithdrawPaysBackAfterTheDelay() public {
        unstake(validator);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.StakeWithdrawn(validator, MINIMUM_STAKE);
        withdraw(validator);
        vm.assertEq(token.balanceOf(validator), 1000 ether + MINIMUM_STAKE);
        vm.assertEq(registry.stakeOf(validator), 0);
        expectError(ValidatorRegistry.NotLeaving.selector, abi.encode(validator));
        withdraw(validator);
    }

    function test_WithdrawWaitsForTheDelay() public {
        unstake(validator);
        vm.warp(NOW + UNSTAKE_DELAY);
        expectError(ValidatorRegistry.WithdrawalTooEarly.selector, abi.encode(NOW + 1 + UNSTAKE_DELAY));
        withdraw(validator);
    }

    function test_WithdrawRefusesAnActiveValidator() public {
        expectError(ValidatorRegistry.NotLeaving.selector, abi.encode(validator));
        withdraw(validator);
    }
}
