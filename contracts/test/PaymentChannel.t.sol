// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {Approvals} from "../src/Approvals.sol";
import {ChannelClose, ChannelPayout, ChannelSettlement, SettledCompletion, Voucher} from "../src/Messages.sol";
import {ChannelTerms, Charge, PaymentChannel} from "../src/PaymentChannel.sol";
import {Authorisation, Batch, Fixture} from "./Fixture.sol";
import {MessageHarness} from "./MessageHarness.sol";

contract PaymentChannelTest is Fixture {
    MessageHarness private harness = new MessageHarness();

    function assertChannel(ChannelTerms memory terms, uint128 deposit, uint128 settled, uint64 expiry, uint8 state)
        private
        view
    {
        (uint128 deposit_, uint128 settled_, uint64 expiry_, uint8 state_) = channels.channel(idOf(terms));
        vm.assertEq(deposit_, deposit, "deposit");
        vm.assertEq(settled_, settled, "settled");
        vm.assertEq(expiry_, expiry, "expiry");
        vm.assertEq(state_, state, "state");
    }

    /// What the contract has to say to every action on a channel that is not open.
    function refuseEverything(ChannelTerms memory terms, bytes4 selector) private {
        bytes memory fields = abi.encode(idOf(terms));
        (, uint128 settled,,) = channels.channel(idOf(terms));
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

    // Construction and views

    function test_ConstructorSetsEverything() public view {
        vm.assertEq(address(channels.token()), address(token));
        vm.assertEq(address(channels.registry()), address(registry));
        (, string memory name, string memory version, uint256 chain, address contract_,,) = channels.eip712Domain();
        vm.assertEq(name, "NCN");
        vm.assertEq(version, "1");
        vm.assertEq(chain, block.chainid);
        vm.assertEq(contract_, address(channels));
    }

    function testFuzz_DigestsAreTheMessagesUnderTheDomain(
        Voucher calldata voucher,
        ChannelSettlement calldata settlement,
        ChannelClose calldata close
    ) public view {
        bytes32 hash = harness.hashVoucher(voucher);
        vm.assertEq(channels.voucherDigest(voucher), harness.digest(block.chainid, address(channels), hash));
        hash = harness.hashChannelSettlement(settlement);
        vm.assertEq(channels.settlementDigest(settlement), harness.digest(block.chainid, address(channels), hash));
        hash = harness.hashChannelClose(close);
        vm.assertEq(channels.closeDigest(close), harness.digest(block.chainid, address(channels), hash));
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", channels.domainSeparator(), hash));
        vm.assertEq(channels.closeDigest(close), digest);
    }

    function testFuzz_AChannelIsItsTerms(ChannelTerms memory terms, ChannelTerms memory others) public view {
        bytes32 id = channels.channelId(terms);
        vm.assertEq(id, keccak256(abi.encode(terms.client, terms.gateway, terms.salt)));
        if (keccak256(abi.encode(terms)) != keccak256(abi.encode(others))) {
            vm.assertNotEq(id, channels.channelId(others));
        }
    }

    function testFuzz_FundingNonce(ChannelTerms memory terms, uint128 before, uint128 amount, uint64 expiry)
        public
        view
    {
        bytes32 nonce = keccak256(abi.encode(channels.channelId(terms), before, amount, expiry));
        vm.assertEq(channels.fundingNonce(terms, before, amount, expiry), nonce);
    }

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
        vm.assertEq(writes.length, 1);
        vm.assertEq(writes[0], slot);
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
        bytes32 digest = typedDigest(address(token), keccak256(abi.encode(kind, client, nonce)));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(clientKey, digest);
        token.cancelAuthorization(client, nonce, v, r, s);
        expectError(ERC3009.ERC3009UsedAuthorization.selector, abi.encode(client, nonce));
        fund(terms, 0, 100 ether, CHANNEL_EXPIRY, a);
    }

    // settle

    /// Any other account that has seen a batch with its approvals: a registry node, a validator, or an observer of the mempool.
    function test_NobodyElseSettles() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        address[3] memory others = [client, compute, vm.addr(keys[0])];
        for (uint256 i = 0; i < others.length; ++i) {
            expectError(PaymentChannel.NotGateway.selector, abi.encode(idOf(terms), gateway, others[i]));
            vm.prank(others[i]);
            channels.settle(batch.root, batch.count, batch.charges, batch.payouts, approvals);
        }
        settle(batch, approvals);
    }

    function test_SettlePaysEveryone() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        vm.expectEmit(address(channels));
        emit PaymentChannel.ChannelCharged(idOf(terms), client, gateway, 0, 10 ether, batch.root);
        vm.expectEmit(address(channels));
        emit PaymentChannel.BatchSettled(batch.root, batch.count, 10 ether, addressesOf(first(3)));
        settle(batch, approvals);
        vm.assertEq(token.balanceOf(compute), 9 ether);
        vm.assertEq(token.balanceOf(gateway), 1 ether);
        vm.assertEq(token.balanceOf(address(channels)), 90 ether);
        assertChannel(terms, 100 ether, 10 ether, CHANNEL_EXPIRY, 1);
    }

    function test_SettlementsFollowEachOther() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        settle(newBatch(terms, 10 ether, 11 ether));
        // All of the deposit, on a voucher for more.
        settle(newBatch(newCharge(terms, 11 ether, 100 ether, newVoucher(terms, 101 ether), clientKey)));
        assertChannel(terms, 100 ether, 100 ether, CHANNEL_EXPIRY, 1);
        vm.assertEq(token.balanceOf(address(channels)), 0);
        vm.prank(client);
        channels.topUp(terms, 1 ether, CHANNEL_EXPIRY);
        settle(newBatch(terms, 100 ether, 101 ether));
        vm.assertEq(token.balanceOf(compute) + token.balanceOf(gateway), 101 ether);
    }

    function test_SettleInTheLastSecond() public {
        ChannelTerms memory terms = newChannel();
        vm.warp(CHANNEL_EXPIRY);
        settle(newBatch(terms, 0, 10 ether));
    }

    function test_SettleRefusesAnEmptyBatch() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        batch.root = 0;
        expectError(PaymentChannel.EmptyBatch.selector);
        settle(batch, "");
        batch = newBatch(terms, 0, 10 ether);
        batch.count = 0;
        expectError(PaymentChannel.EmptyBatch.selector);
        settle(batch, "");
        batch = newBatch(terms, 0, 10 ether);
        batch.charges = new Charge[](0);
        expectError(PaymentChannel.EmptyBatch.selector);
        settle(batch, "");
    }

    function test_SettleRefusesAChannelThatIsNotOpen() public {
        refuseEverything(newTerms(), PaymentChannel.NotOpen.selector);
    }

    function test_SettleRefusesAnExpiredChannel() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        vm.warp(CHANNEL_EXPIRY + 1);
        expectError(PaymentChannel.Expired.selector, abi.encode(idOf(terms), CHANNEL_EXPIRY));
        settle(batch, approvals);
    }

    function test_SettleRefusesAnotherStart() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        Batch memory batch = newBatch(terms, 11 ether, 20 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.SettlementMismatch.selector, abi.encode(idOf(terms), 10 ether, 11 ether));
        settle(batch, approvals);
        batch = newBatch(terms, 9 ether, 20 ether);
        approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.SettlementMismatch.selector, abi.encode(idOf(terms), 10 ether, 9 ether));
        settle(batch, approvals);
    }

    function test_SettleRefusesAChargeOfNothing() public {
        ChannelTerms memory terms = newChannel();
        settle(newBatch(terms, 0, 10 ether));
        Batch memory batch = newBatch(newCharge(terms, 10 ether, 10 ether));
        expectError(PaymentChannel.NothingCharged.selector, abi.encode(idOf(terms), 10 ether, 10 ether));
        settle(batch, "");
        batch = newBatch(newCharge(terms, 10 ether, 9 ether));
        expectError(PaymentChannel.NothingCharged.selector, abi.encode(idOf(terms), 10 ether, 9 ether));
        settle(batch, "");
    }

    function test_SettleRefusesMoreThanTheVoucher() public {
        ChannelTerms memory terms = newChannel();
        Voucher memory voucher = newVoucher(terms, 10 ether);
        Batch memory batch = newBatch(newCharge(terms, 0, 10 ether + 1, voucher, clientKey));
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.OverAuthorised.selector, abi.encode(idOf(terms), 10 ether + 1, 10 ether));
        settle(batch, approvals);
        settle(newBatch(newCharge(terms, 0, 10 ether, voucher, clientKey)));
    }

    function test_SettleRefusesMoreThanTheDeposit() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 100 ether + 1);
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.OverDeposit.selector, abi.encode(idOf(terms), 100 ether + 1, 100 ether));
        settle(batch, approvals);
    }

    function test_SettleRefusesAVoucherOfAnotherSigner() public {
        ChannelTerms memory terms = newChannel();
        refuseVoucher(newCharge(terms, 0, 10 ether, newVoucher(terms, 10 ether), gatewayKey));
        Charge memory charge = newCharge(terms, 0, 10 ether);
        charge.signature = bytes.concat(charge.signature, hex"00");
        refuseVoucher(charge);
        charge.signature = "";
        refuseVoucher(charge);
    }

    /// Every field of the voucher is in its digest.
    function test_SettleRefusesAVoucherThatWasChanged() public {
        ChannelTerms memory terms = newChannel();
        Charge memory charge = newCharge(terms, 0, 10 ether);
        charge.requestId = 0;
        refuseVoucher(charge);
        charge = newCharge(terms, 0, 10 ether);
        charge.quote = 0;
        refuseVoucher(charge);
        charge = newCharge(terms, 0, 10 ether);
        charge.amount += 1;
        refuseVoucher(charge);
        charge = newCharge(terms, 0, 10 ether);
        charge.cumulative += 1;
        refuseVoucher(charge);
    }

    function refuseVoucher(Charge memory charge) private {
        Batch memory batch = newBatch(charge);
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.InvalidVoucher.selector, abi.encode(idOf(charge.terms)));
        settle(batch, approvals);
    }

    function test_SettleRefusesUnsortedPayouts() public {
        ChannelTerms memory terms = newChannel();
        Batch memory batch = newBatch(terms, 0, 10 ether);
        (batch.payouts[0], batch.payouts[1]) = (batch.payouts[1], batch.payouts[0]);
        refusePayouts(batch, PaymentChannel.UnsortedPayout.selector, abi.encode(batch.payouts[1].account));
        batch.payouts[1].account = batch.payouts[0].account;
        refusePayouts(batch, PaymentChannel.UnsortedPayout.selector, abi.encode(batch.payouts[1].account));
        batch = newBatch(terms, 0, 10 ether);
        batch.payouts[0].account = address(0);
        refusePayouts(batch, PaymentChannel.UnsortedPayout.selector, abi.encode(address(0)));
    }

    function test_SettleRefusesPayoutsThatAreNotWhatWasCharged() public {
        ChannelTerms memory terms = newChannel();
        bytes4 mismatch = PaymentChannel.PayoutMismatch.selector;
        Batch memory batch = newBatch(terms, 0, 10 ether);
        batch.payouts[0].amount += 1;
        refusePayouts(batch, mismatch, abi.encode(10 ether, 10 ether + 1));
        batch.payouts[0].amount -= 2;
        refusePayouts(batch, mismatch, abi.encode(10 ether, 10 ether - 1));
        // No sum wraps around.
        (batch.payouts[0].amount, batch.payouts[1].amount) = (type(uint128).max, 10 ether + 1);
        refusePayouts(batch, mismatch, abi.encode(10 ether, uint256(type(uint128).max) + 10 ether + 1));
        batch.payouts = new ChannelPayout[](0);
        refusePayouts(batch, mismatch, abi.encode(10 ether, 0));
        batch = newBatch(terms, 0, 10 ether);
        batch.payouts[1].amount = 0;
        refusePayouts(batch, PaymentChannel.ZeroAmount.selector, "");
    }

    function refusePayouts(Batch memory batch, bytes4 selector, bytes memory fields) private {
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(selector, fields);
        settle(batch, approvals);
        vm.assertEq(settledOf(batch.charges[0].terms), 0);
    }

    function test_SettleRefusesTooFewApprovals() public {
        Batch memory batch = newBatch(newChannel(), 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(2));
        expectError(Approvals.TooFewApprovals.selector, abi.encode(2, 3));
        settle(batch, approvals);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        settle(batch, "");
    }

    function test_SettleRefusesMoreThanTheCommittee() public {
        addValidators("more ", 1);
        Batch memory batch = newBatch(newChannel(), 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(6));
        expectError(Approvals.TooManyApprovals.selector, abi.encode(6, 5));
        settle(batch, approvals);
        settle(batch, approve(digestOf(batch), first(5)));
    }

    function test_SettleRefusesAPartOfASignature() public {
        Batch memory batch = newBatch(newChannel(), 0, 10 ether);
        bytes memory approvals = bytes.concat(approve(digestOf(batch), first(3)), hex"00");
        expectError(Approvals.MalformedApprovals.selector, abi.encode(196));
        settle(batch, approvals);
    }

    /// As many channels and accounts as are allowed go through, and not one more.
    function test_SettleTakesTheLargestBatch() public {
        Batch memory batch = largeBatch(64, 512);
        bytes memory approvals = approve(digestOf(batch), first(3));
        settle(batch, approvals);
        vm.assertEq(token.balanceOf(address(channels)), 0);
        vm.assertEq(token.balanceOf(batch.payouts[511].account), 1 ether / 8);
    }

    function test_SettleRefusesTooManyCharges() public {
        Batch memory batch = largeBatch(65, 1);
        expectError(PaymentChannel.TooManyCharges.selector, abi.encode(65, 64));
        settle(batch, "");
    }

    function test_SettleRefusesTooManyPayouts() public {
        Batch memory batch = largeBatch(1, 513);
        expectError(PaymentChannel.TooManyPayouts.selector, abi.encode(513, 512));
        settle(batch, "");
    }

    /// One token from each channel, in equal parts to all accounts.
    function largeBatch(uint256 charges, uint256 payouts) private returns (Batch memory batch) {
        batch.root = keccak256("root");
        batch.count = 10_000;
        batch.charges = new Charge[](charges);
        for (uint256 i = 0; i < charges; ++i) {
            ChannelTerms memory terms = newTerms();
            terms.salt = bytes32(i);
            open(terms, 1 ether);
            batch.charges[i] = newCharge(terms, 0, 1 ether);
        }
        batch.payouts = new ChannelPayout[](payouts);
        for (uint256 i = 0; i < payouts; ++i) {
            batch.payouts[i] = ChannelPayout(address(uint160(0x10000 + i)), uint128(charges * 1 ether / payouts));
        }
    }

    /// Any number of channels of one or several clients, charged from anywhere to anywhere, and any division of the sum.
    function testFuzz_SettleConserves(uint256 seed, uint256 charges, uint256 payouts) public {
        Batch memory batch;
        batch.root = keccak256(abi.encode(seed));
        batch.count = uint64(within(seed, 1, type(uint64).max));
        batch.charges = new Charge[](within(charges, 1, 6));
        uint128 total = 0;
        for (uint256 i = 0; i < batch.charges.length; ++i) {
            uint128 amount;
            (batch.charges[i], amount) = randomCharge(uint256(keccak256(abi.encode(seed, i))));
            total += amount;
        }
        batch.payouts = randomPayouts(seed, total, within(payouts, 1, 10));
        uint256 held = token.balanceOf(address(channels));
        bytes memory approvals = approve(digestOf(batch), first(3));

        vm.expectEmit(address(channels));
        emit PaymentChannel.BatchSettled(batch.root, batch.count, total, addressesOf(first(3)));
        settle(batch, approvals);
        vm.assertEq(token.balanceOf(address(channels)), held - total);
        for (uint256 i = 0; i < batch.payouts.length; ++i) {
            vm.assertEq(token.balanceOf(batch.payouts[i].account), batch.payouts[i].amount);
        }
        for (uint256 i = 0; i < batch.charges.length; ++i) {
            Charge memory charge = batch.charges[i];
            vm.assertEq(settledOf(charge.terms), charge.settledAfter);
            // Nobody's channel paid for another's.
            (uint128 deposit, uint128 settled,,) = channels.channel(idOf(charge.terms));
            vm.assertTrue(settled <= deposit && settled <= charge.cumulative);
        }
        // Once, and never again.
        Charge memory again = batch.charges[0];
        bytes memory fields = abi.encode(idOf(again.terms), again.settledAfter, again.settledBefore);
        expectError(PaymentChannel.SettlementMismatch.selector, fields);
        settle(batch, approvals);
    }

    function randomCharge(uint256 seed) private returns (Charge memory charge, uint128 amount) {
        uint256 key = within(seed, 1, 3);
        ChannelTerms memory terms = ChannelTerms(vm.addr(key), gateway, bytes32(seed));
        uint128 deposit = uint128(within(seed >> 8, 2, 100 ether));
        give(terms.client, deposit, address(channels));
        open(terms, deposit);
        uint128 settledBefore = uint128(within(seed >> 16, 0, deposit - 1));
        if (settledBefore != 0) {
            Voucher memory earlier = newVoucher(terms, settledBefore);
            Batch memory batch = newBatch(newCharge(terms, 0, settledBefore, earlier, key));
            batch.payouts = new ChannelPayout[](1);
            batch.payouts[0] = ChannelPayout(gateway, settledBefore);
            settle(batch);
        }
        uint128 settledAfter = uint128(within(seed >> 24, settledBefore + 1, deposit));
        Voucher memory voucher = newVoucher(terms, uint128(within(seed >> 32, settledAfter, type(uint128).max)));
        return (newCharge(terms, settledBefore, settledAfter, voucher, key), settledAfter - settledBefore);
    }

    function randomPayouts(uint256 seed, uint128 total, uint256 most)
        private
        pure
        returns (ChannelPayout[] memory payouts)
    {
        if (most > total) most = total;
        payouts = new ChannelPayout[](most);
        for (uint256 i = 0; i < most; ++i) {
            address account = address(uint160(uint256(keccak256(abi.encode(seed, "payee", i)))));
            uint256 left = most - i - 1;
            uint128 part = left == 0 ? total : uint128(within(uint256(keccak256(abi.encode(account))), 1, total - left));
            payouts[i] = ChannelPayout(account, part);
            total -= part;
        }
        sort(payouts);
    }

    /// Whatever a settlement claims, it goes through only where every rule holds, and then takes exactly the difference.
    function testFuzz_SettleKeepsTheRules(
        uint128 settled,
        uint128 settledBefore,
        uint128 settledAfter,
        uint128 cumulative,
        bool lie
    ) public {
        ChannelTerms memory terms = newChannel();
        settled = uint128(within(settled, 0, 99 ether));
        if (settled != 0) settle(newBatch(terms, 0, settled));
        settledBefore = lie ? uint128(within(settledBefore, 0, 110 ether)) : settled;
        settledAfter = uint128(within(settledAfter, 0, 110 ether));
        cumulative = uint128(within(cumulative, 0, 150 ether));
        uint256 held = token.balanceOf(address(channels));

        Voucher memory voucher = newVoucher(terms, cumulative);
        Batch memory batch = newBatch(newCharge(terms, settledBefore, settledAfter, voucher, clientKey));
        bytes memory approvals = approve(digestOf(batch), first(3));
        bytes4 selector;
        bytes memory fields = abi.encode(idOf(terms), settledBefore, settledAfter);
        if (settledBefore != settled) {
            selector = PaymentChannel.SettlementMismatch.selector;
            fields = abi.encode(idOf(terms), settled, settledBefore);
        } else if (settledAfter <= settled) {
            selector = PaymentChannel.NothingCharged.selector;
        } else if (settledAfter > cumulative) {
            selector = PaymentChannel.OverAuthorised.selector;
            fields = abi.encode(idOf(terms), settledAfter, cumulative);
        } else if (settledAfter > 100 ether) {
            selector = PaymentChannel.OverDeposit.selector;
            fields = abi.encode(idOf(terms), settledAfter, 100 ether);
        }
        if (selector != 0) expectError(selector, fields);
        settle(batch, approvals);
        uint128 expected = selector == 0 ? settledAfter : settled;
        assertChannel(terms, 100 ether, expected, CHANNEL_EXPIRY, 1);
        vm.assertEq(token.balanceOf(address(channels)), held + settled - expected);
    }

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

    // isSettled

    function testFuzz_EveryLeafIsProven(uint256 seed, uint256 count) public view {
        count = within(count, 1, 40);
        SettledCompletion[] memory leaves = new SettledCompletion[](count);
        bytes32[] memory nodes = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            leaves[i] = SettledCompletion(bytes32(seed), keccak256(abi.encode(seed, i)), uint128(i), bytes32(i));
            nodes[i] = hashOf(leaves[i]);
        }
        bytes32 root = rootOf(nodes);
        for (uint256 i = 0; i < count; ++i) {
            bytes32[] memory proof = proofOf(nodes, i);
            vm.assertTrue(channels.isSettled(root, leaves[i], proof));
            SettledCompletion memory other = leaves[i];
            other.amount += 1;
            vm.assertFalse(channels.isSettled(root, other, proof));
        }
        SettledCompletion memory stranger;
        vm.assertFalse(channels.isSettled(root, stranger, proofOf(nodes, 0)));
    }
}
