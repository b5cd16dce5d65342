// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {Committee, Completion, Contribution, Quote} from "../src/Messages.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Deploy} from "./Deploy.sol";
import {Fixture} from "./Fixture.sol";

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
        expectError(ValidatorRegistry.NoStake.selector, abi.encode(vm.addr(signers[0])));
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
        expectError(ValidatorRegistry.NoStake.selector, abi.encode(vm.addr(stranger)));
        complete(quote, approvals);
    }

    /// A request is judged to its end by those who were there at its beginning.
    function test_ValidatorThatLeft() public thenHonestApprovalsPay {
        vm.prank(vm.addr(keys[1]));
        registry.requestUnstake();
        vm.warp(NOW + 10);
    }

    function test_ValidatorWithoutAStake() public {
        vm.prank(owner);
        registry.setSlasher(address(this));
        registry.slash(vm.addr(keys[1]), 10_000, "evidence");
        expectError(ValidatorRegistry.NoStake.selector, abi.encode(vm.addr(keys[1])));
        complete(quote, approve(digest, first(3)));
        uint256[] memory others = first(3);
        (others[1], others[2]) = (keys[2], keys[3]);
        complete(quote, approve(digest, others));
    }

    /// Stakes outside the committee, as many as one likes, do not take the escrow; nor do they take a share of it.
    function test_ValidatorsOutsideTheCommittee() public thenHonestApprovalsPay {
        uint256[] memory judges = keys;
        addValidators("outsider ", 20);
        vm.warp(NOW + 1);
        uint256[] memory outsiders = new uint256[](20);
        uint256 count = 0;
        for (uint256 i = 0; i < keys.length; ++i) {
            if (!among(keys[i], judges)) outsiders[count++] = keys[i];
        }
        bytes memory approvals = approve(digest, outsiders);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        complete(quote, approvals);
        // A committee of their own is another one than was paid for.
        Committee memory own = Committee({threshold: 11, members: addressesOf(outsiders)});
        expectError(InferencePayment.CommitteeMismatch.selector, abi.encode(quote.committee, hashOf(own)));
        vm.prank(gateway);
        payment.completeInferenceRequest(quote, own, STOP, contributionOf(quote), approvals);
        // So is the same one with a lower bar.
        own = Committee({threshold: 2, members: committee.members});
        expectError(InferencePayment.CommitteeMismatch.selector, abi.encode(quote.committee, hashOf(own)));
        vm.prank(gateway);
        payment.completeInferenceRequest(quote, own, STOP, contributionOf(quote), approvals);
        approvals = approve(digest, keys);
        expectError(InferencePayment.ApprovalOutsideCommittee.selector, abi.encode(25, 5));
        complete(quote, approvals);
        keys = judges;
    }

    function among(uint256 key, uint256[] memory some) private pure returns (bool) {
        for (uint256 i = 0; i < some.length; ++i) {
            if (some[i] == key) return true;
        }
        return false;
    }

    /// What a client pays by such a quote, nobody is paid.
    function test_NoMajority() public {
        committee.threshold = 2;
        quote = newQuote();
        quote.requestId = keccak256("another request");
        initiate(quote);
        bytes memory approvals = approve(digestOf(quote), first(2));
        expectError(Approvals.NoMajority.selector, abi.encode(2, 5));
        complete(quote, approvals);
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
        InferencePayment other = Deploy.payment(token, registry, treasury);
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
        completion.contributions[0].result = keccak256("another result");
        refuseApprovalsOf(payment.completionDigest(completion));
    }

    function test_ApprovalsForAnotherCost() public thenHonestApprovalsPay {
        refuseApprovalsOf(payment.completionDigest(completionOf(quote, contributionOf(quote.total - 1))));
    }

    function test_ApprovalsForAnotherReasonToEnd() public thenHonestApprovalsPay {
        Completion memory completion = completionOf(quote);
        completion.finish += 1;
        refuseApprovalsOf(payment.completionDigest(completion));
    }

    function test_ApprovalsForMoreNodes() public thenHonestApprovalsPay {
        Contribution[] memory contributions = new Contribution[](2);
        contributions[0] = contributionOf(quote)[0];
        contributions[1] = Contribution(accountOf("thief"), RESULT, 0);
        refuseApprovalsOf(payment.completionDigest(completionOf(quote, contributions)));
    }

    function test_ApprovalsForAnotherCompute() public thenHonestApprovalsPay {
        Completion memory completion = completionOf(quote);
        completion.contributions[0].compute = accountOf("thief");
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
        bytes memory agreed = consentOf(theirs, keyOf("second client"), 2);
        vm.prank(gateway);
        payment.markRequestFailed(theirs, agreed);
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
        expectError(ValidatorRegistry.NoStake.selector, abi.encode(ecrecover(digest, v, r, s)));
        complete(quote, approvals);
    }
}
