// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {Quote} from "../src/Messages.sol";
import {ChannelTerms, PaymentChannel} from "../src/PaymentChannel.sol";
import {Deploy} from "./Deploy.sol";
import {Authorisation, Fixture} from "./Fixture.sol";

/// A stranger sees the client's signature before it is mined, and presents it first.
contract FrontRunning is Fixture {
    address private thief = accountOf("thief");

    function test_PermitSubmittedByAnother() public {
        vm.prank(client);
        token.approve(address(payment), 0);
        bytes32 kind = keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 hash = keccak256(abi.encode(kind, client, address(payment), 10 ether, 0, NOW));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(clientKey, typedDigest(address(token), "1", hash));
        vm.prank(thief);
        token.permit(client, address(payment), 10 ether, NOW, v, r, s);
        // All that the client loses is its own permit; the allowance is there, and only it can use it.
        Quote memory quote = newQuote();
        expectError(InferencePayment.WrongClient.selector, abi.encode(client, thief));
        vm.prank(thief);
        payment.initiateInferenceRequest(quote);
        initiate(quote);
        vm.assertEq(token.balanceOf(address(payment)), 10 ether);
    }

    function test_AuthorisationPresentedToTheToken() public {
        Quote memory quote = newQuote();
        Authorisation memory a = authorise(quote);
        bytes32 nonce = hashOf(quote);
        expectError(IERC20Errors.ERC20InvalidReceiver.selector, abi.encode(payment));
        vm.prank(thief);
        token.receiveWithAuthorization(client, address(payment), 10 ether, 0, quote.expiry, nonce, a.v, a.r, a.s);
        expectError(ERC3009.ERC3009InvalidSignature.selector);
        vm.prank(thief);
        token.transferWithAuthorization(client, address(payment), 10 ether, 0, quote.expiry, nonce, a.v, a.r, a.s);
        expectError(ERC3009.ERC3009InvalidSignature.selector);
        vm.prank(thief);
        token.receiveWithAuthorization(client, thief, 10 ether, 0, quote.expiry, nonce, a.v, a.r, a.s);
        relay(quote, a);
    }

    function test_AuthorisationRelayedByAnother() public {
        Quote memory quote = newQuote();
        Authorisation memory a = authorise(quote);
        vm.prank(thief);
        relay(quote, a);
        expectError(InferencePayment.AlreadyInitiated.selector, abi.encode(quote.requestId));
        vm.prank(gateway);
        relay(quote, a);
        vm.assertEq(payment.requestState(client, quote.requestId), hashOf(quote));
        vm.assertEq(token.balanceOf(client), 990 ether);
        vm.warp(refundableAt(quote));
        payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
    }

    function test_AuthorisationForAnotherContract() public {
        Quote memory quote = newQuote();
        InferencePayment other = Deploy.payment(token, registry, treasury);
        Authorisation memory a = authorise(quote);
        expectError(ERC3009.ERC3009InvalidSignature.selector);
        other.initiateWithAuthorization(quote, a.v, a.r, a.s);
        vm.chainId(CHAIN + 1);
        expectError(ERC3009.ERC3009InvalidSignature.selector);
        relay(quote, a);
    }

    function test_FundingPresentedToTheToken() public {
        ChannelTerms memory terms = newTerms();
        Authorisation memory a = authorise(terms, 0, 100 ether, CHANNEL_EXPIRY);
        bytes32 nonce = nonceOf(terms, 0, 100 ether, CHANNEL_EXPIRY);
        expectError(IERC20Errors.ERC20InvalidReceiver.selector, abi.encode(channels));
        vm.prank(thief);
        token.receiveWithAuthorization(client, address(channels), 100 ether, 0, CHANNEL_EXPIRY, nonce, a.v, a.r, a.s);
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY, a);
    }

    function test_FundingRelayedByAnother() public {
        ChannelTerms memory terms = newTerms();
        Authorisation memory a = authorise(terms, 0, 100 ether, CHANNEL_EXPIRY);
        vm.prank(thief);
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY, a);
        expectError(PaymentChannel.DepositMismatch.selector, abi.encode(100 ether, 0));
        vm.prank(gateway);
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY, a);
        (uint128 deposit,,,,,) = channels.channel(idOf(terms));
        vm.assertEq(deposit, 100 ether);
        vm.assertEq(token.balanceOf(client), 900 ether);
    }

    /// Two authorisations from the same deposit: one of them adds to the channel, the other is void.
    function test_FundingFromOneDepositTwice() public {
        ChannelTerms memory terms = newChannel();
        Authorisation memory some = authorise(terms, 100 ether, 10 ether, CHANNEL_EXPIRY);
        Authorisation memory more = authorise(terms, 100 ether, 20 ether, CHANNEL_EXPIRY);
        fund(terms, 100 ether, 20 ether, CHANNEL_EXPIRY, more);
        expectError(PaymentChannel.DepositMismatch.selector, abi.encode(120 ether, 100 ether));
        fund(terms, 100 ether, 10 ether, CHANNEL_EXPIRY, some);
    }
}
