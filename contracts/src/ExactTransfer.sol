// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC3009} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// @title Takes tokens in, and refuses a token that keeps some of them on the way.
/// @dev A contract that books more than it holds would pay the last one out of the others' money. The balance is compared before
/// and after, which is sound only where the caller is guarded against reentrancy.
library ExactTransfer {
    using SafeERC20 for IERC20;

    /// @dev An ERC-3009 signature of the owner of the tokens. Only the contract that it names can present it, so whoever relays it
    /// can do nothing else with it.
    struct Authorization {
        uint64 validBefore;
        bytes32 nonce;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    /// @notice The token moved less than it was asked to.
    error ShortTransfer(uint256 received, uint256 expected);

    /// @notice Takes `amount` out of the allowance that `from` has given.
    function pull(IERC20 token, address from, uint256 amount) internal {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(from, address(this), amount);
        check(token, before, amount);
    }

    /// @notice Takes `amount` on a signature by `from` of a ReceiveWithAuthorization.
    function pull(IERC20 token, address from, uint256 amount, Authorization memory a) internal {
        uint256 before = token.balanceOf(address(this));
        IERC3009(address(token))
            .receiveWithAuthorization(from, address(this), amount, 0, a.validBefore, a.nonce, a.v, a.r, a.s);
        check(token, before, amount);
    }

    function check(IERC20 token, uint256 before, uint256 amount) private view {
        uint256 received = token.balanceOf(address(this)) - before;
        if (received < amount) revert ShortTransfer(received, amount);
    }
}
