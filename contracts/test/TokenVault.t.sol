// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {ChannelPayout, Quote} from "../src/Messages.sol";
import {ChannelTerms, PaymentChannel} from "../src/PaymentChannel.sol";
import {TokenVault} from "../src/TokenVault.sol";
import {Deploy} from "./Deploy.sol";
import {Batch, Fixture} from "./Fixture.sol";
import {BlockListToken, OpenToken, SilentToken} from "./Tokens.sol";

/// One recipient that cannot be paid stops nobody else, and loses nothing.
contract TokenVaultTest is Fixture {
    BlockListToken private moody = new BlockListToken();

    /// The same network, paid in another token.
    function use(OpenToken other) private {
        payment = Deploy.payment(other, registry, treasury);
        channels = Deploy.channels(other, registry);
        other.mint(client, 1000 ether);
        vm.startPrank(client);
        other.approve(address(payment), type(uint256).max);
        other.approve(address(channels), type(uint256).max);
        vm.stopPrank();
    }

    /// Every way there is of not being paid.
    function testFuzz_ASettlementPaysTheOthers(uint256 way) public {
        use(moody);
        ChannelTerms memory terms = newChannel();
        BlockListToken.Refusal refusal = BlockListToken.Refusal(within(way, 1, 6));
        moody.refuse(compute, refusal);
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        vm.expectEmit(address(channels));
        emit TokenVault.PaymentDeferred(compute, 9 ether);
        settle(batch, approvals);
        vm.assertEq(moody.balanceOf(gateway), 1 ether);
        vm.assertEq(moody.balanceOf(compute), 0);
        vm.assertEq(channels.owed(compute), 9 ether);
        vm.assertEq(moody.balanceOf(address(channels)), 99 ether);

        // What is owed adds up.
        settle(newBatch(terms, 10 ether, 20 ether));
        vm.assertEq(channels.owed(compute), 18 ether);
        moody.refuse(compute, BlockListToken.Refusal.None);
        vm.expectEmit(address(channels));
        emit TokenVault.PaymentWithdrawn(compute, 18 ether);
        vm.prank(accountOf("anyone"));
        channels.withdraw(compute);
        vm.assertEq(moody.balanceOf(compute), 18 ether);
        vm.assertEq(channels.owed(compute), 0);
        expectError(TokenVault.NothingOwed.selector, abi.encode(compute));
        channels.withdraw(compute);
        vm.assertEq(moody.balanceOf(address(channels)), 80 ether);
    }

    function test_WithdrawRevertsWhileTheTokenRefuses() public {
        use(moody);
        ChannelTerms memory terms = newChannel();
        moody.refuse(compute, BlockListToken.Refusal.Reverts);
        settle(newBatch(terms, 0, 10 ether));
        expectError(BlockListToken.Blocked.selector, abi.encode(compute));
        channels.withdraw(compute);
        moody.refuse(compute, BlockListToken.Refusal.SaysNo);
        expectError(SafeERC20.SafeERC20FailedOperation.selector, abi.encode(moody));
        channels.withdraw(compute);
        vm.assertEq(channels.owed(compute), 9 ether);
        // Another's debt is not the way around.
        expectError(TokenVault.NothingOwed.selector, abi.encode(gateway));
        channels.withdraw(gateway);
    }

    function test_AnEscrowPaysTheOthers() public {
        use(moody);
        Quote memory quote = newEscrow();
        address blocked = vm.addr(keys[1]);
        moody.refuse(blocked, BlockListToken.Refusal.Reverts);
        complete(quote, approve(digestOf(quote), first(3)));
        uint256 share = uint256(0.5 ether) / 3;
        vm.assertEq(moody.balanceOf(vm.addr(keys[0])), share);
        vm.assertEq(moody.balanceOf(vm.addr(keys[2])), share);
        vm.assertEq(moody.balanceOf(gateway), 1 ether);
        vm.assertEq(payment.owed(blocked), share);
        vm.assertEq(moody.balanceOf(address(payment)), share);
        moody.refuse(blocked, BlockListToken.Refusal.None);
        payment.withdraw(blocked);
        vm.assertEq(moody.balanceOf(blocked), share);
    }

    function test_ARefundWaitsForItsClient() public {
        use(moody);
        Quote memory quote = newEscrow();
        ChannelTerms memory terms = newChannel();
        moody.refuse(client, BlockListToken.Refusal.Reverts);
        vm.warp(CHANNEL_EXPIRY + payment.CLAIM_TIME() + 1);
        payment.handleExpiredRequest(quote);
        channels.refundExpired(terms);
        vm.assertEq(payment.requestState(client, quote.requestId), payment.REFUNDED());
        vm.assertEq(payment.owed(client), 10 ether);
        vm.assertEq(channels.owed(client), 100 ether);
        moody.refuse(client, BlockListToken.Refusal.None);
        payment.withdraw(client);
        channels.withdraw(client);
        vm.assertEq(moody.balanceOf(client), 1000 ether);
    }

    /// Recipients that burn all the gas they are given, or that answer at length, cost the caller a bounded amount each.
    function test_HostileRecipientsCostABoundedAmount() public {
        use(moody);
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        batch.payouts = new ChannelPayout[](100);
        for (uint256 i = 0; i < 100; ++i) {
            batch.payouts[i] = ChannelPayout(address(uint160(0x10000 + i)), 0.1 ether);
            bool long = i % 2 == 0;
            moody.refuse(
                batch.payouts[i].account,
                long ? BlockListToken.Refusal.RevertsAtLength : BlockListToken.Refusal.BurnsAllGas
            );
        }
        bytes memory approvals = approve(digestOf(batch), first(3));
        uint256 before = gasleft();
        settle(batch, approvals);
        vm.assertLe(before - gasleft(), 100 * 230_000, "hostile recipients are too dear");
        vm.assertEq(moody.balanceOf(address(channels)), 100 ether);
    }

    /// A token that answers nothing has paid; an account that is no token has not.
    function test_ATokenThatAnswersNothing() public {
        SilentToken silent = new SilentToken();
        use(silent);
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        vm.assertEq(silent.balanceOf(compute), 9 ether);
        vm.assertEq(channels.owed(compute), 0);
        vm.etch(address(silent), "");
        settle(newBatch(terms, 10 ether, 20 ether));
        vm.assertEq(channels.owed(compute), 9 ether);
    }

    /// Whoever brings too little gas for all payments makes none of them: there is no amount at which one is put off.
    function testFuzz_TooLittleGasDefersNothing(uint256 gas_) public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        bytes memory call =
            abi.encodeCall(channels.settle, (batch.root, batch.count, batch.charges, batch.payouts, approvals));
        vm.prank(gateway);
        (bool success,) = address(channels).call{gas: within(gas_, 20_000, 250_000)}(call);
        vm.assertEq(channels.owed(compute) + channels.owed(gateway), 0);
        vm.assertEq(token.balanceOf(compute), success ? 9 ether : 0);
        vm.assertEq(token.balanceOf(gateway), success ? 1 ether : 0);
        vm.assertEq(settledOf(terms), success ? 10 ether : 0);
        if (success) return;
        vm.prank(gateway);
        (success,) = address(channels).call(call);
        vm.assertTrue(success);
        vm.assertEq(token.balanceOf(compute), 9 ether);
    }
}
