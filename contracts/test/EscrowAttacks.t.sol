// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {InferencePayment} from "../src/InferencePayment.sol";
import {Completion, Quote} from "../src/Messages.sol";
import {Fixture} from "./Fixture.sol";

/// Attempts to be paid twice, to be paid on other terms, and to lock others out.
contract EscrowAttacks is Fixture {
    function test_CompletedTwice() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        complete(quote, approvals);
        // There is money here again, but not for this.
        Quote memory other = newQuote();
        other.requestId = keccak256("another request");
        initiate(other);
        refuseEverything(quote, payment.COMPLETED(), approvals);
    }

    function test_RefundedTwice() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        giveUp(quote);
        Quote memory other = newQuote();
        other.requestId = keccak256("another request");
        initiate(other);
        refuseEverything(quote, payment.REFUNDED(), approvals);
    }

    function refuseEverything(Quote memory quote, bytes32 state, bytes memory approvals) private {
        bytes memory fields = abi.encode(quote.requestId, state);
        expectError(InferencePayment.NotEscrowed.selector, fields);
        complete(quote, approvals);
        expectError(InferencePayment.NotEscrowed.selector, fields);
        vm.prank(gateway);
        payment.markRequestFailed(quote, "");
        bytes memory consent = consentOf(quote);
        expectError(InferencePayment.NotEscrowed.selector, fields);
        vm.prank(gateway);
        payment.markRequestFailed(quote, consent);
        vm.warp(refundableAt(quote));
        expectError(InferencePayment.NotEscrowed.selector, fields);
        payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(address(payment)), 10 ether);
    }

    function test_ExpiryRace_CompleteInTheLastSecond() public {
        Quote memory quote = newEscrow();
        uint256 refundable = refundableAt(quote);
        vm.warp(refundable - 1);
        expectError(InferencePayment.NotRefundable.selector, abi.encode(refundable));
        payment.handleExpiredRequest(quote);
        complete(quote, approve(digestOf(quote), first(3)));
        vm.assertEq(token.balanceOf(client), 990 ether);
    }

    function test_ExpiryRace_RefundInTheFirst() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        uint256 refundable = refundableAt(quote);
        vm.warp(refundable);
        expectError(InferencePayment.Expired.selector, abi.encode(refundable - 1));
        complete(quote, approvals);
        payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
    }

    /// At no moment are both ways open, and at no moment is none.
    function testFuzz_ExpiryRace(uint256 time, bool completeFirst) public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        uint256 refundable = refundableAt(quote);
        time = within(time, NOW, quote.expiry + 1 hours);
        vm.warp(time);
        if (completeFirst && time >= refundable) {
            expectError(InferencePayment.Expired.selector, abi.encode(refundable - 1));
            complete(quote, approvals);
        }
        if (!completeFirst && time < refundable) {
            expectError(InferencePayment.NotRefundable.selector, abi.encode(refundable));
            payment.handleExpiredRequest(quote);
        }
        if (time < refundable) complete(quote, approvals);
        else payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(address(payment)), 0);
        vm.assertEq(token.balanceOf(client), time < refundable ? 990 ether : 1000 ether);
    }

    /// Two transactions in one block: the first of them ends the request, whichever it is.
    function test_CompleteAgainstRefundInOneBlock() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        vm.warp(quote.expiry);
        complete(quote, approvals);
        expectError(InferencePayment.NotEscrowed.selector, abi.encode(quote.requestId, payment.COMPLETED()));
        vm.prank(gateway);
        payment.markRequestFailed(quote, "");

        quote.requestId = keccak256("another request");
        vm.warp(NOW);
        initiate(quote);
        approvals = approve(digestOf(quote), first(3));
        vm.warp(quote.expiry);
        giveUp(quote);
        expectError(InferencePayment.NotEscrowed.selector, abi.encode(quote.requestId, payment.REFUNDED()));
        complete(quote, approvals);
        vm.assertEq(token.balanceOf(address(payment)), 0);
        vm.assertEq(token.balanceOf(client), 990 ether);
    }

    function test_OtherTermsThanEscrowed() public {
        Quote memory quote = newEscrow();
        bytes32 commitment = payment.requestState(client, quote.requestId);
        address thief = accountOf("thief");

        Quote memory changed = newQuote();
        changed.gateway = thief;
        refuseTerms(changed, commitment);
        vm.prank(thief);
        expectMismatch(changed, commitment);
        payment.markRequestFailed(changed, "");

        changed = newQuote();
        changed.total = 1000 ether;
        refuseTerms(changed, commitment);
        changed = newQuote();
        (changed.gatewayBps, changed.validatorsBps) = (0, 10_000);
        refuseTerms(changed, commitment);
        changed = newQuote();
        changed.expiry += 1;
        refuseTerms(changed, commitment);
        changed = newQuote();
        changed.expiry = uint64(NOW - 1);
        expectMismatch(changed, commitment);
        payment.handleExpiredRequest(changed);
        vm.assertEq(token.balanceOf(address(payment)), 10 ether);
    }

    function refuseTerms(Quote memory changed, bytes32 commitment) private {
        Completion memory completion = completionOf(changed);
        bytes memory approvals = approve(payment.completionDigest(completion), first(3));
        expectMismatch(changed, commitment);
        complete(changed, approvals);
    }

    function expectMismatch(Quote memory changed, bytes32 commitment) private {
        expectError(InferencePayment.QuoteMismatch.selector, abi.encode(commitment, hashOf(changed)));
    }

    /// An id in another's name is worth nothing: neither in the victim's name, nor in one's own.
    function test_SquattingAnotherClientsId() public {
        Quote memory quote = newQuote();
        address squatter = accountOf("squatter");
        give(squatter, 1, address(payment));
        expectError(InferencePayment.WrongClient.selector, abi.encode(client, squatter));
        vm.prank(squatter);
        payment.initiateInferenceRequest(quote);

        Quote memory squat = newQuote();
        squat.client = squatter;
        squat.total = 1;
        initiate(squat);
        initiate(quote);
        vm.assertEq(payment.requestState(client, quote.requestId), completionOf(quote).quote);

        complete(quote, approve(digestOf(quote), first(3)));
        vm.warp(refundableAt(squat));
        payment.handleExpiredRequest(squat);
        vm.assertEq(token.balanceOf(squatter), 1);
    }

    /// A client that approved the contract for more than this quote pays for this quote.
    function test_ApprovedAllowanceIsNotSpentByOthers() public {
        Quote memory quote = newEscrow();
        vm.prank(gateway);
        expectError(InferencePayment.WrongClient.selector, abi.encode(client, gateway));
        payment.initiateInferenceRequest(quote);
        vm.assertEq(token.balanceOf(client), 990 ether);
    }
}
