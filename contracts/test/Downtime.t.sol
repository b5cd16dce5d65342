// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {DowntimeReport} from "../src/Messages.sol";
import {Slashing} from "../src/Slashing.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {SlashingFixture} from "./SlashingFixture.sol";

contract DowntimeTest is SlashingFixture {
    DowntimeReport private downtime;
    address private silent;

    function setUp() public override {
        super.setUp();
        downtime = newReport();
        silent = downtime.validator;
    }

    function test_TheQuorumSlashesATenth() public {
        bytes memory approvals = approve(digestOf(downtime), first(3));
        bytes32 evidence = slashing.evidenceOf("DOWNTIME", digestOf(downtime));
        vm.expectEmit(address(slashing));
        emit Slashing.EvidenceAccepted(evidence, "DOWNTIME", 1);
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(silent, 10 ether, 90 ether, evidence);
        vm.prank(accountOf("anyone"));
        report(downtime, approvals);
        vm.assertEq(registry.stakeOf(silent), 90 ether);
        vm.assertTrue(registry.withdrawableAt(silent) != 0);
        vm.assertEq(token.balanceOf(treasury), 10 ether);
        (uint64 since,) = registry.accountableTime(silent);
        vm.assertEq(since, NOW);
        vm.assertTrue(slashing.punished(evidence, silent));
    }

    function test_TheDigestIsTheOneThatValidatorsSign() public view {
        vm.assertEq(slashing.downtimeDigest(downtime), digestOf(downtime));
    }

    function test_ADayIsEnough() public {
        downtime.since = downtime.until - 1 days + 1;
        refuseTime(Slashing.DowntimeTooShort.selector, abi.encode(downtime.since, downtime.until));
        downtime.since -= 1;
        report(downtime);
    }

    function test_RefusesATimeThatRunsBackwards() public {
        (downtime.since, downtime.until) = (downtime.until, downtime.since);
        refuseTime(Slashing.DowntimeTooShort.selector, abi.encode(downtime.since, downtime.until));
    }

    function test_RefusesTheFuture() public {
        downtime.until += 1;
        refuseTime(Slashing.DowntimeNotOver.selector, abi.encode(downtime.until));
        vm.warp(downtime.until);
        report(downtime);
    }

    function test_ADayLaterIsTooLate() public {
        bytes memory approvals = approve(digestOf(downtime), first(3));
        vm.warp(NOW + 1 days + 1);
        expectError(Slashing.DowntimeTooOld.selector, abi.encode(downtime.until));
        report(downtime, approvals);
        vm.warp(NOW + 1 days);
        report(downtime, approvals);
    }

    /// The next report may begin where the last one was brought.
    function test_DowntimesFollowEachOther() public {
        stake(keys[4], MINIMUM_STAKE);
        report(downtime);
        vm.warp(NOW + 1 days);
        downtime.since = downtime.until;
        downtime.until += 1 days;
        report(downtime);
        vm.assertEq(registry.stakeOf(silent), 162 ether);
    }

    /// One that stays silent loses a tenth each day, until the rest is less than the minimum.
    function test_ALongSilenceCostsATenthADay() public {
        stake(keys[4], MINIMUM_STAKE / 2);
        uint256 left = registry.stakeOf(silent);
        for (uint256 time = NOW; time < NOW + 4 days; time += 1 days) {
            vm.assertEq(registry.withdrawableAt(silent), 0);
            vm.warp(time);
            (downtime.since, downtime.until) = (uint64(time - 1 days), uint64(time));
            report(downtime);
            left -= (left + 9) / 10;
            vm.assertEq(registry.stakeOf(silent), left);
        }
        vm.assertTrue(registry.withdrawableAt(silent) != 0);
    }

    function test_RefusesAnUnknownValidator() public {
        downtime.validator = accountOf("stranger");
        refuseTime(ValidatorRegistry.InactiveValidator.selector, abi.encode(downtime.validator));
        downtime.validator = silent;
        unstake(silent);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        registry.withdrawStake(silent);
        downtime.until = uint64(NOW) + 1 + UNSTAKE_DELAY;
        refuseTime(ValidatorRegistry.InactiveValidator.selector, abi.encode(silent));
    }

    function test_RefusesTooFewAndTooMany() public {
        bytes memory approvals = approve(digestOf(downtime), first(2));
        expectError(Approvals.TooFewApprovals.selector, abi.encode(2, 3));
        report(downtime, approvals);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        report(downtime, "");
        addValidators("more ", 2);
        vm.warp(NOW + 2 days + 1);
        downtime = newReport();
        downtime.validator = validatorAt(6);
        approvals = approve(digestOf(downtime), first(6));
        expectError(Approvals.TooManyApprovals.selector, abi.encode(6, 5));
        report(downtime, approvals);
        report(downtime, approve(digestOf(downtime), first(5)));
    }

    function test_RefusesSignersThatAreNotActive() public {
        uint256[] memory unstaked = strangers(1);
        bytes memory approvals = approve(digestOf(downtime), merge(first(3), unstaked));
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(vm.addr(unstaked[0])));
        report(downtime, approvals);
        approvals = approve(digestOf(downtime), first(3));
        unstake(validatorAt(1));
        vm.warp(NOW + 1);
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(validatorAt(1)));
        report(downtime, approvals);
    }

    function test_RefusesMalformedApprovals() public {
        bytes memory approvals = approve(digestOf(downtime), first(1));
        expectError(Approvals.MalformedApprovals.selector, abi.encode(64));
        report(downtime, new bytes(64));
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        report(downtime, new bytes(65));
        expectError(Approvals.UnsortedApproval.selector, abi.encode(validatorAt(0)));
        report(downtime, bytes.concat(approvals, approvals));
    }

    function refuseTime(bytes4 selector, bytes memory fields) private {
        refuseReport(downtime, selector, fields);
    }
}
