// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ExactTransfer} from "../src/ExactTransfer.sol";
import {ChannelClose} from "../src/Messages.sol";
import {ChannelTerms, PaymentChannel} from "../src/PaymentChannel.sol";
import {Deploy} from "./Deploy.sol";
import {Authorisation, Batch, Fixture} from "./Fixture.sol";
import {FeeToken, HookToken, OpenToken} from "./Tokens.sol";

/// Tokens that misbehave, in a channel.
contract ChannelTokenAttacks is Fixture {
    HookToken private hooked = new HookToken();
    ChannelTerms private terms;

    /// The same network, paid in another token.
    function use(OpenToken other) private {
        channels = Deploy.channels(other, registry);
        other.mint(client, 1000 ether);
        vm.prank(client);
        other.approve(address(channels), type(uint256).max);
    }

    function test_FeeOnTransfer() public {
        FeeToken fee = new FeeToken();
        use(fee);
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(99 ether, 100 ether));
        open(newTerms(), 100 ether);
        Authorisation memory a = authorise(newTerms(), 0, 100 ether, CHANNEL_EXPIRY);
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(99 ether, 100 ether));
        fund(newTerms(), 0, 100 ether, CHANNEL_EXPIRY, a);
        vm.assertEq(fee.balanceOf(client), 1000 ether);
    }

    /// Calls that would all go through if they came on their own.
    function innerCalls() private view returns (bytes[] memory calls) {
        ChannelTerms memory tokens = ChannelTerms(address(hooked), gateway, 0);
        Authorisation memory a = authorise(terms, 100 ether, 10 ether, CHANNEL_EXPIRY);
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        bytes memory word = approve(digestOf(ChannelClose(idOf(terms), 0)), gatewayKey);
        calls = new bytes[](7);
        calls[0] = abi.encodeCall(channels.open, (tokens, 1 ether, CHANNEL_EXPIRY));
        calls[1] = abi.encodeCall(channels.topUp, (tokens, 1 ether, CHANNEL_EXPIRY));
        calls[2] =
            abi.encodeCall(channels.fundWithAuthorization, (terms, 100 ether, 10 ether, CHANNEL_EXPIRY, a.v, a.r, a.s));
        calls[3] = abi.encodeCall(channels.settle, (batch.root, batch.count, batch.charges, batch.payouts, approvals));
        calls[4] = abi.encodeCall(channels.close, (terms, 0, word));
        calls[5] = abi.encodeCall(channels.refundExpired, (terms));
        calls[6] = abi.encodeCall(channels.withdraw, (client));
    }

    function useHooked() private {
        use(hooked);
        terms = newChannel();
        hooked.mint(address(hooked), 100 ether);
        vm.prank(address(hooked));
        hooked.approve(address(channels), type(uint256).max);
    }

    function assertHookWasRefused() private view {
        vm.assertFalse(hooked.succeeded());
        vm.assertEq(
            keccak256(hooked.answer()),
            keccak256(abi.encodeWithSelector(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector))
        );
    }

    /// From the first transfer of a settlement into everything else.
    function test_ReentrantFromASettlement() public {
        useHooked();
        bytes[] memory calls = innerCalls();
        for (uint256 i = 0; i < calls.length; ++i) {
            ChannelTerms memory outer = ChannelTerms(client, gateway, bytes32(i));
            open(outer, 10 ether);
            hooked.hook(address(channels), calls[i]);
            settle(newBatch(outer, 0, 10 ether));
            assertHookWasRefused();
        }
        vm.assertEq(hooked.balanceOf(address(channels)), 100 ether);
    }

    /// From everything else into a settlement, which finds the guard closed whatever was going on.
    function test_ReentrantIntoASettlement() public {
        useHooked();
        bytes memory inner = innerCalls()[3];
        ChannelTerms memory outer = ChannelTerms(client, gateway, 0);
        hooked.hook(address(channels), inner);
        open(outer, 10 ether);
        assertHookWasRefused();
        hooked.hook(address(channels), inner);
        vm.prank(client);
        channels.topUp(outer, 10 ether, CHANNEL_EXPIRY);
        assertHookWasRefused();
        Authorisation memory a = authorise(outer, 20 ether, 10 ether, CHANNEL_EXPIRY);
        hooked.hook(address(channels), inner);
        fund(outer, 20 ether, 10 ether, CHANNEL_EXPIRY, a);
        assertHookWasRefused();
        hooked.hook(address(channels), inner);
        vm.prank(gateway);
        channels.close(outer, 0, "");
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(channels)), 100 ether);
        vm.warp(CHANNEL_EXPIRY + 1);
        hooked.hook(address(channels), inner);
        channels.refundExpired(terms);
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(channels)), 0);
    }

    /// The state is written before a token moves, so a hook sees the charge as made even without the guard.
    function test_StateIsFinalBeforeTokensMove() public {
        useHooked();
        hooked.hook(address(channels), abi.encodeCall(channels.channel, (idOf(terms))));
        settle(newBatch(terms, 0, 10 ether));
        vm.assertTrue(hooked.succeeded());
        (, uint128 settled,,) = abi.decode(hooked.answer(), (uint128, uint128, uint64, uint8));
        vm.assertEq(settled, 10 ether);
    }
}
