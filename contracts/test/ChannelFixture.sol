// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ChannelTerms} from "../src/PaymentChannel.sol";
import {Batch, Fixture} from "./Fixture.sol";

/// The network, and what the tests of its channels check in common.
abstract contract ChannelFixture is Fixture {
    function assertChannel(ChannelTerms memory terms, uint128 deposit, uint128 settled, uint64 expiry, uint8 state)
        internal
        view
    {
        (uint128 deposit_, uint128 settled_, uint64 expiry_, uint8 state_,,) = channels.channel(idOf(terms));
        vm.assertEq(deposit_, deposit, "deposit");
        vm.assertEq(settled_, settled, "settled");
        vm.assertEq(expiry_, expiry, "expiry");
        vm.assertEq(state_, state, "state");
    }

    /// What the contract has to say to every action on a channel that is not open.
    function refuseEverything(ChannelTerms memory terms, bytes4 selector) internal {
        bytes memory fields = abi.encode(idOf(terms));
        (, uint128 settled,,,,) = channels.channel(idOf(terms));
        Batch memory batch = newBatch(terms, settled, settled + 1 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(selector, fields);
        vm.prank(client);
        channels.topUp(terms, 1, CHANNEL_EXPIRY);
        expectError(selector, fields);
        settle(batch, approvals);
        expectError(selector, fields);
        vm.prank(gateway);
        channels.close(terms, settled, "");
        expectError(selector, fields);
        channels.refundExpired(terms);
    }
}
