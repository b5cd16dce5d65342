// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title The token in which requests are paid and validators stake.
/// @notice A plain ERC-20 of 18 decimals: no fee, no hook, no block list, so that a settlement cannot be stopped by one recipient.
/// Permit (ERC-2612) lets a client approve an escrow with a signature, ERC-3009 lets it pay with one, in any order and without gas.
/// @dev Both sign in the one EIP-712 domain that ERC20Permit sets up; the type strings keep them apart. A payment to a contract that
/// books it has to be a receiveWithAuthorization: anyone can play a transferWithAuthorization by itself.
contract NCNToken is ERC20, ERC20Permit, ERC3009, Ownable {
    constructor(address owner, uint256 supply) ERC20("NCN", "NCN") ERC20Permit("NCN") Ownable(owner) {
        _mint(owner, supply);
    }

    /// @notice Creates `amount` new tokens for `to`.
    function mint(address to, uint256 amount) external onlyOwner {
        _mint(to, amount);
    }
}
