// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Approvals} from "../src/Approvals.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {PROTOCOL_VERSION} from "../src/MessageHash.sol";
import {Completion, Contribution, Quote} from "../src/Messages.sol";
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
        giveUp(quote);
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
        giveUp(quote);
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

    // handleExpiredRequest and markRequestFailed

    function test_AnyoneSendsAnExpiredTotalHome() public {
        Quote memory quote = newEscrow();
        vm.warp(refundableAt(quote));
        vm.expectEmit(address(payment));
        emit InferencePayment.RequestRefunded(quote.requestId, client, 10 ether);
        vm.prank(accountOf("anyone"));
        payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
        vm.assertEq(token.balanceOf(address(payment)), 0);
        vm.assertEq(payment.requestState(client, quote.requestId), payment.REFUNDED());
    }

    function test_GatewayGivesUpWithTheClientsConsent() public {
        Quote memory quote = newEscrow();
        vm.expectEmit(address(payment));
        emit InferencePayment.RequestRefunded(quote.requestId, client, 10 ether);
        giveUp(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
        vm.assertEq(payment.requestState(client, quote.requestId), payment.REFUNDED());
    }

    /// Anybody's but the client's, for another request, or for something else.
    function test_NothingElseIsConsent() public {
        Quote memory quote = newEscrow();
        Quote memory other = newQuote();
        other.requestId = keccak256("another request");
        bytes[5] memory consents = [
            consentOf(quote, gatewayKey, 2), consentOf(quote, clientKey, 1), consentOf(other), bytes("x"), new bytes(65)
        ];
        for (uint256 i = 0; i < consents.length; ++i) {
            expectError(InferencePayment.InvalidConsent.selector, abi.encode(client));
            vm.prank(gateway);
            payment.markRequestFailed(quote, consents[i]);
        }
        vm.assertEq(token.balanceOf(client), 990 ether);
    }

    /// Without it, those who served have time to be paid, and the client has its total back after that.
    function test_GatewayGivesUpAlone() public {
        Quote memory quote = newEscrow();
        uint256 refundable = block.timestamp + payment.CLAIM_TIME() + 1;
        vm.expectEmit(address(payment));
        emit InferencePayment.RequestGivenUp(quote.requestId, client, hashOf(quote), refundable);
        vm.prank(gateway);
        payment.markRequestFailed(quote, "");
        expectError(InferencePayment.AlreadyGivenUp.selector, abi.encode(quote.requestId, refundable));
        vm.prank(gateway);
        payment.markRequestFailed(quote, "");
        vm.warp(refundable - 1);
        expectError(InferencePayment.NotRefundable.selector, abi.encode(refundable));
        payment.handleExpiredRequest(quote);
        vm.warp(refundable);
        payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
    }

    function test_ACertificateWinsAgainstAGatewayThatGivesUp() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        vm.prank(gateway);
        payment.markRequestFailed(quote, "");
        vm.warp(block.timestamp + payment.CLAIM_TIME());
        vm.prank(compute);
        payment.completeInferenceRequest(quote, committee, STOP, contributionOf(quote), approvals);
        vm.assertTrue(token.balanceOf(compute) >= 8 ether, "the node is paid");
        vm.assertEq(token.balanceOf(client), 990 ether);
    }

    /// The client can agree by itself, too, but not before the gateway has given up.
    function test_ClientAgreesByItself() public {
        Quote memory quote = newEscrow();
        uint256 refundable = refundableAt(quote);
        expectError(InferencePayment.NotRefundable.selector, abi.encode(refundable));
        vm.prank(client);
        payment.handleExpiredRequest(quote);
        vm.warp(quote.expiry + 1);
        expectError(InferencePayment.NotRefundable.selector, abi.encode(refundable));
        vm.prank(client);
        payment.handleExpiredRequest(quote);
        vm.prank(gateway);
        payment.markRequestFailed(quote, "");
        (uint256 givenUpAt, uint256 end) = payment.endOf(quote);
        vm.assertEq(givenUpAt, quote.expiry + 1);
        vm.assertEq(end, refundable);
        vm.prank(client);
        payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
    }

    /// Any account that has the approvals: the client, the compute node, a validator, or a stranger.
    function test_WhoHasTheCertificateCompletes() public {
        address[4] memory others = [client, compute, vm.addr(keys[0]), accountOf("stranger")];
        for (uint256 i = 0; i < others.length; ++i) {
            Quote memory quote = newQuote();
            quote.requestId = keccak256(abi.encode("request", i));
            initiate(quote);
            bytes memory approvals = approve(digestOf(quote), first(3));
            vm.prank(others[i]);
            payment.completeInferenceRequest(quote, committee, STOP, contributionOf(quote), approvals);
        }
        vm.assertTrue(token.balanceOf(compute) >= 32 ether, "the node is paid");
        vm.assertEq(token.balanceOf(gateway), 4 ether);
    }

    /// Validators that approve that nothing was delivered give the total back at once.
    function test_ValidatorsSayThatNothingWasDelivered() public {
        Quote memory quote = newEscrow();
        Contribution[] memory none = new Contribution[](0);
        bytes32 digest = payment.completionDigest(completionOf(quote, none));
        bytes memory approvals = approve(digest, first(2));
        expectError(Approvals.TooFewApprovals.selector, abi.encode(2, 3));
        payment.completeInferenceRequest(quote, committee, STOP, none, approvals);
        payment.completeInferenceRequest(quote, committee, STOP, none, approve(digest, first(3)));
        vm.assertEq(token.balanceOf(client), 1000 ether);
        vm.assertEq(payment.requestState(client, quote.requestId), payment.REFUNDED());
    }

    function test_NobodyElseGivesUp() public {
        Quote memory quote = newEscrow();
        bytes memory consent = consentOf(quote);
        expectError(InferencePayment.NotGateway.selector, abi.encode(gateway, client));
        vm.prank(client);
        payment.markRequestFailed(quote, "");
        expectError(InferencePayment.NotGateway.selector, abi.encode(gateway, client));
        vm.prank(client);
        payment.markRequestFailed(quote, consent);
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
        payment.markRequestFailed(quote, "");
    }
}
