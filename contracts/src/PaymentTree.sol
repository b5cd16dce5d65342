// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

/// What each party is paid for one request. `compute` is for all compute nodes together, `validator` is one signer's share.
struct Payout {
    uint128 compute;
    uint128 gateway;
    uint128 validator;
    uint128 treasury;
}

/// @title How a request's cost is divided, to the last token unit.
/// @notice Gateway, validators and treasury get their basis points rounded down, the validators' part is divided equally among
/// the signers and rounded down again, and compute gets everything that is left. So the parts always sum to the cost.
/// Among compute nodes, compute's part is divided as what their contributions cost, rounded down, and the last one gets what is left.
/// The Rust side computes the same in ncn-core.
library PaymentTree {
    uint256 internal constant BASIS_POINTS = 10_000;

    /// @dev The caller has checked that the basis points sum to at most {BASIS_POINTS} and that there is a signer.
    function split(uint128 cost, uint16 gatewayBps, uint16 validatorsBps, uint16 treasuryBps, uint256 signers)
        internal
        pure
        returns (Payout memory payout)
    {
        // A uint128 times a uint16 fits a uint256, and parts of at most 10,000 basis points sum to at most the cost.
        unchecked {
            uint256 gateway = uint256(cost) * gatewayBps / BASIS_POINTS;
            uint256 validator = uint256(cost) * validatorsBps / BASIS_POINTS / signers;
            uint256 treasury = uint256(cost) * treasuryBps / BASIS_POINTS;
            payout.compute = uint128(cost - gateway - validator * signers - treasury);
            payout.gateway = uint128(gateway);
            payout.validator = uint128(validator);
            payout.treasury = uint128(treasury);
        }
    }
}
