// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// @title Takes tokens in, and refuses a token that keeps some of them on the way.
/// @dev A contract that books more than it holds would pay the last one out of the others' money. The balance is compared before
/// and after, which is sound only where the caller is guarded against reentrancy.
library ExactTransfer {
    using SafeERC20 for IERC20;

    /// @notice The token moved less than it was asked to.
    error ShortTransfer(uint256 received, uint256 expected);

    function pull(IERC20 token, address from, uint256 amount) internal {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(from, address(this), amount);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received < amount) revert ShortTransfer(received, amount);
    }
}
