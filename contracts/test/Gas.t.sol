// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ChannelPayout, Committee, Contribution, Quote} from "../src/Messages.sol";
import {ChannelTerms} from "../src/PaymentChannel.sol";
import {Authorisation, Batch, Fixture} from "./Fixture.sol";

/// What a transaction costs, with its base fee and calldata, and with storage as cold as at its start.
/// The ceilings are about 1 % above what was measured: room for another compiler, none for another storage slot. Who makes something
/// dearer has to say so here.
/// forge-config: default.isolate = true
contract GasTest is Fixture {
    Quote private quote;
    bytes private approvals;

    /// The usual case: others have money in escrow, and everyone who is paid has held the token before.
    function setUp() public override {
        super.setUp();
        newEscrow();
        newChannel();
        give(compute, 1, address(1));
        give(gateway, 1, address(1));
        give(treasury, 1, address(1));
        for (uint256 i = 0; i < 3; ++i) {
            give(vm.addr(keys[i]), 1, address(1));
        }
        quote = newQuote();
        quote.requestId = keccak256("measured");
    }

    function test_GasOfInitiate() public {
        initiate(quote);
        assertCost(75_800);
    }

    /// The token keeps the authorisation's nonce, which is a new slot.
    function test_GasOfInitiateWithAuthorization() public {
        Authorisation memory a = authorise(quote);
        vm.prank(gateway);
        relay(quote, a);
        assertCost(103_400);
    }

    function test_GasOfComplete() public {
        initiate(quote);
        approvals = approve(digestOf(quote), first(3));
        complete(quote, approvals);
        assertCost(137_900);
    }

    /// One more transfer, of what the request did not cost.
    function test_GasOfCompleteForLess() public {
        initiate(quote);
        Contribution[] memory contributions = contributionOf(3 ether);
        approvals = approve(payment.completionDigest(completionOf(quote, contributions)), first(3));
        vm.prank(gateway);
        payment.completeInferenceRequest(quote, committee, STOP, contributions, approvals);
        assertCost(145_900);
    }

    /// Each of the five first balances costs a new slot.
    function test_GasOfCompleteForNewcomers() public {
        (gateway, compute) = (accountOf("new gateway"), accountOf("new compute"));
        (quote.gateway, quote.compute) = (gateway, compute);
        addValidators("new ", 3);
        uint256[] memory signers = new uint256[](3);
        uint256 found = 0;
        for (uint256 i = 0; i < keys.length; ++i) {
            if (token.balanceOf(vm.addr(keys[i])) == 0 && found < 3) signers[found++] = keys[i];
        }
        committee = Committee({threshold: 3, members: addressesOf(signers)});
        quote.committee = hashOf(committee);
        initiate(quote);
        approvals = approve(digestOf(quote), signers);
        complete(quote, approvals);
        assertCost(222_300);
    }

    function test_GasOfRefund() public {
        initiate(quote);
        vm.warp(refundableAt(quote));
        payment.handleExpiredRequest(quote);
        assertCost(52_600);
    }

    function newOne() private view returns (ChannelTerms memory) {
        return ChannelTerms(client, gateway, keccak256("measured"));
    }

    function test_GasOfOpen() public {
        open(newOne(), 100 ether);
        assertCost(92_700);
    }

    function test_GasOfFundWithAuthorization() public {
        Authorisation memory a = authorise(newOne(), 0, 100 ether, CHANNEL_EXPIRY);
        vm.prank(gateway);
        fund(newOne(), 0, 100 ether, CHANNEL_EXPIRY, a);
        assertCost(121_100);
    }

    /// Adding to a channel that is there.
    function test_GasOfTopUpWithAuthorization() public {
        Authorisation memory a = authorise(newTerms(), 100 ether, 100 ether, CHANNEL_EXPIRY);
        vm.prank(gateway);
        fund(newTerms(), 100 ether, 100 ether, CHANNEL_EXPIRY, a);
        assertCost(83_700);
    }

    /// One channel, three approvals, six accounts that are paid, and it does not matter for how many requests.
    function test_GasOfSettle() public {
        Batch memory batch = batchForSix();
        batch.charges[0].base = 7;
        approvals = approve(digestOf(batch), first(3));
        settle(batch, approvals);
        assertCost(163_000);
        uint256 cost = vm.lastCallGas().gasTotalUsed;
        batch.charges[0] = newCharge(newTerms(), 10 ether, 20 ether);
        batch.charges[0].base = 10_000;
        batch.count = type(uint64).max;
        approvals = approve(digestOf(batch), first(3));
        settle(batch, approvals);
        // A few bytes of calldata.
        vm.assertLe(vm.lastCallGas().gasTotalUsed, cost + 500, "the number of requests counts");
    }

    function batchForSix() private view returns (Batch memory batch) {
        batch = newBatch(newTerms(), 0, 10 ether);
        batch.count = 1;
        batch.payouts = new ChannelPayout[](6);
        batch.payouts[0] = ChannelPayout(compute, 8 ether);
        batch.payouts[1] = ChannelPayout(gateway, 1 ether);
        batch.payouts[2] = ChannelPayout(treasury, 0.4 ether);
        for (uint256 i = 0; i < 3; ++i) {
            batch.payouts[3 + i] = ChannelPayout(vm.addr(keys[i]), 0.2 ether);
        }
        sort(batch.payouts);
    }

    function test_GasOfClose() public {
        vm.prank(gateway);
        channels.close(newTerms(), 0, "");
        assertCost(46_000);
    }

    function assertCost(uint256 ceiling) private view {
        vm.assertLe(vm.lastCallGas().gasTotalUsed, ceiling, "dearer than it was");
    }
}
