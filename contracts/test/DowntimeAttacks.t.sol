// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {DowntimeReport} from "../src/Messages.sol";
import {Slashing} from "../src/Slashing.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {SlashingFixture} from "./SlashingFixture.sol";

/// What a dishonest quorum cannot do with reports: take more than a tenth a day, or punish a validator for time in which it was
/// none. And how a silent validator does not escape an honest one.
contract DowntimeAttacks is SlashingFixture {
    address private silent;

    function setUp() public override {
        super.setUp();
        silent = validatorAt(4);
        stake(keys[4], 9900 ether);
    }

    function newReport(uint256 since, uint256 until) private view returns (DowntimeReport memory) {
        return DowntimeReport({validator: silent, since: uint64(since), until: uint64(until)});
    }

    function assertStake(uint256 expected) private view {
        vm.assertEq(registry.stakeOf(silent), expected);
    }

    // Many reports at once

    /// A validator that is one second old, 44 reports of the 44 days before it.
    function test_ReportsFromBeforeTheStake() public {
        uint256 key = keyOf("newcomer");
        silent = vm.addr(key);
        stake(key, 10_000 ether);
        vm.warp(NOW + 1);
        for (uint256 day = 44; day > 1; --day) {
            uint256 until = NOW + 1 - (day - 1) * 1 days;
            DowntimeReport memory downtime = newReport(until - 1 days, until);
            if (day > 2) refuseReport(downtime, Slashing.DowntimeTooOld.selector, abi.encode(until));
            else refuseTime(downtime);
        }
        refuseTime(newReport(NOW + 1 - 1 days, NOW + 1));
        refuseTime(newReport(NOW - 1 days, NOW));
        assertStake(10_000 ether);
    }

    /// The first day of a validator counts, from its first second on.
    function test_TheFirstDayCounts() public {
        uint256 key = keyOf("newcomer");
        silent = vm.addr(key);
        stake(key, 10_000 ether);
        vm.warp(NOW + 1 + 1 days);
        refuseTime(newReport(NOW, NOW + 1 + 1 days));
        report(newReport(NOW + 1, NOW + 1 + 1 days));
        assertStake(9000 ether);
    }

    /// One that has been there for a month has no month of reports to fear either.
    function test_AMonthOfReportsInOneSecond() public {
        for (uint256 day = 30; day > 2; --day) {
            uint256 until = NOW - (day - 1) * 1 days;
            refuseReport(newReport(until - 1 days, until), Slashing.DowntimeTooOld.selector, abi.encode(until));
        }
        // The two days that a report can still be about make one report, not two.
        report(newReport(NOW - 2 days, NOW - 1 days));
        refuseTime(newReport(NOW - 1 days, NOW));
        assertStake(9000 ether);
        vm.warp(NOW + 1 days - 1);
        refuseTime(newReport(NOW - 1, NOW + 1 days - 1));
        vm.warp(NOW + 1 days);
        report(newReport(NOW, NOW + 1 days));
        assertStake(8100 ether);
    }

    /// Whatever is reported, and whenever, the reports that count are a day apart.
    function testFuzz_OneReportADay(uint256 seed) public {
        // Not the block's timestamp, which the optimizer takes for a constant within a test.
        uint256 time = NOW;
        uint256 last = 0;
        for (uint256 i = 0; i < 24; ++i) {
            seed = uint256(keccak256(abi.encode(seed)));
            time += within(seed, 0, 12 hours);
            vm.warp(time);
            uint256 until = time - within(seed >> 64, 0, 26 hours);
            DowntimeReport memory downtime = newReport(until - within(seed >> 128, 0, 30 hours), until);
            uint256 staked = registry.stakeOf(silent);
            try slashing.slashDowntime(downtime, approve(digestOf(downtime), first(3))) {
                vm.assertTrue(last == 0 || time - last >= 1 days, "two in a day");
                assertStake(staked - (staked + 9) / 10);
                last = time;
            } catch {
                assertStake(staked);
            }
        }
    }

    function test_OverlappingWindows() public {
        DowntimeReport memory downtime = newReport(NOW - 2 days, NOW);
        (uint64 since, uint64 until) = (downtime.since, downtime.until);
        report(downtime);
        vm.warp(NOW + 1 days);

        refuseTime(downtime);
        refuseTime(newReport(since + 1, until));
        refuseTime(newReport(since - 1 days, until + 1 days));
        refuseTime(newReport(until - 1, until + 1 days));
        // What lies before could be cut into as many days as one likes.
        refuseReport(newReport(since - 1 days, since), Slashing.DowntimeTooOld.selector, abi.encode(since));
        assertStake(9000 ether);

        report(newReport(until, until + 1 days));
        assertStake(8100 ether);
    }

    /// Other signers, or more of them, make no other report.
    function test_ReportReplayedByOthers() public {
        DowntimeReport memory downtime = newReport(NOW - 2 days, NOW);
        report(downtime);
        bytes memory fields = abi.encode(NOW, NOW);
        refuseReport(downtime, first(4), Slashing.DowntimeNotAccountable.selector, fields);
        uint256[] memory others = first(3);
        others[0] = keys[3];
        refuseReport(downtime, merge(others, new uint256[](0)), Slashing.DowntimeNotAccountable.selector, fields);
        assertStake(9000 ether);
    }

    /// Nor does another slashing in between: it has settled the time before.
    function test_ReportAfterAnotherOffence() public {
        accuse(invalidCompletion(), only(keys[4]));
        refuseTime(newReport(NOW - 2 days, NOW));
        assertStake(7000 ether);
    }

    // Leaving and returning

    /// Leaving and coming back does not open the time that was punished.
    function test_ReportReplayedAfterAComeback() public {
        DowntimeReport memory downtime = newReport(NOW - 2 days, NOW);
        report(downtime);
        unstake(silent);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        registry.withdrawStake(silent);
        stake(keys[4], MINIMUM_STAKE);
        vm.warp(NOW + 2 + UNSTAKE_DELAY);
        refuseReport(downtime, Slashing.DowntimeTooOld.selector, abi.encode(NOW));
        refuseTime(newReport(NOW + 1 days, NOW + 1 + UNSTAKE_DELAY));
        vm.assertEq(token.balanceOf(treasury), 1000 ether);
    }

    /// The silent one sees the report coming and leaves before it.
    function test_LeavingDoesNotSave() public {
        unstake(silent);
        vm.warp(NOW + 1 days);
        report(newReport(NOW - 2 days, NOW));
        assertStake(9000 ether);
        refuseTime(newReport(NOW - 2 days, NOW));
        refuseTime(newReport(NOW - 1 days, NOW));
    }

    /// Whoever left does not have to answer.
    function test_AbsenceIsNoDowntime() public {
        unstake(silent);
        vm.warp(NOW + 1 days);
        refuseTime(newReport(NOW, NOW + 1 days));
        refuseTime(newReport(NOW - 1 days, NOW + 1));
        report(newReport(NOW - 1 days, NOW));
    }

    /// Nor is there a way out and in again that would wipe out the silence before.
    function test_ThereIsNoReturningAtOnce() public {
        unstake(silent);
        give(silent, 1, address(registry));
        expectError(ValidatorRegistry.StillLeaving.selector, abi.encode(NOW + 1 + UNSTAKE_DELAY));
        vm.prank(silent);
        registry.registerValidator(1);
        report(newReport(NOW - 2 days, NOW));
        assertStake(9000 ether);
    }

    // Who reports

    /// Three stakes of a minute's age make a quorum, but they were not there to see anything.
    function test_ReportersFromAfterTheSilence() public {
        uint256[] memory newcomers = strangers(3);
        for (uint256 i = 0; i < 3; ++i) {
            stake(newcomers[i], MINIMUM_STAKE);
        }
        vm.warp(NOW + 1);
        bytes memory fields = abi.encode(vm.addr(newcomers[0]), NOW + 1);
        refuseReport(newReport(NOW - 2 days, NOW), newcomers, Slashing.UnreliableReporter.selector, fields);
        vm.warp(NOW + 1 days);
        refuseReport(newReport(NOW, NOW + 1 days), newcomers, Slashing.UnreliableReporter.selector, fields);
        vm.warp(NOW + 1 days + 1);
        DowntimeReport memory later = newReport(NOW + 1, NOW + 1 days + 1);
        report(later, approve(digestOf(later), newcomers));
        assertStake(9000 ether);
    }

    /// One of them suffices to spoil it, wherever it stands.
    function test_OneReporterFromAfterTheSilence() public {
        uint256[] memory newcomer = strangers(1);
        stake(newcomer[0], MINIMUM_STAKE);
        vm.warp(NOW + 1);
        bytes memory fields = abi.encode(vm.addr(newcomer[0]), NOW + 1);
        refuseReport(
            newReport(NOW - 2 days, NOW), merge(first(3), newcomer), Slashing.UnreliableReporter.selector, fields
        );
    }

    /// Who was silent itself cannot know about the others. Its word counts again for what comes after.
    function test_ReporterThatWasSilentItself() public {
        report(newReport(NOW - 2 days, NOW));
        uint256[] memory signers = merge(first(2), only(keys[4]));
        DowntimeReport memory downtime = newReport(NOW - 2 days, NOW);
        downtime.validator = validatorAt(3);
        refuseReport(downtime, signers, Slashing.UnreliableReporter.selector, abi.encode(silent, NOW));
        vm.warp(NOW + 1 days);
        (downtime.since, downtime.until) = (uint64(NOW), uint64(NOW + 1 days));
        report(downtime, approve(digestOf(downtime), signers));
        vm.assertEq(registry.stakeOf(validatorAt(3)), MINIMUM_STAKE - 10 ether);
    }
}
