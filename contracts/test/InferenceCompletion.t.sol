// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {Committee, Contribution, Quote} from "../src/Messages.sol";
import {Fixture} from "./Fixture.sol";

/// completeInferenceRequest.
contract InferenceCompletionTest is Fixture {
    function test_CompletePaysEveryone() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        uint128 share = uint128(0.5 ether) / 3;
        uint128 rest = 10 ether - 1 ether - 0.5 ether - 3 * share;
        vm.expectEmit(address(payment));
        emit InferencePayment.PaymentDistributed(
            quote.requestId,
            client,
            hashOf(completionOf(quote)),
            10 ether,
            0,
            rest,
            1 ether,
            share,
            0.5 ether,
            addressesOf(first(3))
        );
        complete(quote, approvals);

        vm.assertEq(token.balanceOf(compute), rest);
        vm.assertEq(token.balanceOf(gateway), 1 ether);
        vm.assertEq(token.balanceOf(treasury), 0.5 ether);
        for (uint256 i = 0; i < 5; ++i) {
            vm.assertEq(token.balanceOf(vm.addr(keys[i])), i < 3 ? share : 0);
        }
        vm.assertEq(token.balanceOf(address(payment)), 0);
        vm.assertEq(payment.requestState(client, quote.requestId), payment.COMPLETED());
    }

    function test_CompletePaysTheNodeThatTookOver() public {
        Quote memory quote = newEscrow();
        compute = accountOf("another compute");
        complete(quote, approve(digestOf(quote), first(3)));
        vm.assertEq(token.balanceOf(quote.compute), 0);
        vm.assertTrue(token.balanceOf(compute) >= 8 ether);
    }

    function test_CompleteGivesBackWhatTheRequestDidNotCost() public {
        Quote memory quote = newEscrow();
        uint128 cost = 3 ether;
        completeFor(quote, contributionOf(cost));
        uint256 share = uint256(0.15 ether) / 3;
        vm.assertEq(token.balanceOf(client), 1000 ether - cost);
        vm.assertEq(token.balanceOf(compute), cost - 0.3 ether - 3 * share - 0.15 ether);
        vm.assertEq(token.balanceOf(gateway), 0.3 ether);
        vm.assertEq(token.balanceOf(treasury), 0.15 ether);
        vm.assertEq(token.balanceOf(address(payment)), 0);
    }

    function test_CompleteGivesEverythingBackForNothing() public {
        Quote memory quote = newEscrow();
        completeFor(quote, contributionOf(0));
        vm.assertEq(token.balanceOf(client), 1000 ether);
        vm.assertEq(token.balanceOf(address(payment)), 0);
        vm.assertEq(payment.requestState(client, quote.requestId), payment.COMPLETED());
    }

    function test_CompletePaysEachNodeForItsPart() public {
        Quote memory quote = newEscrow();
        Contribution[] memory contributions = new Contribution[](3);
        contributions[0] = Contribution(accountOf("first"), RESULT, 2 ether);
        contributions[1] = Contribution(accountOf("second"), keccak256("continued"), 1 ether);
        contributions[2] = Contribution(accountOf("third"), keccak256("ended"), 0);
        completeFor(quote, contributions);
        uint256 nodes = 3 ether - 0.3 ether - 3 * (uint256(0.15 ether) / 3) - 0.15 ether;
        vm.assertEq(token.balanceOf(accountOf("first")), nodes * 2 / 3);
        vm.assertEq(token.balanceOf(accountOf("second")), nodes / 3);
        vm.assertEq(token.balanceOf(accountOf("third")), nodes - nodes * 2 / 3 - nodes / 3);
        vm.assertEq(token.balanceOf(client), 997 ether);
        vm.assertEq(token.balanceOf(address(payment)), 0);
    }

    function test_CompleteRefusesACostAboveTheTotal() public {
        Quote memory quote = newEscrow();
        Contribution[] memory contributions = contributionOf(quote.total + 1);
        refuseContributions(
            quote, contributions, InferencePayment.CostAboveTotal.selector, abi.encode(10 ether + 1, 10 ether)
        );
        contributions = new Contribution[](2);
        contributions[0] = Contribution(compute, RESULT, type(uint128).max);
        contributions[1] = Contribution(compute, RESULT, type(uint128).max);
        bytes memory fields = abi.encode(2 * uint256(type(uint128).max), 10 ether);
        refuseContributions(quote, contributions, InferencePayment.CostAboveTotal.selector, fields);
    }

    function refuseContributions(
        Quote memory quote,
        Contribution[] memory contributions,
        bytes4 selector,
        bytes memory fields
    ) private {
        bytes memory approvals = approve(payment.completionDigest(completionOf(quote, contributions)), first(3));
        expectError(selector, fields);
        vm.prank(gateway);
        payment.completeInferenceRequest(quote, committee, STOP, contributions, approvals);
    }

    function completeFor(Quote memory quote, Contribution[] memory contributions) private {
        bytes memory approvals = approve(payment.completionDigest(completionOf(quote, contributions)), first(3));
        vm.prank(gateway);
        payment.completeInferenceRequest(quote, committee, STOP, contributions, approvals);
    }

    /// Whatever it costs and whoever gave how much, what is paid and given back is what was paid in.
    function testFuzz_CompletePaysOutAllOfIt(uint128 total, uint128[3] memory costs, uint16[3] memory bps) public {
        Quote memory quote = newQuote();
        quote.total = uint128(within(total, 1, 1000 ether));
        quote.gatewayBps = uint16(within(bps[0], 0, 10_000));
        quote.validatorsBps = uint16(within(bps[1], 0, 10_000 - quote.gatewayBps));
        quote.treasuryBps = uint16(within(bps[2], 0, 10_000 - quote.gatewayBps - quote.validatorsBps));
        initiate(quote);
        Contribution[] memory contributions = new Contribution[](3);
        uint256 left = quote.total;
        for (uint256 i = 0; i < 3; ++i) {
            uint128 cost = uint128(within(costs[i], 0, left));
            left -= cost;
            contributions[i] =
                Contribution(accountOf(string(abi.encodePacked("node", bytes1(uint8(0x41 + i))))), RESULT, cost);
        }
        completeFor(quote, contributions);
        vm.assertEq(token.balanceOf(address(payment)), 0);
        vm.assertEq(token.balanceOf(client), 1000 ether - quote.total + left);
    }

    function test_CompletePaysOnePartyInManyRoles() public {
        compute = vm.addr(keys[0]);
        gateway = compute;
        Quote memory quote = newEscrow();
        complete(quote, approve(digestOf(quote), first(3)));
        vm.assertEq(token.balanceOf(compute), 9.5 ether - 2 * (uint256(0.5 ether) / 3));
    }

    function test_CompleteSkipsPartsOfNothing() public {
        Quote memory quote = newQuote();
        (quote.gatewayBps, quote.validatorsBps, quote.treasuryBps) = (0, 0, 0);
        initiate(quote);
        bytes memory approvals = approve(digestOf(quote), first(3));
        vm.record();
        complete(quote, approvals);
        vm.assertEq(token.balanceOf(compute), 10 ether);
        // One transfer is two balances: this contract's and compute's.
        (, bytes32[] memory writes) = vm.accesses(address(token));
        vm.assertEq(writes.length, 2);
    }

    function test_CompleteTakesTheWholeCommittee() public {
        Quote memory quote = newEscrow();
        complete(quote, approve(digestOf(quote), first(5)));
        vm.assertEq(token.balanceOf(vm.addr(keys[4])), 0.1 ether);
    }

    function test_CompleteRefusesTooFewApprovals() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(2));
        expectError(Approvals.TooFewApprovals.selector, abi.encode(2, 3));
        complete(quote, approvals);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        complete(quote, "");
    }

    function test_CompleteRefusesAPartOfASignature() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = bytes.concat(approve(digestOf(quote), first(3)), hex"00");
        expectError(Approvals.MalformedApprovals.selector, abi.encode(196));
        complete(quote, approvals);
    }

    function test_CompleteRefusesNoCompute() public {
        Quote memory quote = newEscrow();
        compute = address(0);
        bytes memory approvals = approve(digestOf(quote), first(3));
        expectError(InferencePayment.ZeroCompute.selector);
        complete(quote, approvals);
    }

    /// The quorum of the request's quote counts, not that of another time.
    function test_CompleteKeepsTheQuorum() public {
        Quote memory quote = newEscrow();
        vm.prank(owner);
        registry.setQuorum(4, 5);
        vm.warp(NOW + 1);
        complete(quote, approve(digestOf(quote), first(3)));
    }

    function testFuzz_CompleteNeedsTheThresholdAndAtMostTheCommittee(
        uint16 threshold,
        uint16 committeeSize,
        uint256 count,
        uint128 total
    ) public {
        addValidators("more ", 5);
        committeeSize = uint16(within(committeeSize, 1, 9));
        threshold = uint16(within(threshold, committeeSize / 2 + 1, committeeSize));
        count = within(count, 0, 10);
        committee = Committee({threshold: threshold, members: addressesOf(first(committeeSize))});
        Quote memory quote = newQuote();
        quote.total = uint128(within(total, 1, 1000 ether));
        initiate(quote);

        bytes memory approvals = approve(digestOf(quote), first(count));
        bytes4 few = Approvals.TooFewApprovals.selector;
        bytes4 outside = InferencePayment.ApprovalOutsideCommittee.selector;
        if (count < threshold) expectError(few, abi.encode(count, threshold));
        else if (count > committeeSize) expectError(outside, abi.encode(count, committeeSize));
        complete(quote, approvals);

        bool paid = count >= threshold && count <= committeeSize;
        vm.assertEq(token.balanceOf(address(payment)), paid ? 0 : quote.total);
        vm.assertEq(payment.requestState(client, quote.requestId) == payment.COMPLETED(), paid);
    }
}
