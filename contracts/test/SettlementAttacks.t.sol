// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {ChannelClose, ChannelPayout, Committee, Completion} from "../src/Messages.sol";
import {ChannelTerms, Charge, PaymentChannel} from "../src/PaymentChannel.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Deploy} from "./Deploy.sol";
import {Batch, Fixture} from "./Fixture.sol";

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
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        settle(usual(), approve(digest, stranger));
    }

    function test_ValidatorThatLeft() public thenHonestApprovalsPay {
        vm.prank(vm.addr(keys[1]));
        registry.requestUnstake();
        vm.warp(NOW + 10);
    }

    /// Stakes outside the committee that the voucher names, as many as one likes, do not take it.
    function test_ValidatorsOutsideTheCommittee() public thenHonestApprovalsPay {
        uint256[] memory judges = keys;
        delete keys;
        addValidators("outsider ", 20);
        Batch memory batch = usual();
        bytes memory approvals = approve(digest, keys);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        settle(batch, approvals);
        batch.charges[0].committee = Committee({threshold: 11, members: addressesOf(keys)});
        expectError(PaymentChannel.InvalidVoucher.selector, abi.encode(idOf(terms)));
        settle(batch, approvals);
        keys = judges;
    }

    /// Each voucher's own committee has to approve what its channel is charged.
    function test_ABatchNeedsEveryCommittee() public {
        uint256[] memory judges = keys;
        delete keys;
        addValidators("other ", 3);
        ChannelTerms memory other = newTerms();
        other.salt = keccak256("another salt");
        open(other, 100 ether);
        Batch memory batch = newBatch(newCharge(terms, 0, 10 ether));
        Charge memory charge = batch.charges[0];
        Committee memory first_ = committee;
        committee = Committee({threshold: 2, members: addressesOf(keys)});
        batch.charges = new Charge[](2);
        (batch.charges[0], batch.charges[1]) = (charge, newCharge(other, 0, 10 ether));
        batch.payouts = new ChannelPayout[](1);
        batch.payouts[0] = ChannelPayout(compute, 20 ether);
        bytes32 both = digestOf(batch);
        uint256[] memory others = keys;
        bytes memory approvals = approve(both, judges);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 2));
        settle(batch, approvals);
        approvals = approve(both, others);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        settle(batch, approvals);
        delete keys;
        for (uint256 i = 0; i < judges.length; ++i) {
            insert(judges[i]);
        }
        for (uint256 i = 0; i < others.length; ++i) {
            insert(others[i]);
        }
        settle(batch, approve(both, keys));
        vm.assertEq(settledOf(terms), 10 ether);
        vm.assertEq(settledOf(other), 10 ether);
        committee = first_;
    }

    /// The parties to a channel are no validators, whatever they sign.
    function test_ApprovalOfTheParties() public thenHonestApprovalsPay {
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        settle(usual(), approve(digest, gatewayKey));
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        settle(usual(), approve(digest, clientKey));
    }

    function test_ApprovalsOfACompletion() public thenHonestApprovalsPay {
        Completion memory completion =
            Completion(keccak256("request"), keccak256("quote"), STOP, contributionOf(10 ether));
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
        vm.expectRevert(refusalOf(digestOf(batch), approvals));
        settle(batch, approvals);
    }

    function test_ApprovalsForAnotherContract() public thenHonestApprovalsPay {
        PaymentChannel other = Deploy.channels(token, registry);
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
        vm.expectRevert(refusalOf(digestOf(batch), approvals));
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
        vm.expectRevert(refusalOf(digest, approvals));
        settle(batch, approvals);
        approvals = approve(wrong, keys[0]);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[0], wrong);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        settle(batch, approvals);
    }

    /// Who has nothing at stake does not count.
    function refusalOf(bytes32 expected, bytes memory approvals) private pure returns (bytes memory) {
        bytes memory said = refusal(expected, approvals);
        if (bytes4(said) != ValidatorRegistry.NoStake.selector) return said;
        return abi.encodeWithSelector(Approvals.TooFewApprovals.selector, 0, 3);
    }

    /// A stranger's approval among enough of others changes nothing.
    function test_AStrangersApprovalAmongOthers() public {
        uint256 stranger = keyOf("stranger");
        uint256[] memory signers = new uint256[](4);
        (signers[0], signers[1], signers[2], signers[3]) = (keys[0], keys[1], keys[2], stranger);
        for (uint256 i = 3; i > 0 && vm.addr(signers[i]) < vm.addr(signers[i - 1]); --i) {
            (signers[i], signers[i - 1]) = (signers[i - 1], signers[i]);
        }
        settle(usual(), approve(digest, signers));
        vm.assertEq(settledOf(terms), usual().charges[0].settledAfter);
    }
}
