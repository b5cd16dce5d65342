// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {NCNToken} from "../src/NCNToken.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Fixture} from "./Fixture.sol";

/// Of forge's cheat codes, the ones that only this file uses.
interface LogVm {
    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }

    function recordLogs() external;
    function getRecordedLogs() external returns (Log[] memory logs);
}

contract ValidatorRegistryTest is Fixture {
    bytes32 private constant EVIDENCE = keccak256("evidence");

    address private newcomer = accountOf("newcomer");
    address private validator;

    function setUp() public override {
        super.setUp();
        validator = vm.addr(keys[0]);
        give(newcomer, 1000 ether, address(registry));
        give(validator, 1000 ether, address(registry));
    }

    function register(address account, uint256 amount) private {
        vm.prank(account);
        registry.registerValidator(amount);
    }

    function unstake(address account) private {
        vm.prank(account);
        registry.requestUnstake();
    }

    function withdraw(address account) private {
        vm.prank(account);
        registry.withdrawStake();
    }

    /// This contract stands in for the slasher.
    function startSlashing() private {
        vm.prank(owner);
        registry.setSlasher(address(this));
    }

    function slash(address account, uint16 basisPoints) private returns (uint256) {
        return registry.slash(account, basisPoints, EVIDENCE);
    }

    function assertUnknown(address account) private {
        vm.assertFalse(registry.isActive(account));
        vm.assertEq(registry.stakeOf(account), 0);
        vm.assertEq(registry.withdrawableAt(account), 0);
        vm.warp(block.timestamp + 10 * UNSTAKE_DELAY);
        expectError(ValidatorRegistry.NotLeaving.selector, abi.encode(account));
        withdraw(account);
    }

    // Construction

    function test_ConstructorSetsEverything() public view {
        vm.assertEq(address(registry.token()), address(token));
        vm.assertEq(registry.owner(), owner);
        vm.assertEq(registry.minimumStake(), MINIMUM_STAKE);
        vm.assertEq(registry.unstakeDelay(), UNSTAKE_DELAY);
        vm.assertEq(registry.treasury(), treasury);
        vm.assertEq(registry.slasher(), address(0));
        vm.assertEq(registry.threshold(), 3);
        vm.assertEq(registry.committeeSize(), 5);
    }

    function test_ConstructorRefusesNoStake() public {
        expectError(ValidatorRegistry.ZeroMinimumStake.selector);
        new ValidatorRegistry(token, owner, 0, UNSTAKE_DELAY, 3, 5, treasury);
    }

    function test_ConstructorRefusesNoTreasury() public {
        expectError(ValidatorRegistry.ZeroTreasury.selector);
        new ValidatorRegistry(token, owner, MINIMUM_STAKE, UNSTAKE_DELAY, 3, 5, address(0));
    }

    function test_ConstructorRefusesABadQuorum() public {
        expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(2, 5));
        new ValidatorRegistry(token, owner, MINIMUM_STAKE, UNSTAKE_DELAY, 2, 5, treasury);
    }

    // registerValidator

    function test_RegisterStakesAndActivates() public {
        vm.assertFalse(registry.isActive(newcomer));
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorRegistered(newcomer, 150 ether, 150 ether);
        register(newcomer, 150 ether);
        vm.assertTrue(registry.isActive(newcomer));
        vm.assertEq(registry.stakeOf(newcomer), 150 ether);
        vm.assertEq(token.balanceOf(newcomer), 850 ether);
        vm.assertEq(token.balanceOf(address(registry)), 5 * MINIMUM_STAKE + 150 ether);
        vm.assertEq(registry.activeValidators()[5], newcomer);
    }

    function test_RegisterTopsUpWithoutASecondSeat() public {
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorRegistered(validator, 1, MINIMUM_STAKE + 1);
        register(validator, 1);
        vm.assertEq(registry.stakeOf(validator), MINIMUM_STAKE + 1);
        vm.assertEq(registry.activeValidators().length, 5);
    }

    function test_RegisterWhileLeavingRejoins() public {
        unstake(validator);
        register(validator, 1);
        vm.assertTrue(registry.isActive(validator));
        vm.assertEq(registry.stakeOf(validator), MINIMUM_STAKE + 1);
        vm.assertEq(registry.withdrawableAt(validator), 0);
        vm.warp(NOW + UNSTAKE_DELAY);
        expectError(ValidatorRegistry.NotLeaving.selector, abi.encode(validator));
        withdraw(validator);
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
        uint256 amount = uint256(type(uint128).max) + 1;
        expectError(SafeCast.SafeCastOverflowedUintDowncast.selector, abi.encode(128, amount));
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
        // A seat that is given up can be taken, and the last position fits its field.
        unstake(validator);
        register(newcomer, MINIMUM_STAKE);
        vm.assertEq(registry.activeValidators()[255], newcomer);
        unstake(newcomer);
        vm.assertEq(registry.activeValidators().length, 255);
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

    function test_UnstakeDeactivatesAtOnceAndKeepsTheStake() public {
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.UnstakeRequested(validator, MINIMUM_STAKE, uint64(NOW) + UNSTAKE_DELAY);
        unstake(validator);
        vm.assertFalse(registry.isActive(validator));
        vm.assertEq(registry.stakeOf(validator), MINIMUM_STAKE);
        vm.assertEq(registry.withdrawableAt(validator), NOW + UNSTAKE_DELAY);
        vm.assertEq(token.balanceOf(address(registry)), 5 * MINIMUM_STAKE);
    }

    function test_UnstakeLeavesTheOthersInPlace() public {
        address[] memory before = registry.activeValidators();
        unstake(before[1]);
        address[] memory expected = new address[](4);
        (expected[0], expected[1], expected[2], expected[3]) = (before[0], before[4], before[2], before[3]);
        vm.assertEq(registry.activeValidators(), expected);
        // The moved one still knows its place.
        unstake(before[4]);
        vm.assertEq(registry.activeValidators().length, 3);
        vm.assertEq(registry.activeValidators()[1], before[3]);
        vm.assertFalse(registry.isActive(before[4]));
        vm.assertTrue(registry.isActive(before[3]));
    }

    function test_UnstakeOfTheLastInTheList() public {
        address last = registry.activeValidators()[4];
        unstake(last);
        vm.assertFalse(registry.isActive(last));
        vm.assertEq(registry.activeValidators().length, 4);
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
        assertAccountable(newcomer, NOW, NOW);
        vm.warp(NOW + 1 days);
        register(newcomer, 1);
        assertAccountable(newcomer, NOW, NOW + 1 days);
        assertAccountable(validator, STARTED, NOW + 1 days);
    }

    function test_AccountableUntilItLeaves() public {
        unstake(validator);
        vm.warp(NOW + UNSTAKE_DELAY);
        assertAccountable(validator, STARTED, NOW);
        withdraw(validator);
        assertAccountable(validator, 0, 0);
        register(validator, MINIMUM_STAKE);
        assertAccountable(validator, NOW + UNSTAKE_DELAY, NOW + UNSTAKE_DELAY);
    }

    function test_AShortAbsenceIsSubtracted() public {
        unstake(validator);
        register(validator, 1);
        assertAccountable(validator, STARTED, NOW);
        unstake(validator);
        vm.warp(NOW + 1 days - 1);
        register(validator, 1);
        assertAccountable(validator, STARTED + 1 days - 1, NOW + 1 days - 1);
    }

    function test_ALongAbsenceStartsAnew() public {
        unstake(validator);
        vm.warp(NOW + 1 days);
        register(validator, 1);
        assertAccountable(validator, NOW + 1 days, NOW + 1 days);
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

    function test_ASlashingDuringAnAbsenceIsNotInTheFuture() public {
        startSlashing();
        unstake(validator);
        vm.warp(NOW + 12 hours);
        slash(validator, 1);
        vm.warp(NOW + 18 hours);
        register(validator, 1 ether);
        assertAccountable(validator, NOW + 18 hours, NOW + 18 hours);
    }

    // withdrawStake

    function test_WithdrawPaysBackAfterTheDelay() public {
        unstake(validator);
        vm.warp(NOW + UNSTAKE_DELAY);
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
        vm.warp(NOW + UNSTAKE_DELAY - 1);
        expectError(ValidatorRegistry.WithdrawalTooEarly.selector, abi.encode(NOW + UNSTAKE_DELAY));
        withdraw(validator);
    }

    function test_WithdrawRefusesAnActiveValidator() public {
        expectError(ValidatorRegistry.NotLeaving.selector, abi.encode(validator));
        withdraw(validator);
    }

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
        address[] memory before = registry.activeValidators();
        uint128 kept = MINIMUM_STAKE * 9999 / 10_000;
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(before[1], MINIMUM_STAKE - kept, kept, EVIDENCE);
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.UnstakeRequested(before[1], kept, uint64(NOW) + UNSTAKE_DELAY);
        slash(before[1], 1);
        vm.assertFalse(registry.isActive(before[1]));
        vm.assertEq(registry.withdrawableAt(before[1]), NOW + UNSTAKE_DELAY);
        address[] memory expected = new address[](4);
        (expected[0], expected[1], expected[2], expected[3]) = (before[0], before[4], before[2], before[3]);
        vm.assertEq(registry.activeValidators(), expected);

        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(before[1]));
        unstake(before[1]);
        vm.warp(NOW + UNSTAKE_DELAY);
        withdraw(before[1]);
        vm.assertEq(registry.stakeOf(before[1]), 0);
    }

    function test_SlashOfTheLastInTheList() public {
        startSlashing();
        address last = registry.activeValidators()[4];
        slash(last, 1);
        vm.assertFalse(registry.isActive(last));
        vm.assertEq(registry.activeValidators().length, 4);
    }

    function test_SlashOfALeavingValidatorKeepsItsDate() public {
        startSlashing();
        unstake(validator);
        vm.warp(NOW + 1 days);
        slash(validator, 3000);
        vm.assertEq(registry.withdrawableAt(validator), NOW + UNSTAKE_DELAY);
        vm.assertEq(registry.stakeOf(validator), 70 ether);
        vm.assertEq(registry.activeValidators().length, 4);
        vm.warp(NOW + UNSTAKE_DELAY);
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

    function test_SlashOfEverythingRemovesTheRecord() public {
        startSlashing();
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(validator, MINIMUM_STAKE, 0, EVIDENCE);
        slash(validator, 10_000);
        assertUnknown(validator);
        vm.assertEq(registry.activeValidators().length, 4);
    }

    /// There is no date for what is not there: an UnstakeRequested would announce one.
    function test_SlashOfEverythingIsAllThatIsSaid() public {
        startSlashing();
        LogVm(address(vm)).recordLogs();
        slash(validator, 10_000);
        LogVm.Log[] memory logs = LogVm(address(vm)).getRecordedLogs();
        vm.assertEq(logs.length, 2);
        vm.assertEq(logs[0].topics[0], ValidatorRegistry.ValidatorSlashed.selector);
        vm.assertEq(logs[1].emitter, address(token));
    }

    function test_SlashOfEverythingRemovesALeavingOneToo() public {
        startSlashing();
        unstake(validator);
        slash(validator, 10_000);
        assertUnknown(validator);
    }

    function test_SlashedOutComesBackWithTheMinimumOnly() public {
        startSlashing();
        slash(validator, 3000);
        expectError(ValidatorRegistry.StakeBelowMinimum.selector, abi.encode(MINIMUM_STAKE - 1, MINIMUM_STAKE));
        register(validator, 30 ether - 1);
        register(validator, 30 ether);
        vm.assertTrue(registry.isActive(validator));
        vm.assertEq(registry.withdrawableAt(validator), 0);

        slash(validator, 10_000);
        expectError(ValidatorRegistry.StakeBelowMinimum.selector, abi.encode(MINIMUM_STAKE - 1, MINIMUM_STAKE));
        register(validator, MINIMUM_STAKE - 1);
        register(validator, MINIMUM_STAKE);
        vm.assertTrue(registry.isActive(validator));
        vm.assertEq(registry.activeValidators().length, 5);
    }

    function test_SlashRefusesTheUnknown() public {
        startSlashing();
        expectError(ValidatorRegistry.NoStake.selector, abi.encode(newcomer));
        slash(newcomer, 1);
        unstake(validator);
        vm.warp(NOW + UNSTAKE_DELAY);
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
        stake = uint128(within(stake, MINIMUM_STAKE, type(uint128).max));
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
        vm.assertEq(registry.isActive(newcomer), !leaving && stake - amount >= MINIMUM_STAKE);
    }

    /// Down to the last unit, which goes whole.
    function test_SlashOfTheLastUnit() public {
        registry = new ValidatorRegistry(token, owner, 2, UNSTAKE_DELAY, 3, 5, treasury);
        startSlashing();
        vm.prank(newcomer);
        token.approve(address(registry), 2);
        register(newcomer, 2);
        vm.assertEq(slash(newcomer, 1), 1);
        vm.assertEq(registry.withdrawableAt(newcomer), NOW + UNSTAKE_DELAY);
        vm.assertEq(slash(newcomer, 1), 1);
        assertUnknown(newcomer);
    }

    // setSlasher

    function test_OwnerSetsTheSlasher() public {
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.SlasherChanged(newcomer);
        vm.prank(owner);
        registry.setSlasher(newcomer);
        vm.assertEq(registry.slasher(), newcomer);
    }

    function test_NobodyElseSetsTheSlasher() public {
        expectError(Ownable.OwnableUnauthorizedAccount.selector, abi.encode(newcomer));
        vm.prank(newcomer);
        registry.setSlasher(newcomer);
    }

    // setQuorum

    function test_OwnerSetsTheQuorum() public {
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.QuorumChanged(4, 7);
        vm.prank(owner);
        registry.setQuorum(4, 7);
        vm.assertEq(registry.threshold(), 4);
        vm.assertEq(registry.committeeSize(), 7);
    }

    function test_NobodyElseSetsTheQuorum() public {
        expectError(Ownable.OwnableUnauthorizedAccount.selector, abi.encode(newcomer));
        vm.prank(newcomer);
        registry.setQuorum(1, 1);
    }

    function testFuzz_QuorumIsAMajorityOfACommittee(uint16 threshold, uint16 committeeSize) public {
        // Close enough to each other that both answers occur.
        committeeSize = uint16(within(committeeSize, 0, 300));
        threshold = uint16(within(threshold, 0, 300));
        bool valid = threshold > 0 && threshold <= committeeSize && threshold > committeeSize - threshold
            && committeeSize <= 256;
        vm.startPrank(owner);
        if (!valid) expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(threshold, committeeSize));
        registry.setQuorum(threshold, committeeSize);
    }

    function test_QuorumLimits() public {
        vm.startPrank(owner);
        expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(0, 0));
        registry.setQuorum(0, 0);
        expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(2, 4));
        registry.setQuorum(2, 4);
        expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(6, 5));
        registry.setQuorum(6, 5);
        expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(257, 257));
        registry.setQuorum(257, 257);
        registry.setQuorum(1, 1);
        registry.setQuorum(256, 256);
    }

    // requireActive

    function test_RequireActiveReturnsTheQuorum() public view {
        (uint16 threshold, uint16 committeeSize) = registry.requireActive(addressesOf(keys));
        vm.assertEq(threshold, 3);
        vm.assertEq(committeeSize, 5);
    }

    function test_RequireActiveNamesTheFirstThatIsNot() public {
        address[] memory signers = addressesOf(keys);
        signers[3] = newcomer;
        signers[4] = accountOf("another");
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(newcomer));
        registry.requireActive(signers);
    }
}
