// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ExactTransfer} from "./ExactTransfer.sol";

/// @title Who may approve requests, since when and until when, what they have at stake, and how many of them it takes.
/// @notice A validator is listed from `registerValidator` until its stake is withdrawn, which takes the delay after `requestUnstake`.
/// It is active from the second after the first until the second after the other: who is active at a time that has come does not
/// change any more, and the list tells it for every time of the last delay. So a request is judged from beginning to end by those who
/// were active when it was quoted, and no joining or leaving since then touches it. The stake stays here while a validator is
/// leaving, so that what it approved can still be held against it: the slasher reaches both.
/// @dev Who sets the slasher can take every stake for the treasury, so the owner is trusted with them. The slasher itself is meant
/// to be {Slashing}, which asks for evidence.
contract ValidatorRegistry is Ownable, ReentrancyGuardTransient {
    using ExactTransfer for IERC20;
    using SafeCast for uint256;
    using SafeERC20 for IERC20;

    /// @dev One storage slot.
    struct Validator {
        uint112 stake;
        uint40 activeFrom;
        /// The first second in which it is not active any more; {FOREVER} for one that has not left.
        uint40 activeUntil;
        /// Silence before this time cannot be held against the validator; see {accountableTime}.
        uint40 accountableSince;
        /// Place in the list, counted from 1; 0 for an unknown account.
        uint16 position;
    }

    /// @notice When somebody was active: from `activeFrom`, until the second before `activeUntil`.
    struct Member {
        address account;
        uint64 activeFrom;
        uint64 activeUntil;
    }

    /// @notice M of N, from `since` on.
    struct Quorum {
        uint64 since;
        uint16 threshold;
        uint16 committeeSize;
    }

    /// @notice Keeps the list short enough to be read in one call.
    uint256 public constant MAX_VALIDATORS = 256;

    uint40 private constant FOREVER = type(uint40).max;
    uint256 private constant BASIS_POINTS = 10_000;

    IERC20 public immutable token;
    uint128 public immutable minimumStake;
    uint64 public immutable unstakeDelay;
    /// @notice Where slashed stakes go.
    address public immutable treasury;

    /// @notice Who may slash; nobody while it is zero.
    address public slasher;

    Quorum private _quorum;
    /// @dev The one before; all zero when there was none.
    Quorum private _previous;
    address[] private _listed;
    mapping(address account => Validator) private _validators;

    event ValidatorRegistered(address indexed validator, uint256 amount, uint256 stake);
    event UnstakeRequested(address indexed validator, uint256 stake, uint64 withdrawableAt);
    event StakeWithdrawn(address indexed validator, uint256 amount);
    /// @notice `stake` is what is left. An active validator that keeps less than the minimum is leaving from here on, as the
    /// UnstakeRequested that follows says.
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
    /// @notice Who has left comes back once it has withdrawn its stake.
    error StillLeaving(uint64 withdrawableAt);
    error WithdrawalTooEarly(uint64 withdrawableAt);
    error InvalidQuorum(uint16 threshold, uint16 committeeSize);
    error QuorumChangeTooEarly(uint64 earliest);
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
        _setQuorum(threshold_, committeeSize_, uint64(block.timestamp));
    }

    /// @notice Adds `amount` of the caller's tokens (approved before) to its stake. A new validator is active from the next second on;
    /// one that is active tops up this way.
    function registerValidator(uint256 amount) external nonReentrant {
        if (amount == 0) revert ZeroAmount();
        Validator memory validator = _validators[msg.sender];
        uint256 stake = validator.stake + amount;
        if (stake < minimumStake) revert StakeBelowMinimum(stake, minimumStake);
        validator.stake = stake.toUint112();
        if (validator.position == 0) {
            if (_listed.length == MAX_VALIDATORS) revert TooManyValidators();
            _listed.push(msg.sender);
            validator.position = uint16(_listed.length);
            validator.activeFrom = uint40(block.timestamp) + 1;
            validator.activeUntil = FOREVER;
            validator.accountableSince = validator.activeFrom;
        }
        if (validator.activeUntil != FOREVER) revert StillLeaving(_withdrawableAt(validator));
        _validators[msg.sender] = validator;
        emit ValidatorRegistered(msg.sender, amount, stake);
        token.pull(msg.sender, amount);
    }

    /// @notice Takes the caller out of the active set and starts the delay after which it may have its stake back.
    function requestUnstake() external {
        Validator storage validator = _validators[msg.sender];
        if (validator.position == 0 || validator.activeUntil != FOREVER) revert InactiveValidator(msg.sender);
        _startLeaving(msg.sender, validator);
    }

    /// @notice Pays `account` what is left of its stake, once the delay is over. Anyone may call, so that nobody who has left, or lost
    /// everything, keeps others off the list.
    function withdrawStake(address account) external nonReentrant {
        Validator memory validator = _validators[account];
        if (validator.position == 0 || validator.activeUntil == FOREVER) revert NotLeaving(account);
        uint64 ready = _withdrawableAt(validator);
        if (block.timestamp < ready) revert WithdrawalTooEarly(ready);
        // The last one moves to its place; it may be that one itself.
        address last = _listed[_listed.length - 1];
        _listed[validator.position - 1] = last;
        _validators[last].position = validator.position;
        _listed.pop();
        delete _validators[account];
        emit StakeWithdrawn(account, validator.stake);
        token.safeTransfer(account, validator.stake);
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
        validator.stake = uint112(stake);
        // The silence up to now is settled by any slashing: no offence costs less than a downtime.
        validator.accountableSince = uint40(block.timestamp);
        emit ValidatorSlashed(account, amount, stake, evidence);
        if (stake < minimumStake && validator.activeUntil == FOREVER) _startLeaving(account, validator);
        token.safeTransfer(treasury, amount);
    }

    /// @notice Changes who may slash; zero ends it.
    function setSlasher(address slasher_) external onlyOwner {
        slasher = slasher_;
        emit SlasherChanged(slasher_);
    }

    /// @notice Changes M and N, from the next second on. M must be more than half of N, so that no two certificates can contradict each
    /// other without a validator that signed both. Not again before the delay of a stake is over: requests that were quoted before the
    /// change are judged by what was valid then.
    function setQuorum(uint16 threshold_, uint16 committeeSize_) external onlyOwner {
        if (_previous.since != 0 && block.timestamp < _quorum.since + unstakeDelay) {
            revert QuorumChangeTooEarly(_quorum.since + unstakeDelay);
        }
        _previous = _quorum;
        _setQuorum(threshold_, committeeSize_, uint64(block.timestamp) + 1);
    }

    /// @notice Reverts with the first of `signers` that has nothing at stake: that never had, lost all of it, or has withdrawn it.
    function requireStaked(address[] calldata signers) external view {
        for (uint256 i = 0; i < signers.length; ++i) {
            if (_validators[signers[i]].stake == 0) revert NoStake(signers[i]);
        }
    }

    /// @notice Those of `signers` that have something at stake, in their order.
    function staked(address[] calldata signers) external view returns (address[] memory counted) {
        counted = new address[](signers.length);
        uint256 count = 0;
        for (uint256 i = 0; i < signers.length; ++i) {
            if (_validators[signers[i]].stake != 0) counted[count++] = signers[i];
        }
        assembly ("memory-safe") {
            mstore(counted, count)
        }
    }

    /// @notice Reverts with the first of `signers` that is not active. Returns the quorum too, so that whoever counts approvals
    /// needs one call.
    function requireActive(address[] calldata signers)
        external
        view
        returns (uint16 threshold_, uint16 committeeSize_)
    {
        for (uint256 i = 0; i < signers.length; ++i) {
            if (!isActive(signers[i])) {
                revert InactiveValidator(signers[i]);
            }
        }
        return quorum();
    }

    /// @notice Everything that it takes to tell who judged, and how many it took, at any time from the last delay until `time`, which is
    /// now. In no particular order, except that the quorum that is valid last comes last.
    function history() external view returns (uint64 time, Member[] memory members, Quorum[] memory quorums) {
        members = new Member[](_listed.length);
        for (uint256 i = 0; i < members.length; ++i) {
            address account = _listed[i];
            Validator memory validator = _validators[account];
            members[i] = Member(account, validator.activeFrom, validator.activeUntil);
        }
        quorums = new Quorum[](_previous.since == 0 ? 1 : 2);
        quorums[0] = _previous;
        quorums[quorums.length - 1] = _quorum;
        time = uint64(block.timestamp);
    }

    /// @notice M: how many approvals release a payment. N: how many validators judge a request.
    function quorum() public view returns (uint16 threshold, uint16 committeeSize) {
        Quorum memory valid = block.timestamp < _quorum.since ? _previous : _quorum;
        return (valid.threshold, valid.committeeSize);
    }

    function isActive(address account) public view returns (bool) {
        Validator memory validator = _validators[account];
        return validator.activeFrom <= block.timestamp && block.timestamp < validator.activeUntil;
    }

    /// @notice What `account` has staked, active or leaving.
    function stakeOf(address account) external view returns (uint256) {
        return _validators[account].stake;
    }

    /// @notice When the stake of `account` may be withdrawn; 0 for one that is not leaving.
    function withdrawableAt(address account) external view returns (uint64) {
        Validator memory validator = _validators[account];
        return validator.position == 0 || validator.activeUntil == FOREVER ? 0 : _withdrawableAt(validator);
    }

    /// @notice The time of which silence can be held against `account`: from when it became active, or was last slashed, until now or
    /// until it left. Both are 0 for an account without a stake.
    function accountableTime(address account) external view returns (uint64 since, uint64 until) {
        Validator memory validator = _validators[account];
        if (validator.stake == 0) return (0, 0);
        until = uint64(block.timestamp);
        if (validator.activeUntil <= until) until = validator.activeUntil - 1;
        since = validator.accountableSince;
    }

    function _withdrawableAt(Validator memory validator) private view returns (uint64) {
        return validator.activeUntil + unstakeDelay;
    }

    function _startLeaving(address account, Validator storage validator) private {
        validator.activeUntil = uint40(block.timestamp) + 1;
        emit UnstakeRequested(account, validator.stake, _withdrawableAt(validator));
    }

    function _setQuorum(uint16 threshold_, uint16 committeeSize_, uint64 since) private {
        bool majority = 2 * uint256(threshold_) > committeeSize_;
        if (!majority || threshold_ > committeeSize_ || committeeSize_ > MAX_VALIDATORS) {
            revert InvalidQuorum(threshold_, committeeSize_);
        }
        _quorum = Quorum(since, threshold_, committeeSize_);
        emit QuorumChanged(threshold_, committeeSize_);
    }
}
