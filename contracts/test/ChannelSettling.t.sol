// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {ChannelPayout, Voucher} from "../src/Messages.sol";
import {ChannelTerms, Charge, PaymentChannel} from "../src/PaymentChannel.sol";
import {ChannelFixture} from "./ChannelFixture.sol";
import {Batch} from "./Fixture.sol";

contract ChannelSettlingTest is ChannelFixture {
    // settle

    /// Any other account that has seen a batch with its approvals: a registry node, a validator, or an observer of the mempool.
    function test_NobodyElseSettles() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        address[3] memory others = [client, compute, vm.addr(keys[0])];
        for (uint256 i = 0; i < others.length; ++i) {
            expectError(PaymentChannel.NotGateway.selector, abi.encode(idOf(terms), gateway, others[i]));
            vm.prank(others[i]);
            channels.settle(batch.root, batch.count, batch.charges, batch.payouts, approvals);
        }
        settle(batch, approvals);
    }

    function test_SettlePaysEveryone() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        vm.expectEmit(address(channels));
        emit PaymentChannel.ChannelCharged(idOf(terms), client, gateway, 0, 10 ether, batch.root);
        vm.expectEmit(address(channels));
        emit PaymentChannel.BatchSettled(batch.root, batch.count, 10 ether, addressesOf(first(3)));
        settle(batch, approvals);
        vm.assertEq(token.balanceOf(compute), 9 ether);
        vm.assertEq(token.balanceOf(gateway), 1 ether);
        vm.assertEq(token.balanceOf(address(channels)), 90 ether);
        assertChannel(terms, 100 ether, 10 ether, CHANNEL_EXPIRY, 1);
    }

    function test_SettlementsFollowEachOther() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        settle(newBatch(terms, 10 ether, 11 ether));
        // All of the deposit, on a voucher for more.
        settle(newBatch(newCharge(terms, 11 ether, 100 ether, newVoucher(terms, 101 ether), clientKey)));
        assertChannel(terms, 100 ether, 100 ether, CHANNEL_EXPIRY, 1);
        vm.assertEq(token.balanceOf(address(channels)), 0);
        vm.prank(client);
        channels.topUp(terms, 1 ether, CHANNEL_EXPIRY);
        settle(newBatch(terms, 100 ether, 101 ether));
        vm.assertEq(token.balanceOf(compute) + token.balanceOf(gateway), 101 ether);
    }

    function test_SettleInTheLastSecond() public {
        ChannelTerms memory terms = newChannel();
        vm.warp(CHANNEL_EXPIRY);
        settle(newBatch(terms, 0, 10 ether));
    }

    function test_SettleRefusesAnEmptyBatch() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        batch.root = 0;
        expectError(PaymentChannel.EmptyBatch.selector);
        settle(batch, "");
        batch = newBatch(terms, 0, 10 ether);
        batch.count = 0;
        expectError(PaymentChannel.EmptyBatch.selector);
        settle(batch, "");
        batch = newBatch(terms, 0, 10 ether);
        batch.charges = new Charge[](0);
        expectError(PaymentChannel.EmptyBatch.selector);
        settle(batch, "");
    }

    function test_SettleRefusesAChannelThatIsNotOpen() public {
        refuseEverything(newTerms(), PaymentChannel.NotOpen.selector);
    }

    function test_SettleRefusesAnExpiredChannel() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        vm.warp(CHANNEL_EXPIRY + 1);
        expectError(PaymentChannel.Expired.selector, abi.encode(idOf(terms), CHANNEL_EXPIRY));
        settle(batch, approvals);
    }

    function test_SettleRefusesAnotherStart() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        Batch memory batch = newBatch(terms, 11 ether, 20 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.SettlementMismatch.selector, abi.encode(idOf(terms), 10 ether, 11 ether));
        settle(batch, approvals);
        batch = newBatch(terms, 9 ether, 20 ether);
        approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.SettlementMismatch.selector, abi.encode(idOf(terms), 10 ether, 9 ether));
        settle(batch, approvals);
    }

    function test_SettleRefusesAChargeOfNothing() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        Batch memory batch = newBatch(newCharge(terms, 10 ether, 10 ether));
        expectError(PaymentChannel.NothingCharged.selector, abi.encode(idOf(terms), 10 ether, 10 ether));
        settle(batch, "");
        batch = newBatch(newCharge(terms, 10 ether, 9 ether));
        expectError(PaymentChannel.NothingCharged.selector, abi.encode(idOf(terms), 10 ether, 9 ether));
        settle(batch, "");
    }

    function test_SettleRefusesMoreThanTheVoucher() public {
        ChannelTerms memory terms = newChannel();
        Voucher memory voucher = newVoucher(terms, 10 ether);
        Batch memory batch = newBatch(newCharge(terms, 0, 10 ether + 1, voucher, clientKey));
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.OverAuthorised.selector, abi.encode(idOf(terms), 10 ether + 1, 10 ether));
        settle(batch, approvals);
        settle(newBatch(newCharge(terms, 0, 10 ether, voucher, clientKey)));
    }

    function test_SettleRefusesMoreThanTheDeposit() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 100 ether + 1);
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.OverDeposit.selector, abi.encode(idOf(terms), 100 ether + 1, 100 ether));
        settle(batch, approvals);
    }

    function test_SettleRefusesAVoucherOfAnotherSigner() public {
        ChannelTerms memory terms = newChannel();
        refuseVoucher(newCharge(terms, 0, 10 ether, newVoucher(terms, 10 ether), gatewayKey));
        Charge memory charge = newCharge(terms, 0, 10 ether);
        charge.signature = bytes.concat(charge.signature, hex"00");
        refuseVoucher(charge);
        charge.signature = "";
        refuseVoucher(charge);
    }

    /// Every field of the voucher is in its digest.
    function test_SettleRefusesAVoucherThatWasChanged() public {
        ChannelTerms memory terms = newChannel();
        Charge memory charge = newCharge(terms, 0, 10 ether);
        charge.requestId = 0;
        refuseVoucher(charge);
        charge = newCharge(terms, 0, 10 ether);
        charge.quote = 0;
        refuseVoucher(charge);
        charge = newCharge(terms, 0, 10 ether);
        charge.amount += 1;
        refuseVoucher(charge);
        charge = newCharge(terms, 0, 10 ether);
        charge.cumulative += 1;
        refuseVoucher(charge);
    }

    function refuseVoucher(Charge memory charge) private {
        Batch memory batch = newBatch(charge);
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.InvalidVoucher.selector, abi.encode(idOf(charge.terms)));
        settle(batch, approvals);
    }

    function test_SettleRefusesUnsortedPayouts() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        (batch.payouts[0], batch.payouts[1]) = (batch.payouts[1], batch.payouts[0]);
        refusePayouts(batch, PaymentChannel.UnsortedPayout.selector, abi.encode(batch.payouts[1].account));
        batch.payouts[1].account = batch.payouts[0].account;
        refusePayouts(batch, PaymentChannel.UnsortedPayout.selector, abi.encode(batch.payouts[1].account));
        batch = newBatch(terms, 0, 10 ether);
        batch.payouts[0].account = address(0);
        refusePayouts(batch, PaymentChannel.UnsortedPayout.selector, abi.encode(address(0)));
    }

    function test_SettleRefusesPayoutsThatAreNotWhatWasCharged() public {
        ChannelTerms memory terms = newChannel();
        bytes4 mismatch = PaymentChannel.PayoutMismatch.selector;
        Batch memory batch = newBatch(terms, 0, 10 ether);
        batch.payouts[0].amount += 1;
        refusePayouts(batch, mismatch, abi.encode(10 ether, 10 ether + 1));
        batch.payouts[0].amount -= 2;
        refusePayouts(batch, mismatch, abi.encode(10 ether, 10 ether - 1));
        // No sum wraps around.
        (batch.payouts[0].amount, batch.payouts[1].amount) = (type(uint128).max, 10 ether + 1);
        refusePayouts(batch, mismatch, abi.encode(10 ether, uint256(type(uint128).max) + 10 ether + 1));
        batch.payouts = new ChannelPayout[](0);
        refusePayouts(batch, mismatch, abi.encode(10 ether, 0));
        batch = newBatch(terms, 0, 10 ether);
        batch.payouts[1].amount = 0;
        refusePayouts(batch, PaymentChannel.ZeroAmount.selector, "");
    }

    function refusePayouts(Batch memory batch, bytes4 selector, bytes memory fields) private {
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(selector, fields);
        settle(batch, approvals);
        vm.assertEq(settledOf(batch.charges[0].terms), 0);
    }

    function test_SettleCountsTheRequests() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        // 0, 1, 2, 4 and 130 are over.
        (batch.charges[0].base, batch.charges[0].over) = (3, 2 | 1 << 127);
        settle(batch);
        assertNumbers(terms, 3, 2 | 1 << 127);
        // 3 and 131 as well: the window moves on.
        batch = newBatch(terms, 10 ether, 20 ether);
        (batch.charges[0].base, batch.charges[0].over) = (5, 3 << 125);
        settle(batch);
        assertNumbers(terms, 5, 3 << 125);
        // Everything that was ever counted is below.
        batch = newBatch(terms, 20 ether, 30 ether);
        (batch.charges[0].base, batch.charges[0].over) = (type(uint64).max, 0);
        settle(batch);
        assertNumbers(terms, type(uint64).max, 0);
    }

    /// Neither below the base, nor above it, within the window and at its end.
    function test_SettleReopensNoNumber() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        (batch.charges[0].base, batch.charges[0].over) = (100, 1 << 20 | 1 << 127);
        settle(batch);
        refuseNumbers(terms, 99, type(uint128).max);
        refuseNumbers(terms, 0, type(uint128).max);
        refuseNumbers(terms, 100, 1 << 20);
        refuseNumbers(terms, 100, 1 << 127);
        refuseNumbers(terms, 110, type(uint128).max ^ (1 << 10));
        refuseNumbers(terms, 220, 0);
        refuseNumbers(terms, 227, 0);
        refuseNumbers(terms, 227, 2);
        batch = newBatch(terms, 10 ether, 20 ether);
        (batch.charges[0].base, batch.charges[0].over) = (227, 1);
        settle(batch);
    }

    /// Whatever is counted, what is over stays over, the base does not go back, and nothing else is refused.
    function testFuzz_SettleReopensNoNumber(uint64 base, uint128 over, uint64 base2, uint128 over2) public {
        base = uint64(within(base, 0, 300));
        base2 = uint64(within(base2, 0, 300));
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        (batch.charges[0].base, batch.charges[0].over) = (base, over);
        settle(batch);
        bool kept = base2 >= base;
        for (uint256 number = 0; number < 600; ++number) {
            if (isOver(number, base, over) && !isOver(number, base2, over2)) kept = false;
        }
        batch = newBatch(terms, 10 ether, 20 ether);
        (batch.charges[0].base, batch.charges[0].over) = (base2, over2);
        bytes memory approvals = approve(digestOf(batch), first(3));
        if (!kept) expectError(PaymentChannel.NumbersReopened.selector, abi.encode(idOf(terms), base, over));
        settle(batch, approvals);
    }

    function isOver(uint256 number, uint256 base, uint256 over) private pure returns (bool) {
        return number < base || (number < base + 128 && over >> (number - base) & 1 == 1);
    }

    function refuseNumbers(ChannelTerms memory terms, uint64 base, uint128 over) private {
        Batch memory batch = newBatch(terms, 10 ether, 20 ether);
        (,,,, uint64 base_, uint128 over_) = channels.channel(idOf(terms));
        (batch.charges[0].base, batch.charges[0].over) = (base, over);
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.NumbersReopened.selector, abi.encode(idOf(terms), base_, over_));
        settle(batch, approvals);
    }

    function assertNumbers(ChannelTerms memory terms, uint64 base, uint128 over) private view {
        (,,,, uint64 base_, uint128 over_) = channels.channel(idOf(terms));
        vm.assertEq(base_, base);
        vm.assertEq(over_, over);
    }

    function test_SettleRefusesTooFewApprovals() public {
        Batch memory batch = newBatch(newChannel(), 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(2));
        expectError(Approvals.TooFewApprovals.selector, abi.encode(2, 3));
        settle(batch, approvals);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        settle(batch, "");
    }

    /// A batch of many channels has the approvals of many committees.
    function test_SettleTakesMoreThanTheCommittee() public {
        addValidators("more ", 1);
        Batch memory batch = newBatch(newChannel(), 0, 10 ether);
        settle(batch, approve(digestOf(batch), first(6)));
    }

    function test_SettleRefusesAPartOfASignature() public {
        Batch memory batch = newBatch(newChannel(), 0, 10 ether);
        bytes memory approvals = bytes.concat(approve(digestOf(batch), first(3)), hex"00");
        expectError(Approvals.MalformedApprovals.selector, abi.encode(196));
        settle(batch, approvals);
    }

    /// As many channels and accounts as are allowed go through, and not one more.
    function test_SettleTakesTheLargestBatch() public {
        Batch memory batch = largeBatch(64, 512);
        bytes memory approvals = approve(digestOf(batch), first(3));
        settle(batch, approvals);
        vm.assertEq(token.balanceOf(address(channels)), 0);
        vm.assertEq(token.balanceOf(batch.payouts[511].account), 1 ether / 8);
    }

    function test_SettleRefusesTooManyCharges() public {
        Batch memory batch = largeBatch(65, 1);
        expectError(PaymentChannel.TooManyCharges.selector, abi.encode(65, 64));
        settle(batch, "");
    }

    function test_SettleRefusesTooManyPayouts() public {
        Batch memory batch = largeBatch(1, 513);
        expectError(PaymentChannel.TooManyPayouts.selector, abi.encode(513, 512));
        settle(batch, "");
    }

    /// One token from each channel, in equal parts to all accounts.
    function largeBatch(uint256 charges, uint256 payouts) private returns (Batch memory batch) {
        batch.root = keccak256("root");
        batch.count = 10_000;
        batch.charges = new Charge[](charges);
        for (uint256 i = 0; i < charges; ++i) {
            ChannelTerms memory terms = newTerms();
            terms.salt = bytes32(i);
            open(terms, 1 ether);
            batch.charges[i] = newCharge(terms, 0, 1 ether);
        }
        batch.payouts = new ChannelPayout[](payouts);
        for (uint256 i = 0; i < payouts; ++i) {
            batch.payouts[i] = ChannelPayout(address(uint160(0x10000 + i)), uint128(charges * 1 ether / payouts));
        }
    }

    /// Any number of channels of one or several clients, charged from anywhere to anywhere, and any division of the sum.
    function testFuzz_SettleConserves(uint256 seed, uint256 charges, uint256 payouts) public {
        Batch memory batch;
        batch.root = keccak256(abi.encode(seed));
        batch.count = uint64(within(seed, 1, type(uint64).max));
        batch.charges = new Charge[](within(charges, 1, 6));
        uint128 total = 0;
        for (uint256 i = 0; i < batch.charges.length; ++i) {
            uint128 amount;
            (batch.charges[i], amount) = randomCharge(uint256(keccak256(abi.encode(seed, i))));
            total += amount;
        }
        batch.payouts = randomPayouts(seed, total, within(payouts, 1, 10));
        uint256 held = token.balanceOf(address(channels));
        bytes memory approvals = approve(digestOf(batch), first(3));

        vm.expectEmit(address(channels));
        emit PaymentChannel.BatchSettled(batch.root, batch.count, total, addressesOf(first(3)));
        settle(batch, approvals);
        vm.assertEq(token.balanceOf(address(channels)), held - total);
        for (uint256 i = 0; i < batch.payouts.length; ++i) {
            vm.assertEq(token.balanceOf(batch.payouts[i].account), batch.payouts[i].amount);
        }
        for (uint256 i = 0; i < batch.charges.length; ++i) {
            Charge memory charge = batch.charges[i];
            vm.assertEq(settledOf(charge.terms), charge.settledAfter);
            // Nobody's channel paid for another's.
            (uint128 deposit, uint128 settled,,,,) = channels.channel(idOf(charge.terms));
            vm.assertTrue(settled <= deposit && settled <= charge.cumulative);
        }
        // Once, and never again.
        Charge memory again = batch.charges[0];
        bytes memory fields = abi.encode(idOf(again.terms), again.settledAfter, again.settledBefore);
        expectError(PaymentChannel.SettlementMismatch.selector, fields);
        settle(batch, approvals);
    }

    function randomCharge(uint256 seed) private returns (Charge memory charge, uint128 amount) {
        uint256 key = within(seed, 1, 3);
        ChannelTerms memory terms = ChannelTerms(vm.addr(key), gateway, bytes32(seed));
        uint128 deposit = uint128(within(seed >> 8, 2, 100 ether));
        give(terms.client, deposit, address(channels));
        open(terms, deposit);
        uint128 settledBefore = uint128(within(seed >> 16, 0, deposit - 1));
        if (settledBefore != 0) {
            Voucher memory earlier = newVoucher(terms, settledBefore);
            Batch memory batch = newBatch(newCharge(terms, 0, settledBefore, earlier, key));
            batch.payouts = new ChannelPayout[](1);
            batch.payouts[0] = ChannelPayout(gateway, settledBefore);
            settle(batch);
        }
        uint128 settledAfter = uint128(within(seed >> 24, settledBefore + 1, deposit));
        Voucher memory voucher = newVoucher(terms, uint128(within(seed >> 32, settledAfter, type(uint128).max)));
        return (newCharge(terms, settledBefore, settledAfter, voucher, key), settledAfter - settledBefore);
    }

    function randomPayouts(uint256 seed, uint128 total, uint256 most)
        private
        pure
        returns (ChannelPayout[] memory payouts)
    {
        if (most > total) most = total;
        payouts = new ChannelPayout[](most);
        for (uint256 i = 0; i < most; ++i) {
            address account = address(uint160(uint256(keccak256(abi.encode(seed, "payee", i)))));
            uint256 left = most - i - 1;
            uint128 part = left == 0 ? total : uint128(within(uint256(keccak256(abi.encode(account))), 1, total - left));
            payouts[i] = ChannelPayout(account, part);
            total -= part;
        }
        sort(payouts);
    }

    /// Whatever a settlement claims, it goes through only where every rule holds, and then takes exactly the difference.
    function testFuzz_SettleKeepsTheRules(
        uint128 settled,
        uint128 settledBefore,
        uint128 settledAfter,
        uint128 cumulative,
        bool lie
    ) public {
        ChannelTerms memory terms = newChannel();
        settled = uint128(within(settled, 0, 99 ether));
        if (settled != 0) settle(newBatch(terms, 0, settled));
        settledBefore = lie ? uint128(within(settledBefore, 0, 110 ether)) : settled;
        settledAfter = uint128(within(settledAfter, 0, 110 ether));
        cumulative = uint128(within(cumulative, 0, 150 ether));
        uint256 held = token.balanceOf(address(channels));

        Batch memory batch =
            newBatch(newCharge(terms, settledBefore, settledAfter, newVoucher(terms, cumulative), clientKey));
        bytes memory approvals = approve(digestOf(batch), first(3));
        (bytes4 selector, bytes memory fields) = brokenRule(settled, settledBefore, settledAfter, cumulative);
        if (selector != 0) expectError(selector, bytes.concat(idOf(terms), fields));
        settle(batch, approvals);
        uint128 expected = selector == 0 ? settledAfter : settled;
        assertChannel(terms, 100 ether, expected, CHANNEL_EXPIRY, 1);
        vm.assertEq(token.balanceOf(address(channels)), held + settled - expected);
    }

    /// The error of the first rule that a charge breaks, and its fields but for the channel's id; zero if it breaks none.
    function brokenRule(uint128 settled, uint128 settledBefore, uint128 settledAfter, uint128 cumulative)
        private
        pure
        returns (bytes4 selector, bytes memory fields)
    {
        if (settledBefore != settled) {
            return (PaymentChannel.SettlementMismatch.selector, abi.encode(settled, settledBefore));
        }
        if (settledAfter <= settled) {
            return (PaymentChannel.NothingCharged.selector, abi.encode(settledBefore, settledAfter));
        }
        if (settledAfter > cumulative) {
            return (PaymentChannel.OverAuthorised.selector, abi.encode(settledAfter, cumulative));
        }
        if (settledAfter > 100 ether) {
            return (PaymentChannel.OverDeposit.selector, abi.encode(settledAfter, 100 ether));
        }
    }
}
