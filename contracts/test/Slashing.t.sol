// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {MessageHash} from "../src/MessageHash.sol";
import {DowntimeReport} from "../src/Messages.sol";
import {Slashing} from "../src/Slashing.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {SlashingFixture} from "./SlashingFixture.sol";

contract SlashingConstruction is SlashingFixture {
    function test_ConstructorSetsEverything() public view {
        vm.assertEq(address(slashing.registry()), address(registry));
        vm.assertEq(address(slashing.payment()), address(payment));
        vm.assertEq(address(slashing.channel()), address(channel));
    }

    function test_WhatOffencesCost() public view {
        vm.assertEq(slashing.INVALID_SIGNATURE(), 5000);
        vm.assertEq(slashing.INVALID_RESULT(), 3000);
        vm.assertEq(slashing.COLLUSION(), 10_000);
        vm.assertEq(slashing.DOWNTIME(), 1000);
        vm.assertEq(slashing.MIN_DOWNTIME(), 86_400);
        vm.assertEq(slashing.MAX_REPORT_AGE(), 86_400);
        vm.assertEq(slashing.MAX_APPROVALS(), registry.MAX_VALIDATORS());
    }

    function test_EvidenceKeepsOffencesAndDigestsApart() public view {
        bytes32 evidence = slashing.evidenceOf("COLLUSION", bytes32(uint256(1)));
        vm.assertEq(evidence, keccak256(abi.encode(bytes32("COLLUSION"), 1)));
        vm.assertNotEq(evidence, slashing.evidenceOf("INVALID_RESULT", bytes32(uint256(1))));
        vm.assertNotEq(evidence, slashing.evidenceOf("COLLUSION", bytes32(uint256(2))));
    }
}

contract InvalidResultTest is SlashingFixture {
    Accusation private accusation;
    bytes32 private digest;
    bytes32 private invalid;
    bytes32 private collusion;

    function setUp() public override {
        super.setUp();
        accusation = invalidCompletion();
        digest = digestOf(accusation);
        invalid = slashing.evidenceOf("INVALID_RESULT", digest);
        collusion = slashing.evidenceOf("COLLUSION", digest);
    }

    function test_OneApprovalCostsThirtyPercent() public {
        bytes memory approvals = approve(digest, keys[0]);
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(validatorAt(0), 30 ether, 70 ether, invalid);
        vm.expectEmit(address(slashing));
        emit Slashing.EvidenceAccepted(invalid, "INVALID_RESULT", 1);
        vm.prank(accountOf("anyone"));
        accuse(accusation, approvals);
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
        vm.assertEq(token.balanceOf(treasury), 30 ether);
        vm.assertTrue(slashing.punished(invalid, validatorAt(0)));
        vm.assertFalse(slashing.punished(collusion, validatorAt(0)));
        vm.assertFalse(slashing.punished(invalid, validatorAt(1)));
    }

    function test_TwoApprovalsCostThirtyPercentEach() public {
        accuse(accusation, first(2));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
        vm.assertEq(registry.stakeOf(validatorAt(1)), 70 ether);
        vm.assertEq(registry.stakeOf(validatorAt(2)), 100 ether);
        vm.assertEq(token.balanceOf(treasury), 60 ether);
    }

    function test_ALargeStakeStaysActive() public {
        stake(keys[0], MINIMUM_STAKE);
        accuse(accusation, first(1));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 140 ether);
        vm.assertTrue(registry.isActive(validatorAt(0)));
    }

    /// Whatever the completion contradicts, alone.
    function test_EveryContradiction() public {
        accusation = newAccusation();
        accusation.quote.requestId = keccak256("another request");
        slashOne(0);
        accusation = newAccusation();
        accusation.result.requestId = keccak256("another request");
        slashOne(1);
        accusation = newAccusation();
        accusation.quote.modelDigest = keccak256("another model");
        slashOne(2);
        accusation = newAccusation();
        accusation.result.compute = accountOf("another node");
        slashOne(3);
        accusation = newAccusation();
        accusation.completion.compute = accountOf("another node");
        slashOne(4);
    }

    function slashOne(uint256 i) private {
        Accusation memory linked = accusation;
        link(linked);
        accuse(linked, only(keys[i]));
        vm.assertEq(registry.stakeOf(validatorAt(i)), 70 ether);
    }

    function test_ACertificateIsCollusion() public {
        bytes memory approvals = approve(digest, first(3));
        for (uint256 i = 0; i < 3; ++i) {
            vm.expectEmit(address(registry));
            emit ValidatorRegistry.ValidatorSlashed(validatorAt(i), 100 ether, 0, collusion);
        }
        vm.expectEmit(address(slashing));
        emit Slashing.EvidenceAccepted(collusion, "COLLUSION", 3);
        accuse(accusation, approvals);
        vm.assertEq(token.balanceOf(treasury), 300 ether);
        vm.assertEq(registry.activeValidators().length, 2);
        for (uint256 i = 0; i < 3; ++i) {
            vm.assertEq(registry.stakeOf(validatorAt(i)), 0);
            vm.assertTrue(slashing.punished(collusion, validatorAt(i)));
        }
    }

    function test_MoreThanACertificateIsCollusionOfAll() public {
        accuse(accusation, keys);
        vm.assertEq(token.balanceOf(treasury), 500 ether);
        vm.assertEq(registry.activeValidators().length, 0);
    }

    function test_LeavingSignersCountTowardsTheCertificate() public {
        unstake(validatorAt(0));
        unstake(validatorAt(2));
        accuse(accusation, first(3));
        vm.assertEq(token.balanceOf(treasury), 300 ether);
    }

    function test_OneByOneFirstAndTogetherLater() public {
        for (uint256 i = 0; i < 3; ++i) {
            accuse(accusation, only(keys[i]));
        }
        vm.assertEq(token.balanceOf(treasury), 90 ether);
        accuse(accusation, first(3));
        vm.assertEq(token.balanceOf(treasury), 300 ether);
    }

    /// In the other order the lesser offence is not punished any more, even of who has staked again.
    function test_AfterTheCollusionNothingFollows() public {
        accuse(accusation, first(3));
        stake(keys[0], MINIMUM_STAKE);
        bytes memory approvals = approve(digest, first(1));
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
        approvals = approve(digest, first(3));
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
        vm.assertEq(registry.stakeOf(validatorAt(0)), MINIMUM_STAKE);
    }

    /// The fourth was part of the same certificate, though the others have nothing left.
    function test_ALateSignerJoinsTheCollusion() public {
        accuse(accusation, first(3));
        accuse(accusation, first(4));
        vm.assertEq(registry.stakeOf(validatorAt(3)), 0);
        vm.assertTrue(slashing.punished(collusion, validatorAt(3)));
        vm.assertEq(token.balanceOf(treasury), 400 ether);
    }

    function test_ALateSignerAloneIsNoCollusion() public {
        accuse(accusation, first(3));
        accuse(accusation, only(keys[3]));
        vm.assertEq(registry.stakeOf(validatorAt(3)), 70 ether);
    }

    /// What counts is what is needed to release a payment at that time.
    function test_TheThresholdIsTheRegistrys() public {
        vm.prank(owner);
        registry.setQuorum(4, 5);
        accuse(accusation, first(3));
        vm.assertEq(token.balanceOf(treasury), 90 ether);
        accuse(accusation, first(4));
        vm.assertEq(token.balanceOf(treasury), 400 ether);
    }

    function test_StrangersArePassedOver() public {
        accuse(accusation, merge(first(1), strangers(4)));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 70 ether);
        vm.assertEq(token.balanceOf(treasury), 30 ether);
    }

    function test_NothingToSlash() public {
        bytes memory approvals = approve(digest, strangers(3));
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, approvals);
        expectError(Slashing.NothingToSlash.selector);
        accuse(accusation, "");
    }

    /// Another completion is another offence, also of the same request.
    function test_TwoCompletionsAreTwoOffences() public {
        accuse(accusation, first(1));
        accusation.result.outputHash = keccak256("another output");
        Accusation memory other = accusation;
        link(other);
        accuse(other, first(1));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 49 ether);
    }

    function test_RefusesAnotherQuote() public {
        bytes memory approvals = approve(digest, first(1));
        bytes32 approved = accusation.completion.quote;
        accusation.quote.total += 1;
        Accusation memory changed = accusation;
        link(changed);
        bytes32 presented = changed.completion.quote;
        changed.completion.quote = approved;
        expectError(Slashing.QuoteMismatch.selector, abi.encode(approved, presented));
        accuse(changed, approvals);
    }

    function test_RefusesAnotherResult() public {
        bytes memory approvals = approve(digest, first(1));
        accusation.result.inputUnits += 1;
        bytes32 presented = resultHash(accusation.result);
        expectError(Slashing.ResultMismatch.selector, abi.encode(accusation.completion.result, presented));
        accuse(accusation, approvals);
    }

    function test_RefusesMalformedApprovals() public {
        bytes memory approvals = approve(digest, first(1));
        expectError(Approvals.MalformedApprovals.selector, abi.encode(66));
        accuse(accusation, bytes.concat(approvals, hex"00"));
        expectError(Approvals.InvalidApproval.selector, abi.encode(1));
        accuse(accusation, bytes.concat(approvals, new bytes(65)));
        expectError(Approvals.UnsortedApproval.selector, abi.encode(validatorAt(0)));
        accuse(accusation, bytes.concat(approvals, approvals));
    }

    function test_BoundsTheNumberOfApprovals() public {
        expectError(Approvals.TooManyApprovals.selector, abi.encode(257, 256));
        accuse(accusation, new bytes(257 * 65));
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        accuse(accusation, new bytes(256 * 65));
    }

    /// Over stakes of any size, what one call takes is the sum of what each offence costs.
    function testFuzz_WhatACallTakes(uint128[5] memory extra, uint256 signers) public {
        signers = within(signers, 1, 5);
        uint256 expected = 0;
        for (uint256 i = 0; i < 5; ++i) {
            uint256 more = within(extra[i], 1, 1000 ether);
            stake(keys[i], more);
            uint256 staked = MINIMUM_STAKE + more;
            if (i < signers) expected += signers >= 3 ? staked : (staked * 3000 + 9999) / 10_000;
        }
        uint256 held = token.balanceOf(address(registry));
        accuse(accusation, first(signers));
        vm.assertEq(token.balanceOf(treasury), expected);
        vm.assertEq(token.balanceOf(address(registry)), held - expected);
    }
}

contract InvalidSignatureTest is SlashingFixture {
    uint256 private constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    Entry private entry;
    bytes32 private evidence;

    function setUp() public override {
        super.setUp();
        entry = invalidEntry();
        evidence = slashing.evidenceOf("INVALID_SIGNATURE", payment.completionDigest(entry.completion));
    }

    function test_VouchingCostsHalf() public {
        bytes memory approvals = approve(digestOf(entry), first(1));
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(validatorAt(0), 50 ether, 50 ether, evidence);
        vm.expectEmit(address(slashing));
        emit Slashing.EvidenceAccepted(evidence, "INVALID_SIGNATURE", 1);
        vm.prank(accountOf("anyone"));
        accuse(entry, approvals);
        vm.assertEq(registry.stakeOf(validatorAt(0)), 50 ether);
        vm.assertEq(token.balanceOf(treasury), 50 ether);
        vm.assertTrue(slashing.punished(evidence, validatorAt(0)));
    }

    /// A whole certificate is the usual case of a settlement, and no more than that.
    function test_VouchingTogetherCostsHalfEach() public {
        accuse(entry, first(3));
        for (uint256 i = 0; i < 3; ++i) {
            vm.assertEq(registry.stakeOf(validatorAt(i)), 50 ether);
        }
        vm.assertEq(token.balanceOf(treasury), 150 ether);
    }

    function test_LeavingOnesPayAndStrangersArePassedOver() public {
        unstake(validatorAt(0));
        accuse(entry, merge(first(2), strangers(2)));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 50 ether);
        vm.assertEq(registry.stakeOf(validatorAt(1)), 50 ether);
        vm.assertEq(registry.withdrawableAt(validatorAt(0)), NOW + UNSTAKE_DELAY);
    }

    /// No signature at all, and every form of one that recovery does not take.
    function test_EveryInvalidSignature() public {
        uint256 key = keyOf("compute");
        bytes memory valid = resultSignature(key);
        bytes memory changed = bytes.concat(valid);
        changed[64] = bytes1(uint8(changed[64]) - 27);
        slashOne("", 0);
        slashOne(bytes.concat(valid, hex"00"), 1);
        slashOne(new bytes(65), 2);
        slashOne(changed, 3);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, typedDataHash(resultHash(newAccusation().result)));
        slashOne(abi.encodePacked(r, ORDER - uint256(s), v == 27 ? uint8(28) : uint8(27)), 4);
    }

    /// Signed by the right node, but for another chain.
    function test_ASignatureFromAnotherDomain() public {
        vm.chainId(CHAIN + 1);
        bytes memory signature = resultSignature(keyOf("compute"));
        vm.chainId(CHAIN);
        slashOne(signature, 0);
    }

    function slashOne(bytes memory signature, uint256 i) private {
        accuse(newEntry(signature), only(keys[i]));
        vm.assertEq(registry.stakeOf(validatorAt(i)), 50 ether);
    }

    function test_ABatchOfOne() public {
        entry.proof = new bytes32[](0);
        entry.settlement.root = leafHash(entry.leaf);
        entry.settlement.count = 1;
        accuse(entry, first(1));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 50 ether);
    }

    /// A settlement that comes to nothing is approved again with the same requests.
    function test_OneCompletionIsPaidForOnce() public {
        accuse(entry, first(2));
        entry.settlement.charges[0].settledBefore = 1 ether;
        bytes memory approvals = approve(digestOf(entry), first(2));
        expectError(Slashing.NothingToSlash.selector);
        accuse(entry, approvals);
        accuse(entry, first(3));
        vm.assertEq(token.balanceOf(treasury), 150 ether);
    }

    function test_TwoCompletionsAreTwoOffences() public {
        accuse(entry, first(1));
        entry.completion.requestId = keccak256("another request");
        replant();
        accuse(entry, first(1));
        vm.assertEq(registry.stakeOf(validatorAt(0)), 25 ether);
    }

    function test_NothingToSlash() public {
        bytes memory approvals = approve(digestOf(entry), strangers(3));
        expectError(Slashing.NothingToSlash.selector);
        accuse(entry, approvals);
        expectError(Slashing.NothingToSlash.selector);
        accuse(entry, "");
    }

    function test_RefusesAValidSignature() public {
        entry = newEntry(resultSignature(keyOf("compute")));
        bytes memory approvals = approve(digestOf(entry), first(3));
        expectError(Slashing.ValidSignature.selector, abi.encode(compute));
        accuse(entry, approvals);
    }

    function test_RefusesAnotherSignatureThanSettled() public {
        bytes memory approvals = approve(digestOf(entry), first(3));
        entry.signature[0] ^= 0x01;
        bytes memory fields = abi.encode(entry.leaf.resultSignature, keccak256(entry.signature));
        expectError(Slashing.SignatureMismatch.selector, fields);
        accuse(entry, approvals);
    }

    function test_RefusesAnotherCompletionThanSettled() public {
        bytes memory approvals = approve(digestOf(entry), first(3));
        bytes32 settled = entry.leaf.completion;
        entry.completion.compute = accountOf("another node");
        replant();
        bytes32 presented = entry.leaf.completion;
        entry.leaf.completion = settled;
        Entry memory back = entry;
        plant(back);
        expectError(Slashing.CompletionMismatch.selector, abi.encode(settled, presented));
        accuse(back, approvals);
    }

    function test_RefusesAnotherResultThanCompleted() public {
        bytes memory approvals = approve(digestOf(entry), first(3));
        entry.result.outputHash = keccak256("another output");
        bytes32 presented = resultHash(entry.result);
        expectError(Slashing.ResultMismatch.selector, abi.encode(entry.completion.result, presented));
        accuse(entry, approvals);
    }

    function test_RefusesALeafThatIsNotInTheSettlement() public {
        bytes memory approvals = approve(digestOf(entry), first(3));
        entry.leaf.amount += 1;
        bytes memory fields = abi.encode(leafHash(entry.leaf), entry.settlement.root);
        expectError(Slashing.NotInSettlement.selector, fields);
        accuse(entry, approvals);
    }

    function test_RefusesMalformedApprovals() public {
        bytes memory approvals = approve(digestOf(entry), first(1));
        expectError(Approvals.MalformedApprovals.selector, abi.encode(64));
        accuse(entry, new bytes(64));
        expectError(Approvals.UnsortedApproval.selector, abi.encode(validatorAt(0)));
        accuse(entry, bytes.concat(approvals, approvals));
        expectError(Approvals.TooManyApprovals.selector, abi.encode(257, 256));
        accuse(entry, new bytes(257 * 65));
    }

    /// Makes leaf and root follow the completion.
    function replant() private {
        Entry memory changed = entry;
        changed.leaf.completion = MessageHash.hash(changed.completion);
        plant(changed);
        entry = changed;
    }
}

contract DowntimeTest is SlashingFixture {
    DowntimeReport private downtime;
    address private silent;

    function setUp() public override {
        super.setUp();
        downtime = newReport();
        silent = downtime.validator;
    }

    function test_TheQuorumSlashesATenth() public {
        bytes memory approvals = approve(digestOf(downtime), first(3));
        bytes32 evidence = slashing.evidenceOf("DOWNTIME", digestOf(downtime));
        vm.expectEmit(address(slashing));
        emit Slashing.EvidenceAccepted(evidence, "DOWNTIME", 1);
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.ValidatorSlashed(silent, 10 ether, 90 ether, evidence);
        vm.prank(accountOf("anyone"));
        report(downtime, approvals);
        vm.assertEq(registry.stakeOf(silent), 90 ether);
        vm.assertFalse(registry.isActive(silent));
        vm.assertEq(token.balanceOf(treasury), 10 ether);
        (uint64 since,) = registry.accountableTime(silent);
        vm.assertEq(since, NOW);
        vm.assertTrue(slashing.punished(evidence, silent));
    }

    function test_TheDigestIsTheOneThatValidatorsSign() public view {
        vm.assertEq(slashing.downtimeDigest(downtime), digestOf(downtime));
    }

    function test_ADayIsEnough() public {
        downtime.since = downtime.until - 1 days + 1;
        refuseTime(Slashing.DowntimeTooShort.selector, abi.encode(downtime.since, downtime.until));
        downtime.since -= 1;
        report(downtime);
    }

    function test_RefusesATimeThatRunsBackwards() public {
        (downtime.since, downtime.until) = (downtime.until, downtime.since);
        refuseTime(Slashing.DowntimeTooShort.selector, abi.encode(downtime.since, downtime.until));
    }

    function test_RefusesTheFuture() public {
        downtime.until += 1;
        refuseTime(Slashing.DowntimeNotOver.selector, abi.encode(downtime.until));
        vm.warp(downtime.until);
        report(downtime);
    }

    function test_ADayLaterIsTooLate() public {
        bytes memory approvals = approve(digestOf(downtime), first(3));
        vm.warp(NOW + 1 days + 1);
        expectError(Slashing.DowntimeTooOld.selector, abi.encode(downtime.until));
        report(downtime, approvals);
        vm.warp(NOW + 1 days);
        report(downtime, approvals);
    }

    /// The next report may begin where the last one was brought.
    function test_DowntimesFollowEachOther() public {
        stake(keys[4], MINIMUM_STAKE);
        report(downtime);
        vm.warp(NOW + 1 days);
        downtime.since = downtime.until;
        downtime.until += 1 days;
        report(downtime);
        vm.assertEq(registry.stakeOf(silent), 162 ether);
    }

    /// One that stays silent loses a tenth each day, until the rest is less than the minimum.
    function test_ALongSilenceCostsATenthADay() public {
        stake(keys[4], MINIMUM_STAKE / 2);
        uint256 left = registry.stakeOf(silent);
        for (uint256 time = NOW; time < NOW + 4 days; time += 1 days) {
            vm.assertTrue(registry.isActive(silent));
            vm.warp(time);
            (downtime.since, downtime.until) = (uint64(time - 1 days), uint64(time));
            report(downtime);
            left -= (left + 9) / 10;
            vm.assertEq(registry.stakeOf(silent), left);
        }
        vm.assertFalse(registry.isActive(silent));
    }

    function test_RefusesAnUnknownValidator() public {
        downtime.validator = accountOf("stranger");
        refuseTime(ValidatorRegistry.InactiveValidator.selector, abi.encode(downtime.validator));
        downtime.validator = silent;
        unstake(silent);
        vm.warp(NOW + UNSTAKE_DELAY);
        vm.prank(silent);
        registry.withdrawStake();
        downtime.until = uint64(NOW) + UNSTAKE_DELAY;
        refuseTime(ValidatorRegistry.InactiveValidator.selector, abi.encode(silent));
    }

    function test_RefusesTooFewAndTooMany() public {
        bytes memory approvals = approve(digestOf(downtime), first(2));
        expectError(Approvals.TooFewApprovals.selector, abi.encode(2, 3));
        report(downtime, approvals);
        expectError(Approvals.TooFewApprovals.selector, abi.encode(0, 3));
        report(downtime, "");
        addValidators("more ", 2);
        vm.warp(NOW + 2 days);
        downtime = newReport();
        downtime.validator = validatorAt(6);
        approvals = approve(digestOf(downtime), first(6));
        expectError(Approvals.TooManyApprovals.selector, abi.encode(6, 5));
        report(downtime, approvals);
        report(downtime, approve(digestOf(downtime), first(5)));
    }

    function test_RefusesSignersThatAreNotActive() public {
        uint256[] memory unstaked = strangers(1);
        bytes memory approvals = approve(digestOf(downtime), merge(first(3), unstaked));
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(vm.addr(unstaked[0])));
        report(downtime, approvals);
        approvals = approve(digestOf(downtime), first(3));
        unstake(validatorAt(1));
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(validatorAt(1)));
        report(downtime, approvals);
    }

    function test_RefusesMalformedApprovals() public {
        bytes memory approvals = approve(digestOf(downtime), first(1));
        expectError(Approvals.MalformedApprovals.selector, abi.encode(64));
        report(downtime, new bytes(64));
        expectError(Approvals.InvalidApproval.selector, abi.encode(0));
        report(downtime, new bytes(65));
        expectError(Approvals.UnsortedApproval.selector, abi.encode(validatorAt(0)));
        report(downtime, bytes.concat(approvals, approvals));
    }

    function refuseTime(bytes4 selector, bytes memory fields) private {
        refuseReport(downtime, selector, fields);
    }
}
