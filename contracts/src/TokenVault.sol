// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

/// @title Pays out of what a contract holds, so that one recipient that cannot be paid stops nobody else.
/// @notice A payment is a transfer. Where the token refuses it (a block list, a hook of the recipient's that reverts), the amount
/// is booked instead, and whoever likes to may try again later. Nothing is lost, and nothing waits for it.
abstract contract TokenVault is ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @dev Many times what a transfer costs, and little enough for a whole batch of payments whose recipients' hooks burn it all.
    uint256 private constant TRANSFER_GAS = 200_000;

    IERC20 public immutable token;

    /// @notice What could not be paid to an account when it was due.
    mapping(address account => uint256 amount) public owed;

    event PaymentDeferred(address indexed account, uint256 amount);
    event PaymentWithdrawn(address indexed account, uint256 amount);

    error NothingOwed(address account);

    constructor(IERC20 token_) {
        token = token_;
    }

    /// @notice Pays `account` what it is owed. Anyone may call; it reverts, and nothing changes, while the token still refuses.
    function withdraw(address account) external nonReentrant {
        uint256 amount = owed[account];
        if (amount == 0) revert NothingOwed(account);
        owed[account] = 0;
        emit PaymentWithdrawn(account, amount);
        token.safeTransfer(account, amount);
    }

    /// @dev A caller that brings too little gas can at most have a payment booked that would have gone through: deferred, never
    /// lost. Even that takes a strange token. Booking costs 1,600 gas or more out of the 64th part that a failed call leaves, so the
    /// transfer had no less than 100,000.
    function _pay(address to, uint256 amount) internal {
        if (amount == 0 || _transfer(to, amount)) return;
        owed[to] += amount;
        emit PaymentDeferred(to, amount);
    }

    /// @dev Whether the token moved, which it may say with true or by saying nothing. In assembly, because no more of an answer than
    /// that may be copied: a long one that a recipient makes up costs gas here, and ever more from one payment to the next.
    function _transfer(address to, uint256 amount) private returns (bool moved) {
        address token_ = address(token);
        bytes4 selector = IERC20.transfer.selector;
        assembly ("memory-safe") {
            let call_ := mload(0x40)
            mstore(call_, selector)
            mstore(add(call_, 0x04), and(to, shr(96, not(0))))
            mstore(add(call_, 0x24), amount)
            moved := call(TRANSFER_GAS, token_, 0, call_, 0x44, 0x00, 0x20)
            switch returndatasize()
            case 0 { moved := and(moved, gt(extcodesize(token_), 0)) }
            default { moved := and(moved, and(gt(returndatasize(), 0x1f), eq(mload(0x00), 1))) }
        }
    }
}
