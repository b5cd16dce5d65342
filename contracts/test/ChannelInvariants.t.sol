// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {InferencePayment} from "../src/InferencePayment.sol";
import {PaymentChannel} from "../src/PaymentChannel.sol";
import {Deploy} from "./Deploy.sol";
import {ChannelSchedule} from "./ChannelSchedule.sol";
import {Fixture} from "./Fixture.sol";
import {BlockListToken} from "./Tokens.sol";

/// Over any schedule of clients, gateways, validators, recipients and time.
contract ChannelInvariants is Fixture {
    uint256 private constant BUDGET = 200 ether;

    BlockListToken private money = new BlockListToken();
    ChannelSchedule private schedule;

    function setUp() public override {
        super.setUp();
        payment = Deploy.payment(money, registry, treasury);
        channels = Deploy.channels(money, registry);
        schedule = new ChannelSchedule(money, registry, payment, channels, keys);
        for (uint256 i = 0; i < schedule.CLIENTS(); ++i) {
            money.mint(schedule.accounts(i), BUDGET);
        }
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(schedule);
    }

    /// One function for all of them, so that forge plays each schedule once.
    function invariant_ChannelsAddUp() public view {
        tokensAreConserved();
        theChannelsHoldWhatIsLeftInThem();
        theEscrowsHoldWhatIsInThem();
        aChannelIsChargedWhatWasSignedAndDeposited();
        aClientPaysWhatItSigned();
    }

    /// The rules would hold of schedules in which nothing happens, too; this one shows that everything does.
    function test_SchedulesReachEveryOutcome() public {
        for (uint256 i = 0; i < 1400; ++i) {
            uint256 seed = uint256(keccak256(abi.encode(i)));
            uint256 other = uint256(keccak256(abi.encode(seed)));
            uint256 action = i % 14;
            if (action == 0) schedule.openOne(seed, uint128(other), uint64(other));
            if (action == 1) schedule.topUp(seed, uint128(other), uint64(other));
            if (action == 2) schedule.fundOne(seed, uint128(other), uint64(other));
            if (action == 3 || action == 4) schedule.signVoucher(seed, uint128(other));
            if (action == 5 || action == 6) schedule.settleSome(seed, other);
            if (action == 7) schedule.again(seed);
            if (action == 8 && i % 3 == 0) schedule.closeOne(seed, other);
            if (action == 8 && i % 3 == 1) schedule.refund(seed);
            if (action == 9) schedule.wait(seed);
            if (action == 10) schedule.refuse(seed, other);
            if (action == 11) schedule.withdraw(seed);
            if (action == 12) schedule.escrow(seed, uint128(other));
            if (action == 13) schedule.endEscrow(seed);
        }
        vm.assertTrue(schedule.openings() > 0, "none opened");
        vm.assertTrue(schedule.fundings() > 0, "none funded");
        vm.assertTrue(schedule.additions() > 0, "none topped up");
        vm.assertTrue(schedule.settlements() > 0, "none settled");
        vm.assertTrue(schedule.manyAtOnce() > 0, "none settled together");
        vm.assertTrue(schedule.refusals() > 0, "none refused");
        vm.assertTrue(schedule.replays() > 0, "none replayed");
        vm.assertTrue(schedule.closings() > 0, "none closed");
        vm.assertTrue(schedule.expiries() > 0, "none expired");
        vm.assertTrue(schedule.withdrawals() > 0, "none withdrawn");
        vm.assertTrue(schedule.completions() > 0, "no escrow completed");
        invariant_ChannelsAddUp();
        afterInvariant();
    }

    function tokensAreConserved() private view {
        uint256 sum = money.balanceOf(address(payment)) + money.balanceOf(address(channels));
        for (uint256 i = 0; i < schedule.accountCount(); ++i) {
            sum += money.balanceOf(schedule.accounts(i));
        }
        vm.assertEq(sum, schedule.CLIENTS() * BUDGET, "tokens went elsewhere");
        vm.assertEq(money.totalSupply(), sum);
    }

    function theChannelsHoldWhatIsLeftInThem() private view {
        uint256 left = 0;
        for (uint256 i = 0; i < schedule.accountCount(); ++i) {
            left += channels.owed(schedule.accounts(i));
        }
        for (uint256 i = 0; i < schedule.CHANNELS(); ++i) {
            (uint128 deposit, uint128 settled,, uint8 state,,) = channels.channel(idOf(schedule.termsAt(i)));
            if (state == 1) left += deposit - settled;
        }
        vm.assertEq(money.balanceOf(address(channels)), left, "held and owed differ");
    }

    function theEscrowsHoldWhatIsInThem() private view {
        uint256 left = 0;
        for (uint256 i = 0; i < schedule.accountCount(); ++i) {
            left += payment.owed(schedule.accounts(i));
        }
        for (uint256 i = 0; i < schedule.escrowCount(); ++i) {
            ChannelSchedule.Escrow memory escrow = schedule.escrowAt(i);
            if (!escrow.ended) left += escrow.quote.total;
        }
        vm.assertEq(money.balanceOf(address(payment)), left, "held and owed differ");
    }

    function aChannelIsChargedWhatWasSignedAndDeposited() private view {
        for (uint256 i = 0; i < schedule.CHANNELS(); ++i) {
            ChannelSchedule.Model memory model = schedule.modelAt(i);
            (uint128 deposit, uint128 settled, uint64 expiry, uint8 state,,) =
                channels.channel(idOf(schedule.termsAt(i)));
            vm.assertTrue(settled <= model.signed, "more than was signed");
            vm.assertTrue(settled <= deposit, "more than was deposited");
            vm.assertEq(deposit, model.deposit, "a deposit is off");
            vm.assertEq(settled, model.settled, "a charge is off");
            vm.assertEq(expiry, model.expiry, "an expiry is off");
            vm.assertEq(state, model.state, "a state is off");
        }
    }

    function aClientPaysWhatItSigned() private view {
        for (uint256 i = 0; i < schedule.CLIENTS(); ++i) {
            address account = schedule.accounts(i);
            uint256 has = money.balanceOf(account) + channels.owed(account) + payment.owed(account);
            vm.assertEq(has + schedule.paid(account), BUDGET + schedule.refunded(account), "a client's balance is off");
        }
    }

    /// However a schedule ends: when time has passed and the token relents, both contracts can be emptied, by anyone.
    function afterInvariant() public {
        vm.warp(block.timestamp + 365 days);
        for (uint256 i = 0; i < schedule.CHANNELS(); ++i) {
            if (schedule.modelAt(i).state == 1) channels.refundExpired(schedule.termsAt(i));
        }
        for (uint256 i = 0; i < schedule.escrowCount(); ++i) {
            ChannelSchedule.Escrow memory escrow = schedule.escrowAt(i);
            if (!escrow.ended) payment.handleExpiredRequest(escrow.quote);
        }
        for (uint256 i = 0; i < schedule.accountCount(); ++i) {
            address account = schedule.accounts(i);
            money.refuse(account, BlockListToken.Refusal.None);
            if (channels.owed(account) > 0) channels.withdraw(account);
            if (payment.owed(account) > 0) payment.withdraw(account);
        }
        vm.assertEq(money.balanceOf(address(channels)), 0, "money is stuck in a channel");
        vm.assertEq(money.balanceOf(address(payment)), 0, "money is stuck in an escrow");
    }
}
