// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Approvals} from "../src/Approvals.sol";
import {ExactTransfer} from "../src/ExactTransfer.sol";
import {ChannelClose, ChannelPayout, Completion, SettledCompletion, Voucher} from "../src/Messages.sol";
import {ChannelTerms, Charge, PaymentChannel} from "../src/PaymentChannel.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Authorisation, Batch, Fixture} from "./Fixture.sol";
import {FeeToken, HookToken, OpenToken} from "./Tokens.sol";

/// Forged and misused approvals of a batch. Each attack starts from a batch that three honest approvals would settle, and ends with
/// exactly that, to show that nothing but the attack was in the way.
contract SettlementAttacks is Fixture {
    ChannelTerms private terms;
    bytes32 private digest;

    modifier thenHonestApprovalsPay() {
        _;
        vm.assertEq(token.balanceOf(address(channels)), 100 ether);
        settle(usual());
        vm.assertEq(token.balanceOf(address(channels)), 90 ether);
    }

    function setUp() public override {
        super.setUp();
        terms = newChannel();
        digest = digestOf(usual());
    }

    function usual() private view returns (Batch memory) {
        return newBatch(terms, 0, 10 ether);
    }

    function test_OneApprovalCountedTwice() public thenHonestApprovalsPay {
        uint256[] memory signers = first(3);
        signers[2] = signers[1];
        expectError(Approvals.UnsortedApproval.selector, abi.encode(vm.addr(signers[1])));
        settle(usual(), approve(digest, signers));
    }

    function test_UnsortedApprovals() public thenHonestApprovalsPay {
        uint256[] memory signers = first(3);
        (signers[0], signers[1]) = (signers[1], signers[0]);
        expectError(Approvals.UnsortedApproval.selector, abi.encode(vm.addr(keys[0])));
        settle(usual(), approve(digest, signers));
    }

    function test_HighS() public thenHonestApprovalsPay {
        expectError(Approvals.InvalidApproval.selector, abi.encode(2));
        settle(usual(), bytes.concat(approve(digest, first(2)), mirrored(digest, keys[2])));
    }

    function test_ZeroAddress() public thenHonestApprovalsPay {
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        settle(usual(), bytes.concat(new bytes(65), approve(digest, first(3))));
    }

    function test_CompactSignatures() public thenHonestApprovalsPay {
        bytes memory approvals;
        for (uint256 i = 0; i < 3; ++i) {
            (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[i], digest);
            approvals = abi.encodePacked(approvals, r, uint256(s) | uint256(v - 27) << 255);
        }
        expectError(Approvals.MalformedApprovals.selector, abi.encode(192));
        settle(usual(), approvals);
    }

    function test_UnstakedValidator() public thenHonestApprovalsPay {
        uint256 stranger = keyOf("stranger");
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(vm.addr(stranger)));
        settle(usual(), approve(digest, stranger));
    }

    function test_ValidatorThatLeft() public {
        vm.prank(vm.addr(keys[1]));
        registry.requestUnstake();
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(vm.addr(keys[1])));
        settle(usual(), approve(digest, first(3)));
    }

    /// The parties to a channel are no validators, whatever they sign.
    function test_ApprovalOfTheParties() public thenHonestApprovalsPay {
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(gateway));
        settle(usual(), approve(digest, gatewayKey));
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(client));
        settle(usual(), approve(digest, clientKey));
    }

    function test_ApprovalsOfACompletion() public thenHonestApprovalsPay {
        Completion memory completion = Completion(keccak256("request"), keccak256("quote"), RESULT, compute);
        refuseApprovalsOf(payment.completionDigest(completion));
    }

    function test_ApprovalsOfAQuote() public thenHonestApprovalsPay {
        refuseApprovalsOf(payment.quoteDigest(newQuote()));
    }

    function test_ApprovalsOfAVoucher() public thenHonestApprovalsPay {
        refuseApprovalsOf(digestOf(newVoucher(terms, 10 ether)));
    }

    function test_ApprovalsOfAClosing() public thenHonestApprovalsPay {
        refuseApprovalsOf(digestOf(ChannelClose(idOf(terms), 0)));
    }

    function test_ApprovalsOnAnotherChain() public thenHonestApprovalsPay {
        vm.chainId(CHAIN + 1);
        bytes32 there = digestOf(usual());
        vm.chainId(CHAIN);
        refuseApprovalsOf(there);
    }

    /// A fork takes the channel along, under another chain id: the voucher does not count there, nor do the approvals.
    function test_ApprovalsAfterAFork() public {
        Batch memory batch = usual();
        bytes memory approvals = approve(digest, first(3));
        vm.chainId(CHAIN + 1);
        expectError(PaymentChannel.InvalidVoucher.selector, abi.encode(idOf(terms)));
        settle(batch, approvals);
        batch = usual();
        vm.expectRevert(refusal(digestOf(batch), approvals));
        settle(batch, approvals);
    }

    function test_ApprovalsForAnotherContract() public thenHonestApprovalsPay {
        PaymentChannel other = new PaymentChannel(token, registry);
        refuseApprovalsOf(other.settlementDigest(settlementOf(usual())));
        refuseApprovalsOf(typedDigest(address(payment), keccak256("any message of an escrow")));
    }

    function test_ApprovalsForAnotherRoot() public thenHonestApprovalsPay {
        Batch memory batch = usual();
        batch.root = keccak256("another root");
        refuseApprovalsOf(digestOf(batch));
    }

    function test_ApprovalsForAnotherCount() public thenHonestApprovalsPay {
        Batch memory batch = usual();
        batch.count += 1;
        refuseApprovalsOf(digestOf(batch));
    }

    function test_ApprovalsForAnotherCharge() public thenHonestApprovalsPay {
        refuseApprovalsOf(digestOf(newBatch(terms, 0, 9 ether)));
    }

    function test_ApprovalsForAnotherChannel() public thenHonestApprovalsPay {
        ChannelTerms memory others = newTerms();
        others.salt = keccak256("another salt");
        refuseApprovalsOf(digestOf(newBatch(others, 0, 10 ether)));
    }

    function test_ApprovalsForAnotherPayee() public thenHonestApprovalsPay {
        Batch memory batch = usual();
        batch.payouts[1].account = address(type(uint160).max);
        refuseApprovalsOf(digestOf(batch));
    }

    function test_ApprovalsForAnotherDivision() public thenHonestApprovalsPay {
        Batch memory batch = usual();
        (batch.payouts[0].amount, batch.payouts[1].amount) = (5 ether, 5 ether);
        refuseApprovalsOf(digestOf(batch));
    }

    /// The same charge from where the channel stands now was not approved.
    function test_ApprovalsOfAnEarlierSettlement() public {
        bytes memory approvals = approve(digest, first(3));
        settle(usual(), approvals);
        Batch memory batch = newBatch(terms, 10 ether, 20 ether);
        vm.expectRevert(refusal(digestOf(batch), approvals));
        settle(batch, approvals);
        vm.assertEq(settledOf(terms), 10 ether);
    }

    function test_SettledTwice() public {
        bytes memory approvals = approve(digest, first(3));
        settle(usual(), approvals);
        bytes memory fields = abi.encode(idOf(terms), 10 ether, 0);
        expectError(PaymentChannel.SettlementMismatch.selector, fields);
        settle(usual(), approvals);
        // Nor with other signers.
        expectError(PaymentChannel.SettlementMismatch.selector, fields);
        settle(usual(), approve(digest, first(5)));
        vm.assertEq(token.balanceOf(address(channels)), 90 ether);
    }

    function test_OneChannelTwiceInABatch() public thenHonestApprovalsPay {
        Batch memory batch = usual();
        Charge memory charge = batch.charges[0];
        batch.charges = new Charge[](2);
        (batch.charges[0], batch.charges[1]) = (charge, charge);
        for (uint256 i = 0; i < 2; ++i) {
            batch.payouts[i].amount *= 2;
        }
        bytes memory approvals = approve(digestOf(batch), first(3));
        expectError(PaymentChannel.SettlementMismatch.selector, abi.encode(idOf(terms), 10 ether, 0));
        settle(batch, approvals);
    }

    /// Presents validators' signatures over `wrong` in the best order an attacker could find for them.
    function refuseApprovalsOf(bytes32 wrong) private {
        vm.assertNotEq(wrong, digest);
        bytes memory approvals = approve(wrong, first(3));
        Batch memory batch = usual();
        vm.expectRevert(refusal(digest, approvals));
        settle(batch, approvals);
        approvals = approve(wrong, keys[0]);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[0], wrong);
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(ecrecover(digest, v, r, s)));
        settle(batch, approvals);
    }
}

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
        PaymentChannel other = new PaymentChannel(token, registry);
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

/// Requests that are said to be in a batch and are not.
contract ForgedLeaves is Fixture {
    SettledCompletion[] private leaves;
    bytes32[] private nodes;
    bytes32 private root;

    function setUp() public override {
        super.setUp();
        for (uint256 i = 0; i < 4; ++i) {
            leaves.push(
                SettledCompletion({
                    channel: idOf(newTerms()),
                    completion: keccak256(abi.encode("completion", i)),
                    amount: 1 ether,
                    resultSignature: keccak256(abi.encode("signature", i))
                })
            );
            nodes.push(hashOf(leaves[i]));
        }
        root = rootOf(nodes);
        vm.assertTrue(channels.isSettled(root, leaves[2], proofOf(nodes, 2)));
    }

    function test_LeafOfAnotherChannel() public view {
        SettledCompletion memory leaf = leaves[2];
        leaf.channel = keccak256("another channel");
        vm.assertFalse(channels.isSettled(root, leaf, proofOf(nodes, 2)));
    }

    function test_EveryFieldCounts() public view {
        SettledCompletion memory leaf = leaves[2];
        leaf.amount += 1;
        vm.assertFalse(channels.isSettled(root, leaf, proofOf(nodes, 2)));
        leaf = leaves[2];
        leaf.completion = leaves[1].completion;
        vm.assertFalse(channels.isSettled(root, leaf, proofOf(nodes, 2)));
        leaf = leaves[2];
        leaf.resultSignature = leaves[1].resultSignature;
        vm.assertFalse(channels.isSettled(root, leaf, proofOf(nodes, 2)));
    }

    function test_ProofOfAnotherLeaf() public view {
        vm.assertFalse(channels.isSettled(root, leaves[2], proofOf(nodes, 0)));
        vm.assertFalse(channels.isSettled(root, leaves[2], new bytes32[](0)));
    }

    /// An inner node has a proof too. But there is no request of which it would be the hash.
    function test_InnerNodeAsLeaf() public view {
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = pair(nodes[2], nodes[3]);
        vm.assertTrue(MerkleProof.verify(proof, root, pair(nodes[0], nodes[1])));
        SettledCompletion memory leaf;
        (leaf.channel, leaf.completion) = nodes[0] < nodes[1] ? (nodes[0], nodes[1]) : (nodes[1], nodes[0]);
        vm.assertFalse(channels.isSettled(root, leaf, proof));
        (leaf.channel, leaf.completion) = (leaf.completion, leaf.channel);
        vm.assertFalse(channels.isSettled(root, leaf, proof));
        // Nor is the type left out of the hash, which would make 128 bytes of it.
        vm.assertNotEq(hashOf(leaf), keccak256(abi.encode(leaf)));
    }

    function testFuzz_NothingElseIsInTheTree(SettledCompletion memory leaf, bytes32[] memory proof) public view {
        vm.assertFalse(channels.isSettled(root, leaf, proof));
        vm.assertFalse(channels.isSettled(0, leaf, proof));
    }
}

/// Tokens that misbehave, in a channel.
contract ChannelTokenAttacks is Fixture {
    HookToken private hooked = new HookToken();
    ChannelTerms private terms;

    /// The same network, paid in another token.
    function use(OpenToken other) private {
        channels = new PaymentChannel(other, registry);
        other.mint(client, 1000 ether);
        vm.prank(client);
        other.approve(address(channels), type(uint256).max);
    }

    function test_FeeOnTransfer() public {
        FeeToken fee = new FeeToken();
        use(fee);
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(99 ether, 100 ether));
        open(newTerms(), 100 ether);
        Authorisation memory a = authorise(newTerms(), 0, 100 ether, CHANNEL_EXPIRY);
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(99 ether, 100 ether));
        fund(newTerms(), 0, 100 ether, CHANNEL_EXPIRY, a);
        vm.assertEq(fee.balanceOf(client), 1000 ether);
    }

    /// Calls that would all go through if they came on their own.
    function innerCalls() private view returns (bytes[] memory calls) {
        ChannelTerms memory tokens = ChannelTerms(address(hooked), gateway, 0);
        Authorisation memory a = authorise(terms, 100 ether, 10 ether, CHANNEL_EXPIRY);
        Batch memory batch = newBatch(terms, 0, 10 ether);
        bytes memory approvals = approve(digestOf(batch), first(3));
        bytes memory word = approve(digestOf(ChannelClose(idOf(terms), 0)), gatewayKey);
        calls = new bytes[](7);
        calls[0] = abi.encodeCall(channels.open, (tokens, 1 ether, CHANNEL_EXPIRY));
        calls[1] = abi.encodeCall(channels.topUp, (tokens, 1 ether, CHANNEL_EXPIRY));
        calls[2] =
            abi.encodeCall(channels.fundWithAuthorization, (terms, 100 ether, 10 ether, CHANNEL_EXPIRY, a.v, a.r, a.s));
        calls[3] = abi.encodeCall(channels.settle, (batch.root, batch.count, batch.charges, batch.payouts, approvals));
        calls[4] = abi.encodeCall(channels.close, (terms, 0, word));
        calls[5] = abi.encodeCall(channels.refundExpired, (terms));
        calls[6] = abi.encodeCall(channels.withdraw, (client));
    }

    function useHooked() private {
        use(hooked);
        terms = newChannel();
        hooked.mint(address(hooked), 100 ether);
        vm.prank(address(hooked));
        hooked.approve(address(channels), type(uint256).max);
    }

    function assertHookWasRefused() private view {
        vm.assertFalse(hooked.succeeded());
        vm.assertEq(
            keccak256(hooked.answer()),
            keccak256(abi.encodeWithSelector(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector))
        );
    }

    /// From the first transfer of a settlement into everything else.
    function test_ReentrantFromASettlement() public {
        useHooked();
        bytes[] memory calls = innerCalls();
        for (uint256 i = 0; i < calls.length; ++i) {
            ChannelTerms memory outer = ChannelTerms(client, gateway, bytes32(i));
            open(outer, 10 ether);
            hooked.hook(address(channels), calls[i]);
            settle(newBatch(outer, 0, 10 ether));
            assertHookWasRefused();
        }
        vm.assertEq(hooked.balanceOf(address(channels)), 100 ether);
    }

    /// From everything else into a settlement, which finds the guard closed whatever was going on.
    function test_ReentrantIntoASettlement() public {
        useHooked();
        bytes memory inner = innerCalls()[3];
        ChannelTerms memory outer = ChannelTerms(client, gateway, 0);
        hooked.hook(address(channels), inner);
        open(outer, 10 ether);
        assertHookWasRefused();
        hooked.hook(address(channels), inner);
        vm.prank(client);
        channels.topUp(outer, 10 ether, CHANNEL_EXPIRY);
        assertHookWasRefused();
        Authorisation memory a = authorise(outer, 20 ether, 10 ether, CHANNEL_EXPIRY);
        hooked.hook(address(channels), inner);
        fund(outer, 20 ether, 10 ether, CHANNEL_EXPIRY, a);
        assertHookWasRefused();
        hooked.hook(address(channels), inner);
        vm.prank(gateway);
        channels.close(outer, 0, "");
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(channels)), 100 ether);
        vm.warp(CHANNEL_EXPIRY + 1);
        hooked.hook(address(channels), inner);
        channels.refundExpired(terms);
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(channels)), 0);
    }

    /// The state is written before a token moves, so a hook sees the charge as made even without the guard.
    function test_StateIsFinalBeforeTokensMove() public {
        useHooked();
        hooked.hook(address(channels), abi.encodeCall(channels.channel, (idOf(terms))));
        settle(newBatch(terms, 0, 10 ether));
        vm.assertTrue(hooked.succeeded());
        (, uint128 settled,,) = abi.decode(hooked.answer(), (uint128, uint128, uint64, uint8));
        vm.assertEq(settled, 10 ether);
    }
}
