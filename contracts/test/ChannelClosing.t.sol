// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ChannelClose} from "../src/Messages.sol";
import {ChannelTerms, PaymentChannel} from "../src/PaymentChannel.sol";
import {ChannelFixture} from "./ChannelFixture.sol";

contract ChannelClosingTest is ChannelFixture {
    // close

    function test_GatewayClosesAtOnce() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        vm.expectEmit(address(channels));
        emit PaymentChannel.ChannelClosed(idOf(terms), client, gateway, 10 ether, 90 ether, false);
        vm.prank(gateway);
        channels.close(terms, 10 ether, "");
        vm.assertEq(token.balanceOf(client), 990 ether);
        vm.assertEq(token.balanceOf(address(channels)), 0);
        assertChannel(terms, 100 ether, 10 ether, CHANNEL_EXPIRY, 2);
    }

    function test_AnyoneClosesOnTheGatewaysWord() public {
        ChannelTerms memory terms = newChannel();
        bytes memory signature = approve(digestOf(ChannelClose(idOf(terms), 0)), gatewayKey);
        vm.prank(accountOf("anyone"));
        channels.close(terms, 0, signature);
        vm.assertEq(token.balanceOf(client), 1000 ether);
        assertChannel(terms, 100 ether, 0, CHANNEL_EXPIRY, 2);
    }

    function test_CloseNeedsTheGatewaysWord() public {
        ChannelTerms memory terms = newChannel();
        bytes32 digest = digestOf(ChannelClose(idOf(terms), 0));
        refuseClose(terms, "");
        refuseClose(terms, approve(digest, clientKey));
        refuseClose(terms, bytes.concat(approve(digest, gatewayKey), hex"00"));
        refuseClose(terms, approve(digestOf(ChannelClose(idOf(terms), 1)), gatewayKey));
        refuseClose(terms, approve(digestOf(ChannelClose(keccak256("another channel"), 0)), gatewayKey));
    }

    function refuseClose(ChannelTerms memory terms, bytes memory signature) private {
        expectError(PaymentChannel.InvalidClose.selector, abi.encode(idOf(terms)));
        vm.prank(client);
        channels.close(terms, 0, signature);
    }

    /// A gateway that gives its word and then settles has taken it back.
    function test_CloseNamesWhatWasSettled() public {
        ChannelTerms memory terms = newChannel();
        bytes memory signature = approve(digestOf(ChannelClose(idOf(terms), 0)), gatewayKey);
        settle(newBatch(terms, 0, 10 ether));
        bytes memory fields = abi.encode(idOf(terms), 10 ether, 0);
        expectError(PaymentChannel.SettlementMismatch.selector, fields);
        channels.close(terms, 0, signature);
        expectError(PaymentChannel.SettlementMismatch.selector, fields);
        vm.prank(gateway);
        channels.close(terms, 0, "");
        expectError(PaymentChannel.InvalidClose.selector, abi.encode(idOf(terms)));
        channels.close(terms, 10 ether, signature);
    }

    function test_CloseIsForEver() public {
        ChannelTerms memory terms = newChannel();
        vm.prank(gateway);
        channels.close(terms, 0, "");
        refuseEverything(terms, PaymentChannel.Closed.selector);
        vm.warp(CHANNEL_EXPIRY + 1);
        refuseEverything(terms, PaymentChannel.Closed.selector);
    }

    function test_CloseAfterTheExpiry() public {
        ChannelTerms memory terms = newChannel();
        vm.warp(CHANNEL_EXPIRY + 1);
        vm.prank(gateway);
        channels.close(terms, 0, "");
        vm.assertEq(token.balanceOf(client), 1000 ether);
    }

    function test_CloseOfASpentChannelMovesNothing() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 100 ether));
        vm.expectEmit(address(channels));
        emit PaymentChannel.ChannelClosed(idOf(terms), client, gateway, 100 ether, 0, false);
        vm.record();
        vm.prank(gateway);
        channels.close(terms, 100 ether, "");
        (, bytes32[] memory writes) = vm.accesses(address(token));
        vm.assertEq(writes.length, 0);
    }

    // refundExpired

    function test_AnyoneSendsAnExpiredRestHome() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        vm.warp(CHANNEL_EXPIRY);
        expectError(PaymentChannel.NotExpired.selector, abi.encode(idOf(terms), CHANNEL_EXPIRY));
        channels.refundExpired(terms);
        vm.warp(CHANNEL_EXPIRY + 1);
        vm.expectEmit(address(channels));
        emit PaymentChannel.ChannelClosed(idOf(terms), client, gateway, 10 ether, 90 ether, true);
        vm.prank(accountOf("anyone"));
        channels.refundExpired(terms);
        vm.assertEq(token.balanceOf(client), 990 ether);
        assertChannel(terms, 100 ether, 10 ether, CHANNEL_EXPIRY, 2);
        refuseEverything(terms, PaymentChannel.Closed.selector);
    }

    function test_RefundWaitsForTheNewExpiry() public {
        ChannelTerms memory terms = newChannel();
        vm.prank(client);
        channels.topUp(terms, 0, CHANNEL_EXPIRY + 1 days);
        vm.warp(CHANNEL_EXPIRY + 1);
        expectError(PaymentChannel.NotExpired.selector, abi.encode(idOf(terms), CHANNEL_EXPIRY + 1 days));
        channels.refundExpired(terms);
    }
}
