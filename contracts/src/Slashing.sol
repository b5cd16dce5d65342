// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Approvals} from "./Approvals.sol";
import {InferencePayment} from "./InferencePayment.sol";
import {MessageHash} from "./MessageHash.sol";
import {ChannelSettlement, Completion, DowntimeReport, InferenceResult, Quote, SettledCompletion} from "./Messages.sol";
import {ValidatorRegistry} from "./ValidatorRegistry.sol";

/// @notice What is needed of PaymentChannel here: what validators sign before a batch is settled.
interface ISettlementDigest {
    function settlementDigest(ChannelSettlement calldata settlement) external view returns (bytes32);
}

/// @title Takes stake for what can be held against a validator on chain.
/// @notice Anyone may bring evidence. {slashInvalidResult} and {slashInvalidSignature} are proven: the validator's own signature is
/// under something that contradicts itself, and no majority can make it up. {slashDowntime} is not proven: nobody can show a
/// contract that an answer did not come, so there it is the word of M of N other validators that counts.
/// @dev An offence is what the signed messages show by themselves. Whether an output is right, they do not.
contract Slashing is ReentrancyGuardTransient {
    using Approvals for ValidatorRegistry;
    using MessageHash for Completion;
    using MessageHash for DowntimeReport;
    using MessageHash for InferenceResult;
    using MessageHash for Quote;
    using MessageHash for SettledCompletion;

    /// @notice What each offence costs, in basis points of the stake.
    uint16 public constant INVALID_SIGNATURE = 5000;
    uint16 public constant INVALID_RESULT = 3000;
    uint16 public constant COLLUSION = 10_000;
    uint16 public constant DOWNTIME = 1000;

    /// @notice The names of the offences in events and evidence, as ASCII.
    bytes32 public constant OFFENCE_INVALID_SIGNATURE = "INVALID_SIGNATURE";
    bytes32 public constant OFFENCE_INVALID_RESULT = "INVALID_RESULT";
    bytes32 public constant OFFENCE_COLLUSION = "COLLUSION";
    bytes32 public constant OFFENCE_DOWNTIME = "DOWNTIME";

    /// @notice The shortest silence that can be reported.
    uint64 public constant MIN_DOWNTIME = 1 days;
    /// @notice A report has to come within this time after the end of the silence.
    uint64 public constant MAX_REPORT_AGE = 1 days;
    /// @notice The most approvals that one call takes: as many as there can be active validators.
    uint256 public constant MAX_APPROVALS = 256;

    uint256 private constant SIGNATURE_LENGTH = 65;

    ValidatorRegistry public immutable registry;
    /// @notice Its domain is the one in which completions, results and reports are signed.
    InferencePayment public immutable payment;
    ISettlementDigest public immutable channel;

    /// @notice Who has been punished for what; see {evidenceOf}.
    mapping(bytes32 evidence => mapping(address validator => bool)) public punished;

    /// @notice Evidence of `offence` cost `punished` validators stake; the registry says whom and how much.
    event EvidenceAccepted(bytes32 indexed evidence, bytes32 offence, uint256 punished);

    error QuoteMismatch(bytes32 approved, bytes32 presented);
    error ResultMismatch(bytes32 approved, bytes32 presented);
    error CompletionMismatch(bytes32 settled, bytes32 presented);
    error SignatureMismatch(bytes32 settled, bytes32 presented);
    error UnknownContribution(uint256 index, uint256 count);
    error NotInSettlement(bytes32 leaf, bytes32 root);
    /// @notice Quote, result and completion agree with each other.
    error ValidCompletion();
    /// @notice The result was signed by the compute node that it names.
    error ValidSignature(address compute);
    /// @notice No signer has a stake that has not been slashed for this before.
    error NothingToSlash();
    error SelfReport(address validator);
    error DowntimeTooShort(uint64 since, uint64 until);
    error DowntimeNotOver(uint64 until);
    error DowntimeTooOld(uint64 until);
    /// @notice Silence can be held against the validator only from `accountableSince` to `accountableUntil`.
    error DowntimeNotAccountable(uint64 accountableSince, uint64 accountableUntil);
    /// @notice The reporter became active, or was slashed, after the beginning of the silence.
    error UnreliableReporter(address reporter, uint64 accountableSince);

    constructor(ValidatorRegistry registry_, InferencePayment payment_, ISettlementDigest channel_) {
        registry = registry_;
        payment = payment_;
        channel = channel_;
    }

    /// @notice Punishes approvals of a completion that contradicts the quote or one of the results it names: it is of another request or
    /// model, or pays another node or another amount than they lead to. Signers without a stake are passed over. Where those with one would make a certificate, it was no slip of one of them, and they lose everything.
    /// @dev A signer that lost its stake as part of this very collusion still counts towards the certificate, so that it does not
    /// matter in how many calls the approvals of one completion come in. A signer that lost its whole stake for anything else counts
    /// as long as its stake would have remained if it had left instead, so that nobody can burn a stake to make a collusion cheaper for the others. Nobody else without a stake
    /// does: strangers cannot turn one validator's slip into a collusion.
    /// @param index Which of the completion's contributions `result` is the result of.
    /// @param approvals 65-byte signatures (r, s, v) over the Completion's digest, one after the other, by ascending signer. Any
    /// number of them: one validator's suffices to hold it to account.
    function slashInvalidResult(
        Quote calldata quote,
        InferenceResult calldata result,
        Completion calldata completion,
        uint256 index,
        bytes calldata approvals
    ) external nonReentrant {
        _requireSame(quote, completion);
        _requireSame(result, completion, index);
        if (_isConsistent(quote, result, completion, index)) revert ValidCompletion();

        bytes32 digest = payment.completionDigest(completion);
        address[] memory signers = _recover(digest, approvals);
        bytes32 collusion = evidenceOf(OFFENCE_COLLUSION, digest);
        uint256 certificate = 0;
        for (uint256 i = 0; i < signers.length; ++i) {
            address signer = signers[i];
            if (
                punished[collusion][signer] || registry.stakeOf(signer) != 0
                    || block.timestamp < registry.withdrawableAt(signer)
            ) {
                ++certificate;
            }
        }
        (uint256 threshold,) = registry.quorum();
        if (certificate >= threshold) {
            _punish(signers, OFFENCE_COLLUSION, collusion, collusion, COLLUSION);
        } else {
            bytes32 evidence = evidenceOf(OFFENCE_INVALID_RESULT, digest);
            _punish(signers, OFFENCE_INVALID_RESULT, evidence, collusion, INVALID_RESULT);
        }
    }

    /// @notice Punishes approvals of a settlement that has a request in it with a result that its compute node did not sign. Signers
    /// without a stake are passed over. A validator pays once for one completion, in however many settlements it approved it.
    /// @param approvals Over the settlement's digest, as for {slashInvalidResult}.
    /// @param leaf The request as the settlement has it.
    /// @param proof The leaf's siblings on the way to the settlement's root, hashed in sorted pairs.
    /// @param index Which of the completion's contributions `result` is the result of.
    /// @param resultSignatures What the leaf has the hash of: one signature for each contribution. Valid is one of 65 bytes with v of 27 or
    /// 28 and a low s only.
    function slashInvalidSignature(
        ChannelSettlement calldata settlement,
        bytes calldata approvals,
        SettledCompletion calldata leaf,
        bytes32[] calldata proof,
        Completion calldata completion,
        InferenceResult calldata result,
        uint256 index,
        bytes calldata resultSignatures
    ) external nonReentrant {
        // The hash of five words cannot be mistaken for the hash of a pair, so no inner node passes for a leaf.
        bytes32 hash = leaf.hash();
        if (!MerkleProof.verifyCalldata(proof, settlement.root, hash)) revert NotInSettlement(hash, settlement.root);
        _requireSame(completion, leaf);
        _requireSame(result, completion, index);
        hash = keccak256(resultSignatures);
        if (hash != leaf.resultSignatures) revert SignatureMismatch(leaf.resultSignatures, hash);
        _requireUnsigned(result, index, completion.contributions.length, resultSignatures);

        address[] memory signers = _recover(channel.settlementDigest(settlement), approvals);
        bytes32 evidence = evidenceOf(OFFENCE_INVALID_SIGNATURE, payment.completionDigest(completion));
        _punish(signers, OFFENCE_INVALID_SIGNATURE, evidence, evidence, INVALID_SIGNATURE);
    }

    /// @notice Punishes a validator that M of N active validators say did not answer, also one that left less than
    /// {MAX_REPORT_AGE} ago. This is governed by their word, not proven. What protects the reported one is that it takes a whole
    /// quorum, and that a report is of a day at least in which the validator was active, since its last punishment. So there is at
    /// most one report a day, however many are signed.
    /// @dev The registry starts the accountable time anew with every slashing, so no time is punished twice. A reporter has to be
    /// accountable for the whole time itself: who came later cannot know, and who was slashed for that time is not believed.
    /// @param approvals Over the report's typed-data hash in the domain of `payment`, as for {slashInvalidResult}.
    function slashDowntime(DowntimeReport calldata report, bytes calldata approvals) external nonReentrant {
        (address validator, uint64 since, uint64 until) = (report.validator, report.since, report.until);
        if (until > block.timestamp) revert DowntimeNotOver(until);
        if (until < since || until - since < MIN_DOWNTIME) revert DowntimeTooShort(since, until);
        if (block.timestamp - until > MAX_REPORT_AGE) revert DowntimeTooOld(until);
        (uint64 accountableSince, uint64 accountableUntil) = registry.accountableTime(validator);
        if (accountableUntil == 0) revert ValidatorRegistry.InactiveValidator(validator);
        if (since < accountableSince || until > accountableUntil) {
            revert DowntimeNotAccountable(accountableSince, accountableUntil);
        }

        bytes32 digest = _typedDataHash(report.hash());
        address[] memory signers = registry.activeSigners(digest, approvals);
        for (uint256 i = 0; i < signers.length; ++i) {
            if (signers[i] == validator) revert SelfReport(validator);
            (accountableSince,) = registry.accountableTime(signers[i]);
            if (since < accountableSince) revert UnreliableReporter(signers[i], accountableSince);
        }

        bytes32 evidence = evidenceOf(OFFENCE_DOWNTIME, digest);
        punished[evidence][validator] = true;
        emit EvidenceAccepted(evidence, OFFENCE_DOWNTIME, 1);
        registry.slash(validator, DOWNTIME, evidence);
    }

    /// @notice What stands for `offence` in `punished` and in events. `digest` is the report's for a downtime, otherwise the
    /// completion's.
    function evidenceOf(bytes32 offence, bytes32 digest) public pure returns (bytes32) {
        return keccak256(abi.encode(offence, digest));
    }

    /// @notice What validators sign to report a downtime.
    function downtimeDigest(DowntimeReport calldata report) external view returns (bytes32) {
        return _typedDataHash(report.hash());
    }

    /// @dev Slashes each signer that has a stake and has not been punished for `evidence`, nor for the graver `graver`.
    function _punish(address[] memory signers, bytes32 offence, bytes32 evidence, bytes32 graver, uint16 basisPoints)
        private
    {
        uint256 count = 0;
        for (uint256 i = 0; i < signers.length; ++i) {
            address signer = signers[i];
            if (punished[evidence][signer] || punished[graver][signer] || registry.stakeOf(signer) == 0) continue;
            punished[evidence][signer] = true;
            ++count;
            registry.slash(signer, basisPoints, evidence);
        }
        if (count == 0) revert NothingToSlash();
        emit EvidenceAccepted(evidence, offence, count);
    }

    /// @dev Whoever and however many they are.
    function _recover(bytes32 digest, bytes calldata approvals) private pure returns (address[] memory) {
        uint256 count = approvals.length / SIGNATURE_LENGTH;
        if (count > MAX_APPROVALS) revert Approvals.TooManyApprovals(count, MAX_APPROVALS);
        return Approvals.signersOf(digest, approvals);
    }

    function _requireSame(Quote calldata quote, Completion calldata completion) private pure {
        bytes32 presented = quote.hash();
        if (completion.quote != presented) revert QuoteMismatch(completion.quote, presented);
    }

    function _requireSame(InferenceResult calldata result, Completion calldata completion, uint256 index) private pure {
        uint256 count = completion.contributions.length;
        if (index >= count) revert UnknownContribution(index, count);
        bytes32 presented = result.hash();
        bytes32 approved = completion.contributions[index].result;
        if (approved != presented) revert ResultMismatch(approved, presented);
    }

    /// @dev Whether the completion agrees with the quote, and its contribution with the quote and the result.
    function _isConsistent(
        Quote calldata quote,
        InferenceResult calldata result,
        Completion calldata completion,
        uint256 index
    ) private pure returns (bool) {
        uint256 total = 0;
        for (uint256 i = 0; i < completion.contributions.length; ++i) {
            total += completion.contributions[i].cost;
        }
        // Prices of 128 bits and units of 64 bits fit a uint256.
        uint256 cost = uint256(quote.outputPrice) * result.outputUnits;
        if (index == 0) cost += quote.basePrice + uint256(quote.inputPrice) * result.inputUnits;
        return quote.requestId == completion.requestId && result.requestId == completion.requestId
            && result.modelDigest == quote.modelDigest && result.compute == completion.contributions[index].compute
            && cost == completion.contributions[index].cost && total <= quote.total;
    }

    /// @dev Reverts when the compute node that `result` names has signed it.
    function _requireUnsigned(
        InferenceResult calldata result,
        uint256 index,
        uint256 count,
        bytes calldata resultSignatures
    ) private view {
        if (resultSignatures.length != count * SIGNATURE_LENGTH) return;
        bytes calldata signature = resultSignatures[index * SIGNATURE_LENGTH:(index + 1) * SIGNATURE_LENGTH];
        (address signer, ECDSA.RecoverError failure,) =
            ECDSA.tryRecoverCalldata(_typedDataHash(result.hash()), signature);
        if (failure == ECDSA.RecoverError.NoError && signer == result.compute) revert ValidSignature(signer);
    }

    function _requireSame(Completion calldata completion, SettledCompletion calldata leaf) private pure {
        bytes32 presented = completion.hash();
        if (leaf.completion != presented) revert CompletionMismatch(leaf.completion, presented);
    }

    function _typedDataHash(bytes32 hash) private view returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(payment.domainSeparator(), hash);
    }
}
