// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {NCNToken} from "../src/NCNToken.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Fixture} from "./Fixture.sol";
import {Test} from "./Test.sol";

/// What forge calls at random, itself the slasher. As in {Schedule}, every action knows whether it has to succeed.
contract StakeSchedule is Test {
    NCNToken private immutable token;
    ValidatorRegistry private immutable registry;
    address[] public validators;

    /// What each validator should have staked, and when it may have it.
    mapping(address validator => uint256 amount) public stakes;
    mapping(address validator => uint256 time) public ready;
    /// When it joins, or 0 when it is a stranger.
    mapping(address validator => uint256 time) public joined;
    /// The last time that it was a stranger or slashed: nothing before it can be held against it.
    mapping(address validator => uint256 time) public accountable;
    uint256 public slashed;
    uint256 public registrations;
    uint256 public topUps;
    uint256 public withdrawals;
    uint256 public lesserSlashings;
    uint256 public expulsions;
    uint256 public removals;
    uint256 public slashingsOfLeavers;

    constructor(NCNToken token_, ValidatorRegistry registry_, address[] memory validators_) {
        (token, registry, validators) = (token_, registry_, validators_);
        for (uint256 i = 0; i < validators.length; ++i) {
            stakes[validators[i]] = registry.stakeOf(validators[i]);
            if (stakes[validators[i]] != 0) joined[validators[i]] = 1;
        }
    }

    function register(uint256 seed, uint256 amount) external {
        address validator = pick(seed);
        amount = within(amount, 0, token.balanceOf(validator));
        bool allowed = amount > 0 && stakes[validator] + amount >= registry.minimumStake() && ready[validator] == 0;
        bool known = stakes[validator] != 0;
        vm.startPrank(validator);
        token.approve(address(registry), amount);
        try registry.registerValidator(amount) {
            vm.assertTrue(allowed, "registered against the rules");
            if (!known) (accountable[validator], joined[validator]) = (block.timestamp + 1, block.timestamp + 1);
            stakes[validator] += amount;
            if (known) ++topUps;
            else ++registrations;
        } catch {
            vm.assertFalse(allowed);
        }
        vm.stopPrank();
    }

    function unstake(uint256 seed) external {
        address validator = pick(seed);
        bool allowed = stakes[validator] != 0 && ready[validator] == 0;
        vm.prank(validator);
        try registry.requestUnstake() {
            vm.assertTrue(allowed, "left twice");
            ready[validator] = block.timestamp + 1 + registry.unstakeDelay();
        } catch {
            vm.assertFalse(allowed);
        }
    }

    function withdraw(uint256 seed) external {
        address validator = pick(seed);
        bool allowed = ready[validator] != 0 && block.timestamp >= ready[validator];
        uint256 balance = token.balanceOf(validator);
        try registry.withdrawStake(validator) {
            vm.assertTrue(allowed, "withdrawn against the rules");
            vm.assertEq(token.balanceOf(validator), balance + stakes[validator], "withdrew another sum");
            (stakes[validator], ready[validator], joined[validator]) = (0, 0, 0);
            ++withdrawals;
        } catch {
            vm.assertFalse(allowed);
        }
    }

    /// Of all, of what is not a part, and of anything between.
    function slash(uint256 seed, uint256 part) external {
        address validator = pick(seed);
        uint16 basisPoints = part % 8 == 0 ? 10_000 : uint16(within(part, 0, 10_001));
        uint256 before = stakes[validator];
        bool allowed = before != 0 && basisPoints != 0 && basisPoints <= 10_000;
        try registry.slash(validator, basisPoints, bytes32(seed)) returns (uint128 amount) {
            vm.assertTrue(allowed, "slashed against the rules");
            vm.assertEq(amount, (before * basisPoints + 9999) / 10_000, "slashed another sum");
            slashed += amount;
            settle(validator, before - amount);
        } catch {
            vm.assertFalse(allowed);
        }
    }

    function slashAsAnother(uint256 seed, uint16 basisPoints) external {
        vm.prank(pick(seed / 2));
        try registry.slash(pick(seed), basisPoints, bytes32(seed)) {
            vm.assertTrue(false, "slashed by another");
        } catch {}
    }

    function wait(uint256 time) external {
        vm.warp(block.timestamp + within(time, 1, 6 days));
    }

    function settle(address validator, uint256 left) private {
        bool leaving = ready[validator] != 0;
        stakes[validator] = left;
        accountable[validator] = block.timestamp;
        if (leaving) ++slashingsOfLeavers;
        if (left == 0) ++removals;
        else if (left >= registry.minimumStake()) ++lesserSlashings;
        else if (!leaving) ++expulsions;
        if (left < registry.minimumStake() && !leaving) {
            ready[validator] = block.timestamp + 1 + registry.unstakeDelay();
        }
    }

    function pick(uint256 seed) private view returns (address) {
        return validators[seed % validators.length];
    }

    function count() external view returns (uint256) {
        return validators.length;
    }
}

/// Over any schedule of validators, slashings and time.
contract StakeInvariants is Fixture {
    uint256 private constant BUDGET = 1000 ether;

    StakeSchedule private schedule;

    function setUp() public override {
        super.setUp();
        // Two have never been validators.
        address[] memory validators = new address[](7);
        for (uint256 i = 0; i < 7; ++i) {
            validators[i] = i < 5 ? vm.addr(keys[i]) : vm.addr(i);
            give(validators[i], BUDGET, address(registry));
        }
        schedule = new StakeSchedule(token, registry, validators);
        vm.prank(owner);
        registry.setSlasher(address(schedule));
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(schedule);
    }

    /// One function for all of them, so that forge plays each schedule once.
    function invariant_StakesAndSlashingsAddUp() public view {
        theRegistryHoldsTheStakes();
        theTreasuryGotWhatWasSlashed();
        theActiveListIsTheActiveSet();
        theAccountableTimeIsInThePast();
    }

    /// The rules would hold of schedules in which nothing happens, too; this one shows that everything does.
    function test_SchedulesReachEveryOutcome() public {
        for (uint256 i = 0; i < 1000; ++i) {
            uint256 seed = uint256(keccak256(abi.encode(i)));
            uint256 other = uint256(keccak256(abi.encode(seed)));
            uint256 action = i % 8;
            if (action < 2) schedule.register(seed, other);
            if (action == 2) schedule.unstake(seed);
            if (action == 3) schedule.withdraw(seed);
            if (action == 4) schedule.slash(seed, other % 1000);
            if (action == 5) schedule.slash(seed, other);
            if (action == 6) schedule.slashAsAnother(seed, uint16(other));
            if (action == 7) schedule.wait(seed);
        }
        vm.assertTrue(schedule.registrations() > 0, "nobody came back");
        vm.assertTrue(schedule.topUps() > 0, "nobody topped up");
        vm.assertTrue(schedule.withdrawals() > 0, "no stake withdrawn");
        vm.assertTrue(schedule.lesserSlashings() > 0, "nobody stayed");
        vm.assertTrue(schedule.expulsions() > 0, "nobody was sent away");
        vm.assertTrue(schedule.removals() > 0, "nobody lost everything");
        vm.assertTrue(schedule.slashingsOfLeavers() > 0, "no leaver was slashed");
        invariant_StakesAndSlashingsAddUp();
    }

    function theRegistryHoldsTheStakes() private view {
        uint256 staked = 0;
        for (uint256 i = 0; i < schedule.count(); ++i) {
            address validator = schedule.validators(i);
            vm.assertEq(registry.stakeOf(validator), schedule.stakes(validator), "a stake is off");
            vm.assertEq(registry.withdrawableAt(validator), schedule.ready(validator), "a date is off");
            staked += registry.stakeOf(validator);
        }
        vm.assertEq(token.balanceOf(address(registry)), staked, "held and staked differ");
    }

    function theTreasuryGotWhatWasSlashed() private view {
        vm.assertEq(token.balanceOf(treasury), schedule.slashed(), "slashed and got differ");
    }

    function theAccountableTimeIsInThePast() private view {
        for (uint256 i = 0; i < schedule.count(); ++i) {
            address validator = schedule.validators(i);
            (uint64 since, uint64 until) = registry.accountableTime(validator);
            vm.assertTrue(since <= block.timestamp + 1 && until <= block.timestamp, "accountable in the future");
            vm.assertEq(until != 0, schedule.stakes(validator) != 0);
            if (registry.isActive(validator) && until != 0) vm.assertEq(until, block.timestamp);
            if (since < until) {
                vm.assertTrue(since >= schedule.accountable(validator), "accountable before it was active");
            }
        }
    }

    function theActiveListIsTheActiveSet() private view {
        address[] memory active = active();
        uint256 expected = 0;
        for (uint256 i = 0; i < schedule.count(); ++i) {
            address validator = schedule.validators(i);
            (uint256 joined, uint256 ready) = (schedule.joined(validator), schedule.ready(validator));
            bool counts = joined != 0 && joined <= block.timestamp
                && (ready == 0 || block.timestamp < ready - registry.unstakeDelay());
            vm.assertEq(registry.isActive(validator), counts);
            if (counts) ++expected;
        }
        vm.assertEq(active.length, expected, "list and set differ in size");
        for (uint256 i = 0; i < active.length; ++i) {
            vm.assertTrue(registry.isActive(active[i]), "listed but not active");
            for (uint256 j = 0; j < i; ++j) {
                vm.assertTrue(active[i] != active[j], "listed twice");
            }
        }
    }
}
