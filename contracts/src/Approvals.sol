// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Committee} from "./Messages.sol";
import {ValidatorRegistry} from "./ValidatorRegistry.sol";

/// @title What counts as a certificate: signatures of enough distinct validators with a stake under one digest.
/// @notice A request is approved by its committee, which quote or voucher name: those who accepted that have checked how it was drawn, and
/// nobody outside it can pay their money out, whatever their stake. A downtime is reported by M to N of all active validators.
library Approvals {
    uint256 private constant SIGNATURE_LENGTH = 65;

    error MalformedApprovals(uint256 length);
    error InvalidApproval(uint256 index);
    error UnsortedApproval(address signer);
    error TooFewApprovals(uint256 have, uint256 need);
    error TooManyApprovals(uint256 have, uint256 most);
    /// @notice Two certificates of such a committee could contradict each other without a validator that signed both.
    error NoMajority(uint16 threshold, uint256 members);

    /// @notice Refuses approvals by fewer of `committee` than it takes. Returns how many of its members are among `signers`.
    /// @param signers Ascending, as of {signersOf}.
    /// @dev Members ascend as well, so this is a walk along both lists. One out of order is not found, and does not count.
    function requireCommittee(address[] memory signers, Committee calldata committee)
        internal
        pure
        returns (uint256 count)
    {
        (uint16 threshold, address[] calldata members) = (committee.threshold, committee.members);
        if (2 * uint256(threshold) <= members.length) revert NoMajority(threshold, members.length);
        uint256 place = 0;
        for (uint256 i = 0; i < signers.length; ++i) {
            while (place < members.length && members[place] < signers[i]) ++place;
            if (place == members.length) break;
            if (members[place] == signers[i]) ++count;
        }
        if (count < threshold) revert TooFewApprovals(count, threshold);
    }

    /// @notice Recovers who signed `digest`, and refuses the whole if they are no M to N of the active validators.
    function activeSigners(ValidatorRegistry registry, bytes32 digest, bytes calldata approvals)
        internal
        view
        returns (address[] memory signers)
    {
        signers = signersOf(digest, approvals);
        (uint256 threshold, uint256 committeeSize) = registry.requireActive(signers);
        if (signers.length < threshold) revert TooFewApprovals(signers.length, threshold);
        if (signers.length > committeeSize) revert TooManyApprovals(signers.length, committeeSize);
    }

    /// @notice Recovers who signed `digest`.
    /// @dev Signers have to ascend, which makes them distinct at the price of one comparison each.
    /// @param approvals 65-byte signatures (r, s, v), one after the other, by ascending signer.
    function signersOf(bytes32 digest, bytes calldata approvals) internal pure returns (address[] memory signers) {
        if (approvals.length % SIGNATURE_LENGTH != 0) revert MalformedApprovals(approvals.length);
        uint256 count = approvals.length / SIGNATURE_LENGTH;
        signers = new address[](count);
        address previous = address(0);
        for (uint256 i = 0; i < count; ++i) {
            bytes calldata approval = approvals[i * SIGNATURE_LENGTH:(i + 1) * SIGNATURE_LENGTH];
            (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, approval);
            if (failure != ECDSA.RecoverError.NoError) revert InvalidApproval(i);
            if (signer <= previous) revert UnsortedApproval(signer);
            signers[i] = signer;
            previous = signer;
        }
    }
}
