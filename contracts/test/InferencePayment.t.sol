// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Approvals} from "../src/Approvals.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {PROTOCOL_VERSION} from "../src/MessageHash.sol";
import {Completion, Contribution, Quote} from "../src/Messages.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Deploy} from "./Deploy.sol";
import {Authorisation, Fixture} from "./Fixture.sol";
import {MessageHarness} from "./MessageHarness.sol";

contract InferencePaymentTest is Fixture {
    MessageHarness private harness = Deploy.harness();

    function refuse(Quote memory quote, bytes4 selector, bytes memory fields) private {
        expectError(selector, fields);
        initiate(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
    }

    // Construction and views

    function test_ConstructorSetsEverything() public view {
        vm.assertEq(address(payment.token()), address(token));
        vm.assertEq(address(payment.registry()), address(registry));
        vm.assertEq(payment.treasury(), treasury);
        (, string memory name, string memory version, uint256 chain, address contract_,,) = payment.eip712Domain();
        vm.assertEq(name, "NCN");
        vm.assertEq(version, PROTOCOL_VERSION);
        vm.assertEq(chain, block.chainid);
        vm.assertEq(contract_, address(payment));
    }

    function test_ConstructorRefusesNoTreasury() public {
        expectError(InferencePayment.ZeroTreasury.selector);
        Deploy.payment(token, registry, address(0));
    }

    function testFuzz_DigestsAreTheMessagesUnderTheDomain(Quote calldata quote, Completion calldata completion)
        public
        view
    {
        bytes32 hash = harness.hashQuote(quote);
        vm.assertEq(payment.quoteDigest(quote), harness.digest(block.chainid, address(payment), hash));
        hash = harness.hashCompletion(completion);
        vm.assertEq(payment.completionDigest(completion), harness.digest(block.chainid, address(payment), hash));
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", payment.domainSeparator(), hash));
        vm.assertEq(payment.completionDigest(completion), digest);
    }

    // initiateInferenceRequest

    function test_InitiateEscrowsTheTotal() public {
        Quote memory quote = newQuote();
        vm.assertEq(payment.requestState(client, quote.requestId), 0);
        bytes32 hash = harness.hashQuote(quote);
        vm.expectEmit(address(payment));
        emit InferencePayment.RequestInitiated(quote.requestId, client, gateway, 10 ether, quote.expiry, hash);
        initiate(quote);
        vm.assertEq(payment.requestState(client, quote.requestId), hash);
        vm.assertEq(token.balanceOf(address(payment)), 10 ether);
        vm.assertEq(token.balanceOf(client), 990 ether);
    }

    function test_InitiateIsForTheClientAlone() public {
        Quote memory quote = newQuote();
        expectError(InferencePayment.WrongClient.selector, abi.encode(client, gateway));
        vm.prank(gateway);
        payment.initiateInferenceRequest(quote);
    }

    function test_InitiateRefusesNoMoney() public {
        Quote memory quote = newQuote();
        quote.total = 0;
        refuse(quote, InferencePayment.ZeroAmount.selector, "");
    }

    function test_InitiateRefusesNoGateway() public {
        Quote memory quote = newQuote();
        quote.gateway = address(0);
        refuse(quote, InferencePayment.ZeroGateway.selector, "");
    }

    function test_InitiateRefusesNoCompute() public {
        Quote memory quote = newQuote();
        quote.compute = address(0);
        refuse(quote, InferencePayment.ZeroCompute.selector, "");
    }

    function test_InitiateRefusesAnExpiryThatIsNotAhead() public {
        Quote memory quote = newQuote();
        quote.expiry = uint64(NOW);
        refuse(quote, InferencePayment.ExpiryOutOfRange.selector, abi.encode(NOW, NOW + 7 days));
        quote.expiry = uint64(NOW + 1);
        initiate(quote);
    }

    function test_InitiateRefusesAnExpiryTooFarAhead() public {
        Quote memory quote = newQuote();
        quote.expiry = uint64(NOW + 7 days + 1);
        refuse(quote, InferencePayment.ExpiryOutOfRange.selector, abi.encode(NOW + 7 days + 1, NOW + 7 days));
        quote.expiry = uint64(NOW + 7 days);
        initiate(quote);
    }

    function test_InitiateRefusesToPayOutMoreThanTheTotal() public {
        Quote memory quote = newQuote();
        (quote.gatewayBps, quote.validatorsBps, quote.treasuryBps) = (4000, 3000, 3001);
        refuse(quote, InferencePayment.SplitTooLarge.selector, abi.encode(10_001));
        // The sum of the largest values does not wrap around in 16 bits either.
        (quote.gatewayBps, quote.validatorsBps, quote.treasuryBps) = (65_535, 1, 0);
        refuse(quote, InferencePayment.SplitTooLarge.selector, abi.encode(65_536));
        (quote.gatewayBps, quote.validatorsBps, quote.treasuryBps) = (4000, 3000, 3000);
        initiate(quote);
    }

    function test_InitiateAgainSaysSoEvenAfterTheExpiry() public {
        Quote memory quote = newEscrow();
        expectError(InferencePayment.AlreadyInitiated.selector, abi.encode(quote.requestId));
        initiate(quote);
        vm.warp(quote.expiry + 1);
        expectError(InferencePayment.AlreadyInitiated.selector, abi.encode(quote.requestId));
        initiate(quote);
        vm.assertEq(token.balanceOf(client), 990 ether);
    }

    function test_InitiateRefusesAnIdInUse() public {
        Quote memory quote = newEscrow();
        bytes32 commitment = payment.requestState(client, quote.requestId);
        quote.total += 1;
        expectError(InferencePayment.RequestIdUsed.selector, abi.encode(quote.requestId, commitment));
        initiate(quote);
    }

    function test_InitiateRefusesAnIdThatHasEnded() public {
        Quote memory quote = newEscrow();
        complete(quote, approve(digestOf(quote), first(3)));
        expectError(InferencePayment.RequestIdUsed.selector, abi.encode(quote.requestId, payment.COMPLETED()));
        initiate(quote);

        quote.requestId = keccak256("another request");
        initiate(quote);
        vm.prank(gateway);
        payment.markRequestFailed(quote);
        expectError(InferencePayment.RequestIdUsed.selector, abi.encode(quote.requestId, payment.REFUNDED()));
        initiate(quote);
    }

    function test_InitiateNeedsAnApproval() public {
        vm.prank(client);
        token.approve(address(payment), 1);
        Quote memory quote = newQuote();
        refuse(quote, IERC20Errors.ERC20InsufficientAllowance.selector, abi.encode(payment, 1, 10 ether));
        vm.assertEq(payment.requestState(client, quote.requestId), 0);
    }

    function test_ARequestIsOneSlot() public {
        vm.record();
        newEscrow();
        (, bytes32[] memory writes) = vm.accesses(address(payment));
        vm.assertTrue(writes.length > 0);
        for (uint256 i = 1; i < writes.length; ++i) {
            vm.assertEq(writes[i], writes[0]);
        }
    }

    // initiateWithAuthorization

    function test_AnyoneRelaysTheClientsAuthorisation() public {
        vm.prank(client);
        token.approve(address(payment), 0);
        Quote memory quote = newQuote();
        Authorisation memory a = authorise(quote);
        bytes32 hash = harness.hashQuote(quote);
        vm.expectEmit(address(payment));
        emit InferencePayment.RequestInitiated(quote.requestId, client, gateway, 10 ether, quote.expiry, hash);
        vm.prank(gateway);
        relay(quote, a);
        vm.assertEq(payment.requestState(client, quote.requestId), hash);
        vm.assertEq(token.balanceOf(address(payment)), 10 ether);
        vm.assertEq(token.balanceOf(client), 990 ether);
        complete(quote, approve(digestOf(quote), first(3)));
        vm.assertEq(token.balanceOf(address(payment)), 0);
    }

    function test_AuthorisationHasTheSameChecks() public {
        Quote memory quote = newQuote();
        quote.total = 0;
        refuseRelay(quote, InferencePayment.ZeroAmount.selector, "");
        quote = newQuote();
        quote.gateway = address(0);
        refuseRelay(quote, InferencePayment.ZeroGateway.selector, "");
        quote = newQuote();
        quote.compute = address(0);
        refuseRelay(quote, InferencePayment.ZeroCompute.selector, "");
        quote = newQuote();
        quote.treasuryBps = 10_000;
        refuseRelay(quote, InferencePayment.SplitTooLarge.selector, abi.encode(11_500));
        quote = newQuote();
        quote.expiry = uint64(NOW);
        refuseRelay(quote, InferencePayment.ExpiryOutOfRange.selector, abi.encode(NOW, NOW + 7 days));
        quote.expiry = uint64(NOW + 7 days + 1);
        refuseRelay(quote, InferencePayment.ExpiryOutOfRange.selector, abi.encode(NOW + 7 days + 1, NOW + 7 days));
    }

    /// One signature, one quote: whatever is changed in it makes another nonce.
    function test_AuthorisationIsForOneQuote() public {
        Quote memory quote = newQuote();
        Authorisation memory a = authorise(quote);
        bytes4 invalid = ERC3009.ERC3009InvalidSignature.selector;
        quote.gateway = accountOf("thief");
        refuseRelay(quote, a, invalid, "");
        quote = newQuote();
        quote.compute = accountOf("thief");
        refuseRelay(quote, a, invalid, "");
        quote = newQuote();
        quote.total += 1;
        refuseRelay(quote, a, invalid, "");
        quote = newQuote();
        quote.expiry += 1;
        refuseRelay(quote, a, invalid, "");
        quote = newQuote();
        quote.client = accountOf("another client");
        refuseRelay(quote, a, invalid, "");
        quote = newQuote();
        quote.requestId = keccak256("another request");
        refuseRelay(quote, a, invalid, "");
        refuseRelay(newQuote(), authorise(gatewayKey, token, address(payment), 10 ether, quote.expiry, 0), invalid, "");
        refuseRelay(newQuote(), Authorisation(0, 0, 0), ECDSA.ECDSAInvalidSignature.selector, "");
    }

    function test_AuthorisationPaysOnce() public {
        Quote memory quote = newQuote();
        Authorisation memory a = authorise(quote);
        relay(quote, a);
        expectError(InferencePayment.AlreadyInitiated.selector, abi.encode(quote.requestId));
        relay(quote, a);
        expectError(InferencePayment.AlreadyInitiated.selector, abi.encode(quote.requestId));
        initiate(quote);
        vm.prank(gateway);
        payment.markRequestFailed(quote);
        expectError(InferencePayment.RequestIdUsed.selector, abi.encode(quote.requestId, payment.REFUNDED()));
        relay(quote, a);
        vm.assertEq(token.balanceOf(client), 1000 ether);
    }

    /// A client that signed and then pays by itself pays once.
    function test_AuthorisationAfterADirectEscrow() public {
        Quote memory quote = newEscrow();
        Authorisation memory a = authorise(quote);
        expectError(InferencePayment.AlreadyInitiated.selector, abi.encode(quote.requestId));
        relay(quote, a);
        vm.assertEq(token.balanceOf(client), 990 ether);
    }

    function test_AuthorisationNeedsTheMoney() public {
        Quote memory quote = newQuote();
        quote.total = 1001 ether;
        bytes memory fields = abi.encode(client, 1000 ether, 1001 ether);
        refuseRelay(quote, IERC20Errors.ERC20InsufficientBalance.selector, fields);
    }

    function refuseRelay(Quote memory quote, bytes4 selector, bytes memory fields) private {
        refuseRelay(quote, authorise(quote), selector, fields);
    }

    function refuseRelay(Quote memory quote, Authorisation memory a, bytes4 selector, bytes memory fields) private {
        expectError(selector, fields);
        vm.prank(gateway);
        relay(quote, a);
        vm.assertEq(token.balanceOf(client), 1000 ether);
        vm.assertEq(payment.requestState(quote.client, quote.requestId), 0);
    }

    // completeInferenceRequest

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

    function test_CompleteRefusesNoContributions() public {
        Quote memory quote = newEscrow();
        refuseContributions(quote, new Contribution[](0), InferencePayment.NoContributions.selector, "");
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
        payment.completeInferenceRequest(quote, STOP, contributions, approvals);
    }

    function completeFor(Quote memory quote, Contribution[] memory contributions) private {
        bytes memory approvals = approve(payment.completionDigest(completionOf(quote, contributions)), first(3));
        vm.prank(gateway);
        payment.completeInferenceRequest(quote, STOP, contributions, approvals);
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

    function test_CompleteRefusesMoreThanTheCommittee() public {
        addValidators("more ", 1);
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(6));
        expectError(Approvals.TooManyApprovals.selector, abi.encode(6, 5));
        complete(quote, approvals);
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

    function test_CompleteFollowsTheQuorum() public {
        Quote memory quote = newEscrow();
        bytes32 digest = digestOf(quote);
        vm.prank(owner);
        registry.setQuorum(4, 5);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(3, 4));
        complete(quote, approve(digest, first(3)));
        complete(quote, approve(digest, first(4)));
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
        vm.prank(owner);
        registry.setQuorum(threshold, committeeSize);
        Quote memory quote = newQuote();
        quote.total = uint128(within(total, 1, 1000 ether));
        initiate(quote);

        bytes memory approvals = approve(digestOf(quote), first(count));
        bytes4 few = Approvals.TooFewApprovals.selector;
        bytes4 many = Approvals.TooManyApprovals.selector;
        if (count < threshold) expectError(few, abi.encode(count, threshold));
        else if (count > committeeSize) expectError(many, abi.encode(count, committeeSize));
        complete(quote, approvals);

        bool paid = count >= threshold && count <= committeeSize;
        vm.assertEq(token.balanceOf(address(payment)), paid ? 0 : quote.total);
        vm.assertEq(payment.requestState(client, quote.requestId) == payment.COMPLETED(), paid);
    }

    // handleExpiredRequest and markRequestFailed

    function test_AnyoneSendsAnExpiredTotalHome() public {
        Quote memory quote = newEscrow();
        vm.warp(quote.expiry + 1);
        vm.expectEmit(address(payment));
        emit InferencePayment.RequestRefunded(quote.requestId, client, 10 ether, true);
        vm.prank(accountOf("anyone"));
        payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
        vm.assertEq(token.balanceOf(address(payment)), 0);
        vm.assertEq(payment.requestState(client, quote.requestId), payment.REFUNDED());
    }

    function test_GatewayGivesUpBeforeTheExpiry() public {
        Quote memory quote = newEscrow();
        vm.expectEmit(address(payment));
        emit InferencePayment.RequestRefunded(quote.requestId, client, 10 ether, false);
        vm.prank(gateway);
        payment.markRequestFailed(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
        vm.assertEq(payment.requestState(client, quote.requestId), payment.REFUNDED());
    }

    function test_GatewayGivesUpAfterTheExpiry() public {
        Quote memory quote = newEscrow();
        vm.warp(quote.expiry + 1);
        vm.prank(gateway);
        payment.markRequestFailed(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
    }

    /// Any other account that has the approvals: the client, the compute node, or a validator that has asked the others itself.
    function test_NobodyElseCompletes() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        address[3] memory others = [client, compute, vm.addr(keys[0])];
        for (uint256 i = 0; i < others.length; ++i) {
            expectError(InferencePayment.NotGateway.selector, abi.encode(gateway, others[i]));
            vm.prank(others[i]);
            payment.completeInferenceRequest(quote, STOP, contributionOf(quote), approvals);
        }
        complete(quote, approvals);
    }

    function test_NobodyElseGivesUp() public {
        Quote memory quote = newEscrow();
        expectError(InferencePayment.NotGateway.selector, abi.encode(gateway, client));
        vm.prank(client);
        payment.markRequestFailed(quote);
    }

    function test_NothingHappensWithoutAnEscrow() public {
        Quote memory quote = newQuote();
        bytes memory fields = abi.encode(quote.requestId, bytes32(0));
        expectError(InferencePayment.NotEscrowed.selector, fields);
        complete(quote, "");
        expectError(InferencePayment.NotEscrowed.selector, fields);
        payment.handleExpiredRequest(quote);
        expectError(InferencePayment.NotEscrowed.selector, fields);
        vm.prank(gateway);
        payment.markRequestFailed(quote);
    }
}
