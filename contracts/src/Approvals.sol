// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {ValidatorRegistry} from "./ValidatorRegistry.sol";

/// @title What counts as a certificate: signatures of M to N distinct active validators under one digest.
library Approvals {
    uint256 private constant SIGNATURE_LENGTH = 65;

    error MalformedApprovals(uint256 length);
    error InvalidApproval(uint256 index);
    error UnsortedApproval(address signer);
    error TooFewApprovals(uint256 have, uint256 need);
    error TooManyApprovals(uint256 have, uint256 most);

    /// @notice Recovers who signed `digest`, and refuses the whole if they do not make a quorum.
    /// @dev Signers have to ascend, which makes them distinct at the price of one comparison each.
    /// @param approvals 65-byte signatures (r, s, v), one after the other, by ascending signer.
    function approvers(ValidatorRegistry registry, bytes32 digest, bytes calldata approvals)
        internal
        view
        returns (address[] memory signers)
    {
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
        (uint256 threshold, uint256 committeeSize) = registry.requireActive(signers);
        if (count < threshold) revert TooFewApprovals(count, threshold);
        if (count > committeeSize) revert TooManyApprovals(count, committeeSize);
    }
}
