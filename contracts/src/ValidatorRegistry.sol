// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ExactTransfer} from "./ExactTransfer.sol";

/// @title Who may approve requests, what they have at stake, and how many of them it takes.
/// @notice A validator is in one of three states. It is active from `registerValidator` to `requestUnstake`, leaving until its
/// stake is withdrawn, and unknown before and after. Only active validators count. The stake stays here while a validator is
/// leaving, so that what it approved can still be held against it: the slasher reaches both.
/// @dev Who sets the slasher can take every stake for the treasury, so the owner is trusted with them. The slasher itself is meant
/// to be {Slashing}, which asks for evidence.
contract ValidatorRegistry is Ownable, ReentrancyGuardTransient {
    using ExactTransfer for IERC20;
    using SafeCast for uint256;
    using SafeERC20 for IERC20;

    /// @dev One storage slot.
    struct Validator {
        uint128 stake;
        /// When a leaving validator may take its stake; 0 for one that is not leaving.
        uint64 withdrawableAt;
        /// Place in the active list, counted from 1; 0 for one that is not active.
        uint16 position;
        /// Silence before this time cannot be held against the validator; see {accountableTime}.
        uint48 accountableSince;
    }

    /// @notice Keeps the active list short enough to be read in one call.
    uint256 public constant MAX_VALIDATORS = 256;
    /// @notice A validator that returns after a shorter absence remains accountable for the time before it. Otherwise leaving and
    /// returning in one block would be a way to be silent for free.
    uint64 public constant MIN_ABSENCE = 1 days;

    uint256 private constant BASIS_POINTS = 10_000;

    IERC20 public immutable token;
    uint128 public immutable minimumStake;
    uint64 public immutable unstakeDelay;
    /// @notice Where slashed stakes go.
    address public immutable treasury;

    /// @notice M: how many approvals release a payment.
    uint16 public threshold;
    /// @notice N: how many validators are asked about a request, and the most that are paid for one.
    uint16 public committeeSize;
    /// @notice Who may slash; nobody while it is zero.
    address public slasher;

    address[] private _active;
    mapping(address account => Validator) private _validators;

    event ValidatorRegistered(address indexed validator, uint256 amount, uint256 stake);
    event UnstakeRequested(address indexed validator, uint256 stake, uint64 withdrawableAt);
    event StakeWithdrawn(address indexed validator, uint256 amount);
    /// @notice `stake` is what is left. An active validator that keeps less than the minimum is leaving from here on, as the
    /// UnstakeRequested that follows says; one that keeps nothing is unknown again, without a further event.
    event ValidatorSlashed(address indexed validator, uint256 amount, uint256 stake, bytes32 indexed evidence);
    event SlasherChanged(address indexed slasher);
    event QuorumChanged(uint16 threshold, uint16 committeeSize);

    error ZeroAmount();
    error ZeroMinimumStake();
    error ZeroTreasury();
    error StakeBelowMinimum(uint256 stake, uint256 minimum);
    error TooManyValidators();
    error InactiveValidator(address validator);
    error NotLeaving(address validator);
    error WithdrawalTooEarly(uint64 withdrawableAt);
    error InvalidQuorum(uint16 threshold, uint16 committeeSize);
    error NotSlasher(address slasher, address caller);
    error InvalidBasisPoints(uint16 basisPoints);
    error NoStake(address validator);

    constructor(
        IERC20 token_,
        address owner,
        uint128 minimumStake_,
        uint64 unstakeDelay_,
        uint16 threshold_,
        uint16 committeeSize_,
        address treasury_
    ) Ownable(owner) {
        if (minimumStake_ == 0) revert ZeroMinimumStake();
        if (treasury_ == address(0)) revert ZeroTreasury();
        token = token_;
        minimumStake = minimumStake_;
        unstakeDelay = unstakeDelay_;
        treasury = treasury_;
        _setQuorum(threshold_, committeeSize_);
    }

    /// @notice Adds `amount` of the caller's tokens (approved before) to its stake and makes it active. An active validator tops
    /// up this way, and one that is leaving changes its mind.
    function registerValidator(uint256 amount) external nonReentrant {
        if (amount == 0) revert ZeroAmount();
        Validator memory validator = _validators[msg.sender];
        uint256 stake = validator.stake + amount;
        if (stake < minimumStake) revert StakeBelowMinimum(stake, minimumStake);
        validator.stake = stake.toUint128();
        if (validator.position == 0) {
            if (_active.length == MAX_VALIDATORS) revert TooManyValidators();
            _active.push(msg.sender);
            validator.position = uint16(_active.length);
            validator.accountableSince = _accountableOnReturn(validator);
        }
        validator.withdrawableAt = 0;
        _validators[msg.sender] = validator;
        emit ValidatorRegistered(msg.sender, amount, stake);
        token.pull(msg.sender, amount);
    }

    /// @notice Takes the caller out of the active set at once and starts the delay after which it may have its stake back.
    function requestUnstake() external {
        Validator storage validator = _validators[msg.sender];
        if (validator.position == 0) revert InactiveValidator(msg.sender);
        _deactivate(validator);
        _startLeaving(msg.sender, validator);
    }

    /// @notice Pays the caller its stake back, once the delay is over.
    function withdrawStake() external nonReentrant {
        Validator memory validator = _validators[msg.sender];
        if (validator.withdrawableAt == 0) revert NotLeaving(msg.sender);
        if (block.timestamp < validator.withdrawableAt) revert WithdrawalTooEarly(validator.withdrawableAt);
        delete _validators[msg.sender];
        emit StakeWithdrawn(msg.sender, validator.stake);
        token.safeTransfer(msg.sender, validator.stake);
    }

    /// @notice Sends a part of the stake of `account`, active or leaving, to the treasury. The part is rounded up, so that a slashing
    /// is never for nothing. Whoever is left with less than the minimum does not count any more.
    /// @param evidence What the slasher acted on, for those who read the event.
    function slash(address account, uint16 basisPoints, bytes32 evidence)
        external
        nonReentrant
        returns (uint128 amount)
    {
        if (msg.sender != slasher) revert NotSlasher(slasher, msg.sender);
        if (basisPoints == 0 || basisPoints > BASIS_POINTS) revert InvalidBasisPoints(basisPoints);
        Validator storage validator = _validators[account];
        uint128 stake = validator.stake;
        if (stake == 0) revert NoStake(account);
        // At most the stake, because the basis points are at most all of them; so it fits, too.
        amount = uint128(Math.ceilDiv(uint256(stake) * basisPoints, BASIS_POINTS));
        stake -= amount;
        validator.stake = stake;
        // The silence up to now is settled by any slashing: no offence costs less than a downtime.
        validator.accountableSince = uint48(block.timestamp);
        emit ValidatorSlashed(account, amount, stake, evidence);
        if (stake < minimumStake && validator.position != 0) {
            _deactivate(validator);
            if (stake != 0) _startLeaving(account, validator);
        }
        // Nothing to come back for, whether it was active or leaving.
        if (stake == 0) delete _validators[account];
        token.safeTransfer(treasury, amount);
    }

    /// @notice Changes who may slash; zero ends it.
    function setSlasher(address slasher_) external onlyOwner {
        slasher = slasher_;
        emit SlasherChanged(slasher_);
    }

    /// @notice Changes M and N. M must be more than half of N, so that no two certificates can contradict each other without a
    /// validator that signed both.
    function setQuorum(uint16 threshold_, uint16 committeeSize_) external onlyOwner {
        _setQuorum(threshold_, committeeSize_);
    }

    /// @notice Reverts with the first of `signers` that is not active. Returns the quorum too, so that whoever counts approvals
    /// needs one call.
    function requireActive(address[] calldata signers)
        external
        view
        returns (uint16 threshold_, uint16 committeeSize_)
    {
        for (uint256 i = 0; i < signers.length; ++i) {
            if (_validators[signers[i]].position == 0) {
                revert InactiveValidator(signers[i]);
            }
        }
        return (threshold, committeeSize);
    }

    function isActive(address account) external view returns (bool) {
        return _validators[account].position != 0;
    }

    /// @notice The active set, in no particular order.
    function activeValidators() external view returns (address[] memory) {
        return _active;
    }

    /// @notice What `account` has staked, active or leaving.
    function stakeOf(address account) external view returns (uint256) {
        return _validators[account].stake;
    }

    /// @notice When `account` may withdraw its stake; 0 for one that is not leaving.
    function withdrawableAt(address account) external view returns (uint64) {
        return _validators[account].withdrawableAt;
    }

    /// @notice The time of which silence can be held against `account`: from when it became active, or was last slashed, until now or
    /// until it left. The absence of a validator that returned within {MIN_ABSENCE} is subtracted: `since` is later by as much.
    /// Both are 0 for an unknown account.
    function accountableTime(address account) external view returns (uint64 since, uint64 until) {
        Validator memory validator = _validators[account];
        if (validator.position != 0) return (validator.accountableSince, uint64(block.timestamp));
        if (validator.withdrawableAt != 0) return (validator.accountableSince, _leftAt(validator));
    }

    /// @dev The present for a new validator and for one that was absent for long.
    function _accountableOnReturn(Validator memory validator) private view returns (uint48) {
        if (validator.withdrawableAt == 0) return uint48(block.timestamp);
        uint256 absence = block.timestamp - _leftAt(validator);
        if (absence >= MIN_ABSENCE) return uint48(block.timestamp);
        // One that was slashed during its absence would become accountable in the future.
        return uint48(Math.min(validator.accountableSince + absence, block.timestamp));
    }

    /// @dev When a leaving validator stopped being active.
    function _leftAt(Validator memory validator) private view returns (uint64) {
        return validator.withdrawableAt - unstakeDelay;
    }

    /// @dev Takes an active validator off the list; the last one moves to its place.
    function _deactivate(Validator storage validator) private {
        uint16 position = validator.position;
        address last = _active[_active.length - 1];
        _active[position - 1] = last;
        _validators[last].position = position;
        _active.pop();
        // After the line that moves the last one, because the last one may be this one.
        validator.position = 0;
    }

    function _startLeaving(address account, Validator storage validator) private {
        uint64 ready = uint64(block.timestamp) + unstakeDelay;
        validator.withdrawableAt = ready;
        emit UnstakeRequested(account, validator.stake, ready);
    }

    function _setQuorum(uint16 threshold_, uint16 committeeSize_) private {
        bool majority = 2 * uint256(threshold_) > committeeSize_;
        if (!majority || threshold_ > committeeSize_ || committeeSize_ > MAX_VALIDATORS) {
            revert InvalidQuorum(threshold_, committeeSize_);
        }
        threshold = threshold_;
        committeeSize = committeeSize_;
        emit QuorumChanged(threshold_, committeeSize_);
    }
}
