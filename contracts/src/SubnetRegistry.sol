// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ExactTransfer} from "./ExactTransfer.sol";

/// @title Who created which subnet, for a fee.
/// @notice A gateway creates each of its subnets once. The id is made of the gateway and the name, so nobody can take another's, and
/// what the subnet offers is signed off chain. The fee goes straight to the treasury; nothing is held here.
contract SubnetRegistry is Ownable, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice The longest name, in bytes.
    uint256 public constant MAX_NAME_LENGTH = 64;

    IERC20 public immutable token;
    address public immutable treasury;

    /// @notice What a new subnet costs; may be nothing.
    uint128 public creationFee;

    /// @notice The gateway that created a subnet; zero for an unknown one.
    mapping(bytes32 id => address owner) public ownerOf;

    event SubnetCreated(bytes32 indexed id, address indexed owner, string name, uint256 fee);
    event CreationFeeChanged(uint128 creationFee);

    error ZeroTreasury();
    error InvalidName(uint256 length);
    error AlreadyCreated(bytes32 id);

    constructor(IERC20 token_, address treasury_, address owner, uint128 creationFee_) Ownable(owner) {
        if (treasury_ == address(0)) revert ZeroTreasury();
        token = token_;
        treasury = treasury_;
        _setCreationFee(creationFee_);
    }

    /// @notice Creates the caller's subnet `name` and charges the caller the fee, which it has approved before: a fee that was
    /// raised in the meantime takes no more than that.
    function createSubnet(string calldata name) external nonReentrant returns (bytes32 id) {
        uint256 length = bytes(name).length;
        if (length == 0 || length > MAX_NAME_LENGTH) revert InvalidName(length);
        id = keccak256(abi.encode(msg.sender, name));
        if (ownerOf[id] != address(0)) revert AlreadyCreated(id);
        ownerOf[id] = msg.sender;
        // The treasury would pay itself, of which nothing arrives.
        uint256 fee = msg.sender == treasury ? 0 : creationFee;
        emit SubnetCreated(id, msg.sender, name, fee);
        if (fee != 0) _charge(fee);
    }

    /// @notice Changes what a new subnet costs from now on.
    function setCreationFee(uint128 creationFee_) external onlyOwner {
        _setCreationFee(creationFee_);
    }

    function _charge(uint256 fee) private {
        uint256 before = token.balanceOf(treasury);
        token.safeTransferFrom(msg.sender, treasury, fee);
        uint256 received = token.balanceOf(treasury) - before;
        if (received != fee) revert ExactTransfer.ShortTransfer(received, fee);
    }

    function _setCreationFee(uint128 creationFee_) private {
        creationFee = creationFee_;
        emit CreationFeeChanged(creationFee_);
    }
}
