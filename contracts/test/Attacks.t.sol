// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Approvals} from "../src/Approvals.sol";
import {ExactTransfer} from "../src/ExactTransfer.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {Completion, Quote} from "../src/Messages.sol";
import {ChannelTerms, PaymentChannel} from "../src/PaymentChannel.sol";
import {TokenVault} from "../src/TokenVault.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Authorisation, Fixture} from "./Fixture.sol";
import {FeeToken, HookToken, OpenToken, RefusingToken} from "./Tokens.sol";

/// Forged and misused approvals. Each attack starts from an escrow that three honest approvals would release, and each ends with
/// exactly that, to show that nothing but the attack was in the way.
contract ApprovalAttacks is Fixture {
    Quote private quote;
    bytes32 private digest;

    modifier thenHonestApprovalsPay() {
        _;
        vm.assertEq(token.balanceOf(address(payment)), 10 ether);
        complete(quote, approve(digest, first(3)));
        vm.assertEq(token.balanceOf(address(payment)), 0);
    }

    function setUp() public override {
        super.setUp();
        quote = newEscrow();
        digest = digestOf(quote);
    }

    function test_OneApprovalCountedTwice() public thenHonestApprovalsPay {
        uint256[] memory signers = first(3);
        signers[2] = signers[1];
        expectError(Approvals.UnsortedApproval.selector, abi.encode(vm.addr(signers[1])));
        complete(quote, approve(digest, signers));
    }

    /// The same signature in its other form would be a second one if it were accepted.
    function test_HighS() public thenHonestApprovalsPay {
        expectError(Approvals.InvalidApproval.selector, abi.encode(2));
        complete(quote, bytes.concat(approve(digest, first(2)), mirrored(digest, keys[2])));
    }

    function test_UnsortedApprovals() public thenHonestApprovalsPay {
        uint256[] memory signers = first(3);
        (signers[0], signers[1]) = (signers[1], signers[0]);
        expectError(Approvals.UnsortedApproval.selector, abi.encode(vm.addr(keys[0])));
        complete(quote, approve(digest, signers));
    }

    /// Recovery answers with the zero address for what is no signature; that address must not become a signer.
    function test_ZeroAddress() public thenHonestApprovalsPay {
        bytes memory zeros = new bytes(65);
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        complete(quote, bytes.concat(zeros, approve(digest, first(3))));
    }

    function test_WrongRecoveryByte() public thenHonestApprovalsPay {
        bytes memory approvals = approve(digest, first(3));
        approvals[64] = bytes1(uint8(approvals[64]) - 27);
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        complete(quote, approvals);
    }

    function test_CompactSignatures() public thenHonestApprovalsPay {
        bytes memory approvals;
        for (uint256 i = 0; i < 3; ++i) {
            (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[i], digest);
            approvals = abi.encodePacked(approvals, r, uint256(s) | uint256(v - 27) << 255);
        }
        expectError(Approvals.MalformedApprovals.selector, abi.encode(192));
        complete(quote, approvals);
    }

    function test_UnstakedValidator() public thenHonestApprovalsPay {
        uint256[] memory signers = new uint256[](1);
        signers[0] = keyOf("stranger");
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(vm.addr(signers[0])));
        complete(quote, approve(digest, signers));
    }

    /// A stranger among honest validators, wherever its address sorts.
    function testFuzz_UnstakedValidatorAmongOthers(uint256 stranger) public thenHonestApprovalsPay {
        stranger = within(stranger, 1, CURVE_ORDER - 1);
        vm.assume(!registry.isActive(vm.addr(stranger)));
        bytes memory fake = approve(digest, stranger);
        bytes memory approvals;
        bool placed = false;
        for (uint256 i = 0; i < 3; ++i) {
            if (!placed && vm.addr(stranger) < vm.addr(keys[i])) {
                approvals = bytes.concat(approvals, fake);
                placed = true;
            }
            approvals = bytes.concat(approvals, approve(digest, keys[i]));
        }
        if (!placed) approvals = bytes.concat(approvals, fake);
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(vm.addr(stranger)));
        complete(quote, approvals);
    }

    function test_ValidatorThatLeft() public {
        vm.prank(vm.addr(keys[1]));
        registry.requestUnstake();
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(vm.addr(keys[1])));
        complete(quote, approve(digest, first(3)));
    }

    function test_ApprovalsOfTheQuote() public thenHonestApprovalsPay {
        refuseApprovalsOf(payment.quoteDigest(quote));
    }

    function test_ApprovalsWithoutADomain() public thenHonestApprovalsPay {
        refuseApprovalsOf(keccak256(abi.encode(completionOf(quote))));
    }

    function test_ApprovalsOnAnotherChain() public thenHonestApprovalsPay {
        vm.chainId(CHAIN + 1);
        bytes32 there = digestOf(quote);
        vm.chainId(CHAIN);
        refuseApprovalsOf(there);
    }

    /// A fork takes the contract and the escrow along, under another chain id.
    function test_ApprovalsAfterAFork() public {
        bytes memory approvals = approve(digest, first(3));
        vm.chainId(CHAIN + 1);
        vm.expectRevert(refusal(digestOf(quote), approvals));
        complete(quote, approvals);
        complete(quote, approve(digestOf(quote), first(3)));
    }

    function test_ApprovalsForAnotherContract() public thenHonestApprovalsPay {
        InferencePayment other = new InferencePayment(token, registry, treasury);
        refuseApprovalsOf(other.completionDigest(completionOf(quote)));
    }

    function test_ApprovalsForAnotherRequest() public thenHonestApprovalsPay {
        Completion memory completion = completionOf(quote);
        completion.requestId = keccak256("another request");
        refuseApprovalsOf(payment.completionDigest(completion));
    }

    function test_ApprovalsForAnotherQuote() public thenHonestApprovalsPay {
        Completion memory completion = completionOf(quote);
        completion.quote = keccak256("another quote");
        refuseApprovalsOf(payment.completionDigest(completion));
    }

    function test_ApprovalsForAnotherResult() public thenHonestApprovalsPay {
        Completion memory completion = completionOf(quote);
        completion.result = keccak256("another result");
        refuseApprovalsOf(payment.completionDigest(completion));
    }

    function test_ApprovalsForAnotherCompute() public thenHonestApprovalsPay {
        Completion memory completion = completionOf(quote);
        completion.compute = accountOf("thief");
        refuseApprovalsOf(payment.completionDigest(completion));
    }

    /// Two clients can use one request id; what was approved for one of them does not pay from the other's escrow.
    function test_ApprovalsForAnotherClient() public thenHonestApprovalsPay {
        address second = accountOf("second client");
        give(second, 10 ether, address(payment));
        Quote memory theirs = newQuote();
        theirs.client = second;
        initiate(theirs);
        bytes memory approvals = approve(digest, first(3));
        vm.expectRevert(refusal(digestOf(theirs), approvals));
        complete(theirs, approvals);
        vm.prank(gateway);
        payment.markRequestFailed(theirs);
    }

    /// Presents validators' signatures over `wrong` in the best order an attacker could find for them.
    function refuseApprovalsOf(bytes32 wrong) private {
        vm.assertNotEq(wrong, digest);
        bytes memory approvals = approve(wrong, first(3));
        vm.expectRevert(refusal(digest, approvals));
        complete(quote, approvals);
        // One alone cannot be out of order, so this is refused for its signer.
        approvals = approve(wrong, keys[0]);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[0], wrong);
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(ecrecover(digest, v, r, s)));
        complete(quote, approvals);
    }
}

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
        vm.prank(gateway);
        payment.markRequestFailed(quote);
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
        payment.markRequestFailed(quote);
        vm.warp(quote.expiry + 1);
        expectError(InferencePayment.NotEscrowed.selector, fields);
        payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(address(payment)), 10 ether);
    }

    function test_ExpiryRace_CompleteInTheLastSecond() public {
        Quote memory quote = newEscrow();
        vm.warp(quote.expiry);
        expectError(InferencePayment.NotExpired.selector, abi.encode(quote.expiry));
        payment.handleExpiredRequest(quote);
        complete(quote, approve(digestOf(quote), first(3)));
        vm.assertEq(token.balanceOf(client), 990 ether);
    }

    function test_ExpiryRace_RefundInTheFirst() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        vm.warp(quote.expiry + 1);
        expectError(InferencePayment.Expired.selector, abi.encode(quote.expiry));
        complete(quote, approvals);
        payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
    }

    /// At no moment are both ways open, and at no moment is none.
    function testFuzz_ExpiryRace(uint256 time, bool completeFirst) public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        time = within(time, NOW, quote.expiry + 1 hours);
        vm.warp(time);
        if (completeFirst && time > quote.expiry) {
            expectError(InferencePayment.Expired.selector, abi.encode(quote.expiry));
            complete(quote, approvals);
        }
        if (!completeFirst && time <= quote.expiry) {
            expectError(InferencePayment.NotExpired.selector, abi.encode(quote.expiry));
            payment.handleExpiredRequest(quote);
        }
        if (time <= quote.expiry) complete(quote, approvals);
        else payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(address(payment)), 0);
        vm.assertEq(token.balanceOf(client), time <= quote.expiry ? 990 ether : 1000 ether);
    }

    /// Two transactions in one block: the first of them ends the request, whichever it is.
    function test_CompleteAgainstRefundInOneBlock() public {
        Quote memory quote = newEscrow();
        bytes memory approvals = approve(digestOf(quote), first(3));
        vm.warp(quote.expiry);
        complete(quote, approvals);
        expectError(InferencePayment.NotEscrowed.selector, abi.encode(quote.requestId, payment.COMPLETED()));
        vm.prank(gateway);
        payment.markRequestFailed(quote);

        quote.requestId = keccak256("another request");
        vm.warp(NOW);
        initiate(quote);
        approvals = approve(digestOf(quote), first(3));
        vm.warp(quote.expiry);
        vm.prank(gateway);
        payment.markRequestFailed(quote);
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
        payment.markRequestFailed(changed);

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
        bytes32 presented = keccak256(abi.encode(quoteType(), changed));
        expectError(InferencePayment.QuoteMismatch.selector, abi.encode(commitment, presented));
    }

    function quoteType() private pure returns (bytes32) {
        string memory parties = "Quote(bytes32 requestId,address client,address gateway,address compute,";
        string memory money = "bytes32 modelDigest,uint128 total,uint16 gatewayBps,uint16 validatorsBps,";
        return keccak256(bytes(string.concat(parties, money, "uint16 treasuryBps,uint64 expiry,bytes32 trustRoot)")));
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
        vm.warp(squat.expiry + 1);
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

/// A stranger sees the client's signature before it is mined, and presents it first.
contract FrontRunning is Fixture {
    address private thief = accountOf("thief");

    function test_PermitSubmittedByAnother() public {
        vm.prank(client);
        token.approve(address(payment), 0);
        bytes32 kind = keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 hash = keccak256(abi.encode(kind, client, address(payment), 10 ether, 0, NOW));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(clientKey, typedDigest(address(token), hash));
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
        vm.warp(quote.expiry + 1);
        payment.handleExpiredRequest(quote);
        vm.assertEq(token.balanceOf(client), 1000 ether);
    }

    function test_AuthorisationForAnotherContract() public {
        Quote memory quote = newQuote();
        InferencePayment other = new InferencePayment(token, registry, treasury);
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
        (uint128 deposit,,,) = channels.channel(idOf(terms));
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

/// Tokens that misbehave.
contract TokenAttacks is Fixture {
    HookToken private hooked = new HookToken();

    /// The same network, paid in another token.
    function use(OpenToken other) private {
        registry = new ValidatorRegistry(other, owner, MINIMUM_STAKE, UNSTAKE_DELAY, 1, 1, treasury);
        payment = new InferencePayment(other, registry, treasury);
        other.mint(client, 1000 ether);
        vm.startPrank(client);
        other.approve(address(payment), type(uint256).max);
        other.approve(address(registry), type(uint256).max);
        vm.stopPrank();
    }

    function useHooked() private returns (Quote memory quote, bytes memory approvals) {
        use(hooked);
        hooked.mint(vm.addr(keys[0]), MINIMUM_STAKE);
        vm.startPrank(vm.addr(keys[0]));
        hooked.approve(address(registry), MINIMUM_STAKE);
        registry.registerValidator(MINIMUM_STAKE);
        vm.stopPrank();
        // The token itself is the client and gateway of a second escrow, so that its calls would be let through.
        quote = newQuote();
        quote.client = address(hooked);
        quote.gateway = address(hooked);
        hooked.mint(address(hooked), 100 ether);
        vm.prank(address(hooked));
        hooked.approve(address(payment), type(uint256).max);
        initiate(quote);
        approvals = approve(digestOf(quote), keys[0]);
    }

    function assertHookWasRefused() private view {
        vm.assertFalse(hooked.succeeded());
        vm.assertEq(
            keccak256(hooked.answer()),
            keccak256(abi.encodeWithSelector(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector))
        );
    }

    function test_FeeOnTransfer() public {
        FeeToken fee = new FeeToken();
        use(fee);
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(9.9 ether, 10 ether));
        initiate(newQuote());
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(99 ether, 100 ether));
        vm.prank(client);
        registry.registerValidator(100 ether);
        Quote memory quote = newQuote();
        Authorisation memory a = authorise(clientKey, fee, address(payment), 10 ether, quote.expiry, hashOf(quote));
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(9.9 ether, 10 ether));
        relay(quote, a);
        vm.assertEq(fee.balanceOf(client), 1000 ether);
    }

    function test_TokenThatSaysNo() public {
        RefusingToken refusing = new RefusingToken();
        use(refusing);
        Quote memory quote = newEscrow();
        refusing.refuse();
        vm.expectEmit(address(payment));
        emit TokenVault.PaymentDeferred(client, 10 ether);
        vm.prank(gateway);
        payment.markRequestFailed(quote);
        vm.assertEq(payment.owed(client), 10 ether);
        expectError(SafeERC20.SafeERC20FailedOperation.selector, abi.encode(refusing));
        payment.withdraw(client);
        vm.assertEq(payment.owed(client), 10 ether);
        quote.requestId = keccak256("another request");
        expectError(SafeERC20.SafeERC20FailedOperation.selector, abi.encode(refusing));
        initiate(quote);
    }

    function test_ReentrantInitiate() public {
        (Quote memory inner,) = useHooked();
        inner.requestId = keccak256("another request");
        hooked.hook(address(payment), abi.encodeCall(payment.initiateInferenceRequest, (inner)));
        newEscrow();
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(payment)), 20 ether);
    }

    function test_ReentrantInitiateWithAuthorisation() public {
        (Quote memory inner,) = useHooked();
        Quote memory quote = newQuote();
        Authorisation memory a = authorise(clientKey, hooked, address(payment), 10 ether, quote.expiry, hashOf(quote));
        // From an authorised escrow into another one, and into a refund of the first.
        hooked.hook(address(payment), abi.encodeCall(payment.initiateWithAuthorization, (inner, 27, 0, 0)));
        relay(quote, a);
        assertHookWasRefused();
        vm.prank(gateway);
        payment.markRequestFailed(quote);
        quote.requestId = keccak256("another request");
        a = authorise(clientKey, hooked, address(payment), 10 ether, quote.expiry, hashOf(quote));
        hooked.hook(address(payment), abi.encodeCall(payment.markRequestFailed, (inner)));
        relay(quote, a);
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(payment)), 20 ether);
    }

    function test_ReentrantComplete() public {
        (Quote memory inner, bytes memory approvals) = useHooked();
        Quote memory quote = newEscrow();
        bytes memory call = abi.encodeCall(payment.completeInferenceRequest, (inner, RESULT, compute, approvals));
        hooked.hook(address(payment), call);
        complete(quote, approve(digestOf(quote), keys[0]));
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(payment)), 10 ether);
    }

    function test_ReentrantMarkFailed() public {
        (Quote memory inner,) = useHooked();
        Quote memory quote = newEscrow();
        hooked.hook(address(payment), abi.encodeCall(payment.markRequestFailed, (inner)));
        vm.prank(gateway);
        payment.markRequestFailed(quote);
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(payment)), 10 ether);
    }

    function test_ReentrantRefund() public {
        (Quote memory inner,) = useHooked();
        Quote memory quote = newEscrow();
        vm.warp(quote.expiry + 1);
        hooked.hook(address(payment), abi.encodeCall(payment.handleExpiredRequest, (inner)));
        payment.handleExpiredRequest(quote);
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(payment)), 10 ether);
    }

    /// The state is written before a token moves, so a hook sees the request as ended even without the guard.
    function test_StateIsFinalBeforeTokensMove() public {
        useHooked();
        Quote memory quote = newEscrow();
        hooked.hook(address(payment), abi.encodeCall(payment.requestState, (client, quote.requestId)));
        complete(quote, approve(digestOf(quote), keys[0]));
        vm.assertTrue(hooked.succeeded());
        vm.assertEq(abi.decode(hooked.answer(), (bytes32)), payment.COMPLETED());
    }

    /// Without the guard, tokens that arrive for the inner registration would count for the outer one as well.
    function test_ReentrantRegister() public {
        use(hooked);
        hooked.mint(address(hooked), MINIMUM_STAKE);
        vm.prank(address(hooked));
        hooked.approve(address(registry), type(uint256).max);
        hooked.hook(address(registry), abi.encodeCall(registry.registerValidator, (MINIMUM_STAKE)));
        vm.prank(client);
        registry.registerValidator(MINIMUM_STAKE);
        assertHookWasRefused();
        vm.assertEq(registry.stakeOf(address(hooked)), 0);
    }

    function test_ReentrantWithdraw() public {
        use(hooked);
        hooked.mint(address(hooked), MINIMUM_STAKE);
        vm.startPrank(address(hooked));
        hooked.approve(address(registry), type(uint256).max);
        registry.registerValidator(MINIMUM_STAKE);
        registry.requestUnstake();
        vm.stopPrank();
        vm.startPrank(client);
        registry.registerValidator(MINIMUM_STAKE);
        registry.requestUnstake();
        vm.warp(NOW + UNSTAKE_DELAY);
        hooked.hook(address(registry), abi.encodeCall(registry.withdrawStake, ()));
        registry.withdrawStake();
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(registry)), MINIMUM_STAKE);
    }
}
