// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ChannelClose, Voucher} from "../src/Messages.sol";
import {ChannelTerms, Charge, PaymentChannel} from "../src/PaymentChannel.sol";
import {Deploy} from "./Deploy.sol";
import {Authorisation, Batch, Fixture} from "./Fixture.sol";

/// Attempts to charge a client more than it signed. The validators are with the attacker: whatever it wants, they approve.
contract VoucherAttacks is Fixture {
    ChannelTerms private terms;

    function setUp() public override {
        super.setUp();
        terms = newChannel();
    }

    /// Presents `charge` with all the approvals it needs.
    function refuse(Charge memory charge, bytes4 selector, bytes memory fields) private {
        Batch memory batch = newBatch(charge);
        bytes memory approvals = approve(digestOf(batch), first(3));
        uint256 held = token.balanceOf(address(channels));
        expectError(selector, bytes.concat(abi.encode(idOf(charge.terms)), fields));
        settle(batch, approvals);
        vm.assertEq(token.balanceOf(address(channels)), held);
    }

    function refuseSignature(bytes memory signature) private {
        Charge memory charge = newCharge(terms, 0, 10 ether);
        charge.signature = signature;
        refuse(charge, PaymentChannel.InvalidVoucher.selector, "");
    }

    function test_HighS() public {
        refuseSignature(mirrored(digestOf(newVoucher(terms, 10 ether)), clientKey));
    }

    function test_ZeroAddress() public {
        refuseSignature(new bytes(65));
        // A channel of nobody's could be charged by a signature of nobody's, if there were such a channel.
        ChannelTerms memory nobodys = ChannelTerms(address(0), gateway, 0);
        Authorisation memory none;
        vm.expectRevert(abi.encodeWithSignature("ECDSAInvalidSignature()"));
        fund(nobodys, 0, 1 ether, CHANNEL_EXPIRY, none);
    }

    function test_VoucherSignedByTheGateway() public {
        refuseSignature(approve(digestOf(newVoucher(terms, 10 ether)), gatewayKey));
    }

    function test_VoucherOnAnotherChain() public {
        vm.chainId(CHAIN + 1);
        bytes32 there = digestOf(newVoucher(terms, 10 ether));
        vm.chainId(CHAIN);
        refuseSignature(approve(there, clientKey));
    }

    function test_VoucherInAnotherContract() public {
        PaymentChannel other = Deploy.channels(token, registry);
        refuseSignature(approve(other.voucherDigest(newVoucher(terms, 10 ether)), clientKey));
    }

    function test_VoucherForAnotherChannel() public {
        ChannelTerms memory others = newTerms();
        others.salt = keccak256("another salt");
        open(others, 100 ether);
        refuseSignature(approve(digestOf(newVoucher(others, 10 ether)), clientKey));
        others = newTerms();
        others.gateway = accountOf("another gateway");
        refuseSignature(approve(digestOf(newVoucher(others, 10 ether)), clientKey));
    }

    function test_VoucherForAnotherRequest() public {
        Voucher memory voucher = newVoucher(terms, 10 ether);
        voucher.requestId = keccak256("another request");
        refuseSignature(approve(digestOf(voucher), clientKey));
        voucher = newVoucher(terms, 10 ether);
        voucher.quote = keccak256("another quote");
        refuseSignature(approve(digestOf(voucher), clientKey));
    }

    /// What the client signs for other purposes is no voucher.
    function test_OtherSignaturesOfTheClient() public {
        refuseSignature(approve(digestOf(ChannelClose(idOf(terms), 10 ether)), clientKey));
        refuseSignature(approve(payment.quoteDigest(newQuote()), clientKey));
        Authorisation memory a = authorise(terms, 100 ether, 10 ether, CHANNEL_EXPIRY);
        refuseSignature(abi.encodePacked(a.r, a.s, a.v));
    }

    /// After a settlement on a later voucher, an earlier one is worth nothing, from wherever it is said to start.
    function test_VoucherRollback() public {
        Voucher memory early = newVoucher(terms, 30 ether);
        settle(newBatch(newCharge(terms, 0, 50 ether, newVoucher(terms, 60 ether), clientKey)));
        bytes4 selector = PaymentChannel.OverAuthorised.selector;
        Charge memory charge = newCharge(terms, 50 ether, 51 ether, early, clientKey);
        refuse(charge, selector, abi.encode(51 ether, 30 ether));
        charge = newCharge(terms, 50 ether, 30 ether, early, clientKey);
        refuse(charge, PaymentChannel.NothingCharged.selector, abi.encode(50 ether, 30 ether));
        charge = newCharge(terms, 20 ether, 30 ether, early, clientKey);
        refuse(charge, PaymentChannel.SettlementMismatch.selector, abi.encode(50 ether, 20 ether));
        // The later one is good for the rest, once.
        settle(newBatch(newCharge(terms, 50 ether, 60 ether, newVoucher(terms, 60 ether), clientKey)));
        charge = newCharge(terms, 60 ether, 61 ether, newVoucher(terms, 60 ether), clientKey);
        refuse(charge, selector, abi.encode(61 ether, 60 ether));
    }

    /// Vouchers that are in flight at the same time add up to the highest of them, and never to their sum.
    function test_ConcurrentVouchers() public {
        Voucher memory low = newVoucher(terms, 40 ether);
        Voucher memory middle = newVoucher(terms, 80 ether);
        Voucher memory high = newVoucher(terms, 120 ether);
        settle(newBatch(newCharge(terms, 0, 40 ether, low, clientKey)));
        Charge memory charge = newCharge(terms, 40 ether, 120 ether, middle, clientKey);
        refuse(charge, PaymentChannel.OverAuthorised.selector, abi.encode(120 ether, 80 ether));
        // More than was deposited was signed; the deposit is the end of it.
        charge = newCharge(terms, 40 ether, 120 ether, high, clientKey);
        refuse(charge, PaymentChannel.OverDeposit.selector, abi.encode(120 ether, 100 ether));
        settle(newBatch(newCharge(terms, 40 ether, 100 ether, high, clientKey)));
        charge = newCharge(terms, 100 ether, 120 ether, high, clientKey);
        refuse(charge, PaymentChannel.OverDeposit.selector, abi.encode(120 ether, 100 ether));
        vm.assertEq(token.balanceOf(client), 900 ether);
    }

    /// Two gateways of one client: the deposit with one is nothing to the other.
    function test_SpendingFromAnotherChannel() public {
        ChannelTerms memory others = newTerms();
        others.gateway = accountOf("another gateway");
        open(others, 5 ether);
        Charge memory charge = newCharge(others, 0, 10 ether);
        refuse(charge, PaymentChannel.OverDeposit.selector, abi.encode(10 ether, 5 ether));
    }

    function test_VoucherAfterTheClosing() public {
        bytes memory signature = approve(digestOf(ChannelClose(idOf(terms), 0)), gatewayKey);
        channels.close(terms, 0, signature);
        open(ChannelTerms(client, gateway, keccak256("another salt")), 100 ether);
        refuse(newCharge(terms, 0, 10 ether), PaymentChannel.Closed.selector, "");
        expectError(PaymentChannel.Closed.selector, abi.encode(idOf(terms)));
        channels.close(terms, 0, signature);
        vm.assertEq(token.balanceOf(address(channels)), 100 ether);
    }

    function test_ClosingWithTheClientsSignatures() public {
        bytes memory voucher = approve(digestOf(newVoucher(terms, 10 ether)), clientKey);
        bytes memory close = approve(digestOf(ChannelClose(idOf(terms), 0)), clientKey);
        bytes memory high = mirrored(digestOf(ChannelClose(idOf(terms), 0)), gatewayKey);
        vm.startPrank(client);
        expectError(PaymentChannel.InvalidClose.selector, abi.encode(idOf(terms)));
        channels.close(terms, 0, voucher);
        expectError(PaymentChannel.InvalidClose.selector, abi.encode(idOf(terms)));
        channels.close(terms, 0, close);
        expectError(PaymentChannel.InvalidClose.selector, abi.encode(idOf(terms)));
        channels.close(terms, 0, high);
        vm.stopPrank();
    }

    /// At no moment can a channel both be charged and be refunded, and at no moment neither.
    function testFuzz_ExpiryRace(uint256 time) public {
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        time = within(time, CHANNEL_EXPIRY - 2, CHANNEL_EXPIRY + 3);
        vm.warp(time);
        if (time <= CHANNEL_EXPIRY) {
            expectError(PaymentChannel.NotExpired.selector, abi.encode(idOf(terms), CHANNEL_EXPIRY));
            channels.refundExpired(terms);
            settle(batch, approvals);
        } else {
            expectError(PaymentChannel.Expired.selector, abi.encode(idOf(terms), CHANNEL_EXPIRY));
            settle(batch, approvals);
            channels.refundExpired(terms);
        }
        vm.assertEq(token.balanceOf(address(channels)), time <= CHANNEL_EXPIRY ? 90 ether : 0);
    }

    /// A client that sees a settlement coming cannot get away: only the gateway's word closes a channel before its time.
    function test_ClosingBeforeASettlement() public {
        vm.prank(client);
        expectError(PaymentChannel.InvalidClose.selector, abi.encode(idOf(terms)));
        channels.close(terms, 0, "");
        vm.prank(client);
        expectError(PaymentChannel.ExpiryShortened.selector, abi.encode(CHANNEL_EXPIRY, NOW + 1));
        channels.topUp(terms, 1, uint64(NOW + 1));
        settle(newBatch(terms, 0, 10 ether));
    }
}
