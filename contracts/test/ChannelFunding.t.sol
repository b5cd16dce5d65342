// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {ChannelTerms, PaymentChannel} from "../src/PaymentChannel.sol";
import {ChannelFixture} from "./ChannelFixture.sol";
import {Authorisation, Batch} from "./Fixture.sol";

contract ChannelFundingTest is ChannelFixture {
    // open

    function test_OpenTakesTheDeposit() public {
        ChannelTerms memory terms = newTerms();
        assertChannel(terms, 0, 0, 0, 0);
        vm.expectEmit(address(channels));
        emit PaymentChannel.ChannelOpened(idOf(terms), client, gateway, 100 ether, CHANNEL_EXPIRY, terms.salt);
        open(terms, 100 ether);
        assertChannel(terms, 100 ether, 0, CHANNEL_EXPIRY, 1);
        vm.assertEq(token.balanceOf(address(channels)), 100 ether);
        vm.assertEq(token.balanceOf(client), 900 ether);
    }

    function test_OpenIsForTheClientAlone() public {
        ChannelTerms memory terms = newTerms();
        expectError(PaymentChannel.WrongClient.selector, abi.encode(client, gateway));
        vm.prank(gateway);
        channels.open(terms, 100 ether, CHANNEL_EXPIRY);
    }

    function test_OpenRefusesNoMoney() public {
        expectError(PaymentChannel.ZeroAmount.selector);
        open(newTerms(), 0);
    }

    function test_OpenRefusesNoGateway() public {
        ChannelTerms memory terms = newTerms();
        terms.gateway = address(0);
        expectError(PaymentChannel.ZeroGateway.selector);
        open(terms, 100 ether);
    }

    function test_OpenRefusesAnExpiryThatIsNotAhead() public {
        ChannelTerms memory terms = newTerms();
        expectError(PaymentChannel.ExpiryOutOfRange.selector, abi.encode(NOW, NOW + 180 days));
        vm.prank(client);
        channels.open(terms, 100 ether, uint64(NOW));
        vm.prank(client);
        channels.open(terms, 100 ether, uint64(NOW + 1));
    }

    function test_OpenRefusesAnExpiryTooFarAhead() public {
        ChannelTerms memory terms = newTerms();
        expectError(PaymentChannel.ExpiryOutOfRange.selector, abi.encode(NOW + 180 days + 1, NOW + 180 days));
        vm.prank(client);
        channels.open(terms, 100 ether, uint64(NOW + 180 days + 1));
        vm.prank(client);
        channels.open(terms, 100 ether, uint64(NOW + 180 days));
    }

    function test_OpenRefusesAnOpenChannel() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        bytes memory fields = abi.encode(idOf(terms), 100 ether, 10 ether, CHANNEL_EXPIRY);
        expectError(PaymentChannel.AlreadyOpen.selector, fields);
        open(terms, 100 ether);
        terms.salt = keccak256("another salt");
        open(terms, 100 ether);
    }

    function test_OpenRefusesAClosedChannel() public {
        ChannelTerms memory terms = newChannel();
        vm.prank(gateway);
        channels.close(terms, 0, "");
        expectError(PaymentChannel.Closed.selector, abi.encode(idOf(terms)));
        open(terms, 100 ether);
    }

    function test_OpenNeedsAnApproval() public {
        vm.prank(client);
        token.approve(address(channels), 1);
        bytes memory fields = abi.encode(channels, 1, 100 ether);
        expectError(IERC20Errors.ERC20InsufficientAllowance.selector, fields);
        open(newTerms(), 100 ether);
        assertChannel(newTerms(), 0, 0, 0, 0);
    }

    function test_AChannelIsTwoSlots() public {
        ChannelTerms memory terms = newTerms();
        vm.record();
        open(terms, 100 ether);
        (, bytes32[] memory writes) = vm.accesses(address(channels));
        vm.assertTrue(writes.length > 0);
        for (uint256 i = 1; i < writes.length; ++i) {
            vm.assertTrue(uint256(writes[i]) - uint256(writes[0]) <= 1);
        }
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        vm.record();
        settle(batch, approvals);
        bytes32 slot = writes[0];
        (, writes) = vm.accesses(address(channels));
        vm.assertTrue(writes.length > 0);
        for (uint256 i = 0; i < writes.length; ++i) {
            vm.assertTrue(uint256(writes[i]) - uint256(slot) <= 1);
        }
    }

    // topUp

    function test_TopUpAddsAndExtends() public {
        ChannelTerms memory terms = newChannel();
        uint64 later = CHANNEL_EXPIRY + 1 days;
        vm.expectEmit(address(channels));
        emit PaymentChannel.ChannelToppedUp(idOf(terms), 50 ether, 150 ether, later);
        vm.prank(client);
        channels.topUp(terms, 50 ether, later);
        assertChannel(terms, 150 ether, 0, later, 1);
        vm.assertEq(token.balanceOf(address(channels)), 150 ether);
    }

    function test_TopUpDoesEitherAlone() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        vm.startPrank(client);
        channels.topUp(terms, 50 ether, CHANNEL_EXPIRY);
        assertChannel(terms, 150 ether, 10 ether, CHANNEL_EXPIRY, 1);
        channels.topUp(terms, 0, CHANNEL_EXPIRY + 1);
        assertChannel(terms, 150 ether, 10 ether, CHANNEL_EXPIRY + 1, 1);
        expectError(PaymentChannel.ZeroAmount.selector);
        channels.topUp(terms, 0, CHANNEL_EXPIRY + 1);
        vm.stopPrank();
        vm.assertEq(token.balanceOf(client), 850 ether);
    }

    function test_TopUpIsForTheClientAlone() public {
        ChannelTerms memory terms = newChannel();
        expectError(PaymentChannel.WrongClient.selector, abi.encode(client, gateway));
        vm.prank(gateway);
        channels.topUp(terms, 0, CHANNEL_EXPIRY + 1);
    }

    function test_TopUpNeverShortens() public {
        ChannelTerms memory terms = newChannel();
        expectError(PaymentChannel.ExpiryShortened.selector, abi.encode(CHANNEL_EXPIRY, CHANNEL_EXPIRY - 1));
        vm.prank(client);
        channels.topUp(terms, 50 ether, CHANNEL_EXPIRY - 1);
    }

    function test_TopUpRefusesAnExpiryTooFarAhead() public {
        ChannelTerms memory terms = newChannel();
        vm.warp(NOW + 1 days);
        expectError(PaymentChannel.ExpiryOutOfRange.selector, abi.encode(NOW + 181 days + 1, NOW + 181 days));
        vm.prank(client);
        channels.topUp(terms, 50 ether, uint64(NOW + 181 days + 1));
        vm.prank(client);
        channels.topUp(terms, 50 ether, uint64(NOW + 181 days));
    }

    function test_TopUpRefusesAnExpiredChannel() public {
        ChannelTerms memory terms = newChannel();
        vm.warp(CHANNEL_EXPIRY + 1);
        expectError(PaymentChannel.Expired.selector, abi.encode(idOf(terms), CHANNEL_EXPIRY));
        vm.prank(client);
        channels.topUp(terms, 50 ether, CHANNEL_EXPIRY + 1 days);
        vm.warp(CHANNEL_EXPIRY);
        vm.prank(client);
        channels.topUp(terms, 50 ether, CHANNEL_EXPIRY + 1 days);
    }

    // fundWithAuthorization

    function test_FundOpensWithoutTheClientsGas() public {
        ChannelTerms memory terms = newTerms();
        Authorisation memory a = authorise(terms, 0, 100 ether, CHANNEL_EXPIRY);
        vm.prank(client);
        token.approve(address(channels), 0);
        vm.expectEmit(address(channels));
        emit PaymentChannel.ChannelOpened(idOf(terms), client, gateway, 100 ether, CHANNEL_EXPIRY, terms.salt);
        vm.prank(accountOf("anyone"));
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY, a);
        assertChannel(terms, 100 ether, 0, CHANNEL_EXPIRY, 1);
        vm.assertEq(token.balanceOf(address(channels)), 100 ether);
        vm.assertEq(token.balanceOf(client), 900 ether);
    }

    function test_FundTopsUp() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        uint64 later = CHANNEL_EXPIRY + 1 days;
        Authorisation memory a = authorise(terms, 100 ether, 50 ether, later);
        vm.expectEmit(address(channels));
        emit PaymentChannel.ChannelToppedUp(idOf(terms), 50 ether, 150 ether, later);
        vm.prank(gateway);
        fund(terms, 100 ether, 50 ether, later, a);
        assertChannel(terms, 150 ether, 10 ether, later, 1);
    }

    function test_FundTwiceIsRefused() public {
        ChannelTerms memory terms = newTerms();
        Authorisation memory a = authorise(terms, 0, 100 ether, CHANNEL_EXPIRY);
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY, a);
        expectError(PaymentChannel.DepositMismatch.selector, abi.encode(100 ether, 0));
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY, a);
        vm.assertEq(token.balanceOf(client), 900 ether);
    }

    function test_FundRefusesAnotherDeposit() public {
        ChannelTerms memory terms = newTerms();
        Authorisation memory a = authorise(terms, 1, 50 ether, CHANNEL_EXPIRY);
        expectError(PaymentChannel.DepositMismatch.selector, abi.encode(0, 1));
        fund(terms, 1, 50 ether, CHANNEL_EXPIRY, a);
        open(terms, 100 ether);
        expectError(PaymentChannel.DepositMismatch.selector, abi.encode(100 ether, 1));
        fund(terms, 1, 50 ether, CHANNEL_EXPIRY, a);
    }

    function test_FundRefusesWhatOpenRefuses() public {
        ChannelTerms memory terms = newTerms();
        Authorisation memory none;
        expectError(PaymentChannel.ZeroAmount.selector);
        fund(terms, 0, 0, CHANNEL_EXPIRY, none);
        expectError(PaymentChannel.ExpiryOutOfRange.selector, abi.encode(NOW, NOW + 180 days));
        fund(terms, 0, 1, uint64(NOW), none);
        expectError(PaymentChannel.ExpiryOutOfRange.selector, abi.encode(NOW + 180 days + 1, NOW + 180 days));
        fund(terms, 0, 1, uint64(NOW + 180 days + 1), none);
        terms.gateway = address(0);
        expectError(PaymentChannel.ZeroGateway.selector);
        fund(terms, 0, 1, CHANNEL_EXPIRY, none);
    }

    function test_FundRefusesWhatTopUpRefuses() public {
        ChannelTerms memory terms = newChannel();
        Authorisation memory none;
        expectError(PaymentChannel.ZeroAmount.selector);
        fund(terms, 100 ether, 0, CHANNEL_EXPIRY + 1, none);
        expectError(PaymentChannel.ExpiryShortened.selector, abi.encode(CHANNEL_EXPIRY, CHANNEL_EXPIRY - 1));
        fund(terms, 100 ether, 1, CHANNEL_EXPIRY - 1, none);
        vm.warp(CHANNEL_EXPIRY + 1);
        expectError(PaymentChannel.Expired.selector, abi.encode(idOf(terms), CHANNEL_EXPIRY));
        fund(terms, 100 ether, 1, CHANNEL_EXPIRY + 1 days, none);
        channels.refundExpired(terms);
        expectError(PaymentChannel.Closed.selector, abi.encode(idOf(terms)));
        fund(terms, 100 ether, 1, CHANNEL_EXPIRY + 1 days, none);
        expectError(PaymentChannel.Closed.selector, abi.encode(idOf(terms)));
        fund(terms, 0, 1, CHANNEL_EXPIRY + 1 days, none);
    }

    /// Whatever is not as the client signed it is another authorisation.
    function test_FundOnlyAsSigned() public {
        ChannelTerms memory terms = newTerms();
        Authorisation memory a = authorise(terms, 0, 100 ether, CHANNEL_EXPIRY);
        bytes4 invalid = ERC3009.ERC3009InvalidSignature.selector;
        expectError(invalid);
        fund(terms, 0, 100 ether + 1, CHANNEL_EXPIRY, a);
        expectError(invalid);
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY + 1, a);
        ChannelTerms memory others = newTerms();
        others.gateway = accountOf("thief");
        expectError(invalid);
        fund(others, 0, 100 ether, CHANNEL_EXPIRY, a);
        others = newTerms();
        others.salt = 0;
        expectError(invalid);
        fund(others, 0, 100 ether, CHANNEL_EXPIRY, a);
        others = newTerms();
        others.client = accountOf("another client");
        expectError(invalid);
        fund(others, 0, 100 ether, CHANNEL_EXPIRY, a);
        // Nor for a top-up when it was for the opening.
        open(terms, 100 ether);
        expectError(invalid);
        fund(terms, 100 ether, 100 ether, CHANNEL_EXPIRY, a);
        vm.assertEq(token.balanceOf(client), 900 ether);
    }

    function test_FundOnlyUntilItsExpiry() public {
        ChannelTerms memory terms = newTerms();
        Authorisation memory a = authorise(terms, 0, 100 ether, CHANNEL_EXPIRY);
        vm.warp(CHANNEL_EXPIRY);
        bytes memory fields = abi.encode(CHANNEL_EXPIRY, CHANNEL_EXPIRY + 180 days);
        expectError(PaymentChannel.ExpiryOutOfRange.selector, fields);
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY, a);
        vm.warp(CHANNEL_EXPIRY - 1);
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY, a);
    }

    function test_FundNotOnceItIsCancelled() public {
        ChannelTerms memory terms = newTerms();
        Authorisation memory a = authorise(terms, 0, 100 ether, CHANNEL_EXPIRY);
        bytes32 nonce = nonceOf(terms, 0, 100 ether, CHANNEL_EXPIRY);
        bytes32 kind = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
        bytes32 digest = typedDigest(address(token), "1", keccak256(abi.encode(kind, client, nonce)));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(clientKey, digest);
        token.cancelAuthorization(client, nonce, v, r, s);
        expectError(ERC3009.ERC3009UsedAuthorization.selector, abi.encode(client, nonce));
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY, a);
    }
}
