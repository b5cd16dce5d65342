// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {DowntimeReport} from "../src/Messages.sol";
import {PaymentChannel} from "../src/PaymentChannel.sol";
import {Slashing} from "../src/Slashing.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Deploy} from "./Deploy.sol";
import {SlashingFixture} from "./SlashingFixture.sol";

/// Attempts to have somebody slashed who did nothing wrong, or for more than was done.
contract FramingAttacks is SlashingFixture {
    uint256 private constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    modifier nobodyIsSlashed() {
        _;
        for (uint256 i = 0; i < 5; ++i) {
            vm.assertEq(registry.stakeOf(validatorAt(i)), MINIMUM_STAKE);
        }
        vm.assertEq(token.balanceOf(treasury), 0);
    }

    function test_AnHonestCompletion() public nobodyIsSlashed {
        Accusation memory accusation = newAccusation();
        bytes memory approvals = approve(digestOf(accusation), first(3));
        expectError(Slashing.ValidCompletion.selector);
        accuse(accusation, approvals);
    }

    /// Another node than the quoted one may have taken the task over.
    function test_AnHonestTakeover() public nobodyIsSlashed {
        Accusation memory accusation = newAccusation();
        accusation.result.compute = accountOf("another node");
        accusation.completion.contributions[0].compute = accusation.result.compute;
        link(accusation);
        bytes memory approvals = approve(digestOf(accusation), first(3));
        expectError(Slashing.ValidCompletion.selector);
        accuse(accusation, approvals);
    }

    function testFuzz_NoAgreeingCompletion(Accusation memory accusation) public nobodyIsSlashed {
        accusation.quote.requestId = accusation.completion.requestId;
        accusation.result.requestId = accusation.completion.requestId;
        accusation.result.modelDigest = accusation.quote.modelDigest;
        accusation.completion.contributions = contributionOf(0);
        accusation.completion.contributions[0].compute = accusation.result.compute;
        // What any price comes to, as long as it fits a total.
        accusation.quote.basePrice /= 4;
        accusation.quote.inputPrice >>= 66;
        accusation.quote.outputPrice >>= 66;
        uint128 cost = accusation.quote.basePrice + accusation.quote.inputPrice * accusation.result.inputUnits
            + accusation.quote.outputPrice * accusation.result.outputUnits;
        accusation.completion.contributions[0].cost = cost;
        if (accusation.quote.total < cost) accusation.quote.total = cost;
        link(accusation);
        bytes memory approvals = approve(digestOf(accusation), keys);
        expectError(Slashing.ValidCompletion.selector);
        accuse(accusation, approvals);
    }

    /// The approvals are honest, what they are shown with is made up.
    function test_AnotherQuoteUnderAnHonestCompletion() public nobodyIsSlashed {
        Accusation memory accusation = newAccusation();
        bytes memory approvals = approve(digestOf(accusation), first(3));
        bytes32 approved = accusation.completion.quote;
        accusation.quote.modelDigest = keccak256("another model");
        link(accusation);
        bytes32 presented = accusation.completion.quote;
        accusation.completion.quote = approved;
        expectError(Slashing.QuoteMismatch.selector, abi.encode(approved, presented));
        accuse(accusation, approvals);
    }

    function test_SignaturesOnAnotherChain() public nobodyIsSlashed {
        Accusation memory accusation = invalidCompletion();
        Entry memory entry = invalidEntry();
        DowntimeReport memory downtime = newReport();
        vm.chainId(CHAIN + 1);
        (bytes32 completion, bytes32 settlement, bytes32 silence) =
            (digestOf(accusation), digestOf(entry), digestOf(downtime));
        vm.chainId(CHAIN);
        for (uint256 i = 0; i < 5; ++i) {
            refuse(accusation, approve(completion, keys[i]));
            refuse(entry, approve(settlement, keys[i]));
            refuseReport(downtime, silence, i);
        }
    }

    function test_SignaturesForAnotherContract() public nobodyIsSlashed {
        Accusation memory accusation = invalidCompletion();
        Entry memory entry = invalidEntry();
        bytes32 completion = Deploy.payment(token, registry, treasury).completionDigest(accusation.completion);
        bytes32 settlement = Deploy.channels(token, registry).settlementDigest(entry.settlement);
        for (uint256 i = 0; i < 5; ++i) {
            refuse(accusation, approve(completion, keys[i]));
            refuse(entry, approve(settlement, keys[i]));
        }
    }

    /// What a validator signs at other moments is no approval of this.
    function test_SignaturesOfAnotherPhase() public nobodyIsSlashed {
        Accusation memory accusation = invalidCompletion();
        Entry memory entry = invalidEntry();
        DowntimeReport memory downtime = newReport();
        bytes32 quote = payment.quoteDigest(accusation.quote);
        bytes32 completion = digestOf(accusation);
        for (uint256 i = 0; i < 5; ++i) {
            refuse(accusation, approve(quote, keys[i]));
            refuse(accusation, approve(keccak256(abi.encode(accusation.completion)), keys[i]));
            refuse(entry, approve(payment.completionDigest(entry.completion), keys[i]));
            refuseReport(downtime, completion, i);
        }
    }

    function refuse(Accusation memory accusation, bytes memory approvals) private {
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
    }

    function refuse(Entry memory entry, bytes memory approvals) private {
        expectError(Slashing.NothingToSlash.selector);
        accuse(entry, approvals);
    }

    /// One signature cannot be out of order, so it is refused for whom it recovers to.
    function refuseReport(DowntimeReport memory downtime, bytes32 wrong, uint256 i) private {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[i], wrong);
        address signer = ecrecover(digestOf(downtime), v, r, s);
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(signer));
        report(downtime, abi.encodePacked(r, s, v));
    }

    function test_HighS() public nobodyIsSlashed {
        Accusation memory accusation = invalidCompletion();
        Entry memory entry = invalidEntry();
        DowntimeReport memory downtime = newReport();
        bytes memory approvals = mirrored(digestOf(accusation));
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        accuse(accusation, approvals);
        approvals = mirrored(digestOf(entry));
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        accuse(entry, approvals);
        approvals = mirrored(digestOf(downtime));
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        report(downtime, approvals);
    }

    function mirrored(bytes32 digest) private view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[0], digest);
        return abi.encodePacked(r, ORDER - uint256(s), v == 27 ? uint8(28) : uint8(27));
    }

    /// The same signature in two forms would make three approvals of two.
    function test_OneApprovalCountedTwice() public nobodyIsSlashed {
        Accusation memory accusation = invalidCompletion();
        uint256[] memory signers = first(3);
        signers[2] = signers[1];
        bytes memory approvals = approve(digestOf(accusation), signers);
        expectError(Approvals.UnsortedApproval.selector, abi.encode(validatorAt(1)));
        accuse(accusation, approvals);
    }

    /// A request of the attacker's making under a settlement that others approved.
    function test_ForgedLeaf() public nobodyIsSlashed {
        Entry memory honest = newEntry(resultSignature(keyOf("compute")));
        bytes memory approvals = approve(digestOf(honest), first(3));
        Entry memory forged = invalidEntry();
        forged.settlement = honest.settlement;
        expectNotIn(forged);
        accuse(forged, approvals);
        // Nor with a way to the root that is a part of the real one.
        forged.proof = new bytes32[](1);
        forged.proof[0] = honest.proof[1];
        expectNotIn(forged);
        accuse(forged, approvals);
        forged.proof = new bytes32[](0);
        expectNotIn(forged);
        accuse(forged, approvals);
    }

    /// An inner node's two halves as the first two fields of a leaf.
    function test_InnerNodeAsLeaf() public nobodyIsSlashed {
        Entry memory honest = newEntry(resultSignature(keyOf("compute")));
        bytes memory approvals = approve(digestOf(honest), first(3));
        Entry memory forged = invalidEntry();
        forged.settlement = honest.settlement;
        (forged.leaf.channel, forged.leaf.completion) = (honest.proof[0], leafHash(honest.leaf));
        if (forged.leaf.channel > forged.leaf.completion) {
            (forged.leaf.channel, forged.leaf.completion) = (forged.leaf.completion, forged.leaf.channel);
        }
        (forged.leaf.amount, forged.leaf.resultSignatures) = (0, 0);
        forged.proof = new bytes32[](1);
        forged.proof[0] = honest.proof[1];
        expectNotIn(forged);
        accuse(forged, approvals);
    }

    /// With another root the leaf is in it, but nobody approved that.
    function test_ForgedSettlement() public nobodyIsSlashed {
        Entry memory honest = newEntry(resultSignature(keyOf("compute")));
        Entry memory forged = invalidEntry();
        for (uint256 i = 0; i < 5; ++i) {
            refuse(forged, approve(digestOf(honest), keys[i]));
        }
    }

    function expectNotIn(Entry memory entry) private {
        bytes memory fields = abi.encode(leafHash(entry.leaf), entry.settlement.root);
        expectError(Slashing.NotInSettlement.selector, fields);
    }

    /// Strangers sign the invalid completion, too, to make one validator's slip look like a collusion.
    function test_StrangersDoNotMakeACollusion() public {
        Accusation memory accusation = invalidCompletion();
        accuse(accusation, merge(first(1), strangers(20)));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
    }

    /// Nor do former validators, even those that have been punished for the same slip, unless they lost everything for it.
    function test_FormerValidatorsDoNotMakeACollusion() public {
        Accusation memory accusation = invalidCompletion();
        accuse(accusation, first(2));
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        for (uint256 i = 0; i < 2; ++i) {
            registry.withdrawStake(validatorAt(i));
        }
        accuse(accusation, first(3));
        vm.assertEq(registry.stakeOf(validatorAt(2)), 70 ether);
    }

    /// Unstaked signatures around the real one cost whoever brings them, and change nothing.
    function testFuzz_UnstakedSignersChangeNothing(uint256 seed, uint256 count) public {
        uint256[] memory signers = first(2);
        count = within(count, 0, 12);
        for (uint256 i = 0; i < count; ++i) {
            signers = merge(signers, only(uint256(keccak256(abi.encode(seed, i)))));
        }
        accuse(invalidCompletion(), signers);
        vm.assertEq(token.balanceOf(treasury), 60 ether);
        vm.assertEq(registry.stakeOf(validatorAt(2)), MINIMUM_STAKE);
    }

    function test_OnlyStrangersSigned() public nobodyIsSlashed {
        Accusation memory accusation = invalidCompletion();
        refuse(accusation, approve(digestOf(accusation), strangers(5)));
    }

    // Downtime

    /// Two of five cannot take a third one's stake, with all the strangers they like.
    function test_AMinorityReports() public nobodyIsSlashed {
        DowntimeReport memory downtime = newReport();
        bytes memory approvals = approve(digestOf(downtime), first(2));
        expectError(Approvals.TooFewApprovals.selector, abi.encode(2, 3));
        report(downtime, approvals);
        uint256[] memory unstaked = strangers(1);
        approvals = approve(digestOf(downtime), merge(first(2), unstaked));
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(vm.addr(unstaked[0])));
        report(downtime, approvals);
    }

    /// Who signed was there.
    function test_SelfReport() public nobodyIsSlashed {
        DowntimeReport memory downtime = newReport();
        downtime.validator = validatorAt(1);
        bytes memory approvals = approve(digestOf(downtime), first(3));
        expectError(Slashing.SelfReport.selector, abi.encode(validatorAt(1)));
        report(downtime, approvals);
    }

    // The registry's door

    function test_NobodyElseSlashes() public nobodyIsSlashed {
        address[6] memory callers =
            [owner, treasury, validatorAt(1), address(payment), address(registry), address(this)];
        for (uint256 i = 0; i < callers.length; ++i) {
            expectError(ValidatorRegistry.NotSlasher.selector, abi.encode(address(slashing), callers[i]));
            vm.prank(callers[i]);
            registry.slash(validatorAt(0), 10_000, keccak256("evidence"));
        }
    }

    /// Nobody is the slasher before one is set, the zero address included.
    function test_NobodySlashesWithoutASlasher() public nobodyIsSlashed {
        vm.prank(owner);
        registry.setSlasher(address(0));
        expectError(ValidatorRegistry.NotSlasher.selector, abi.encode(address(0), address(this)));
        registry.slash(validatorAt(0), 10_000, keccak256("evidence"));
        Accusation memory accusation = invalidCompletion();
        bytes memory approvals = approve(digestOf(accusation), first(1));
        expectError(ValidatorRegistry.NotSlasher.selector, abi.encode(address(0), address(slashing)));
        accuse(accusation, approvals);
    }
}
