// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Approvals} from "./Approvals.sol";
import {ExactTransfer} from "./ExactTransfer.sol";
import {MessageHash, PROTOCOL_VERSION} from "./MessageHash.sol";
import {Committee, Completion, Contribution, Quote, TaskAccess} from "./Messages.sol";
import {PaymentTree, Payout} from "./PaymentTree.sol";
import {TokenVault} from "./TokenVault.sol";
import {ValidatorRegistry} from "./ValidatorRegistry.sol";

/// @title Holds a client's payment for one request until the validators release it or it goes back.
/// @notice An escrow ends in one of two ways, once. Enough validators approve the completion, and what it costs is paid out and the rest
/// goes back. Or the gateway gives up, or the expiry passes, and {CLAIM_TIME} after that the client has the total back: the time in
/// which those who served can still be paid by a certificate that the gateway keeps to itself.
/// Nobody can keep the money here: in the end anyone may send it home.
contract InferencePayment is EIP712, TokenVault {
    using Approvals for address[];
    using ExactTransfer for IERC20;
    using MessageHash for Committee;
    using MessageHash for Completion;
    using MessageHash for Quote;
    using MessageHash for TaskAccess;

    /// @dev What a {TaskAccess} to cancel says.
    uint8 private constant CANCEL = 2;

    /// @notice The longest a client's money can be bound.
    uint256 public constant MAX_ESCROW_TIME = 7 days;
    /// @notice How much longer a stake has to remain after its validator has left: from quote to escrow, and from the expiry to the last
    /// certificate, no more passes than that.
    uint256 public constant MAX_QUOTE_AGE = 1 days;
    /// @notice How long a certificate still pays, once the gateway has given a request up or the quote has expired.
    uint256 public constant CLAIM_TIME = 5 minutes;
    /// @notice What `requestState` says of a request that was paid out.
    bytes32 public constant COMPLETED = bytes32(uint256(1));
    /// @notice What `requestState` says of a request whose total went back to the client.
    bytes32 public constant REFUNDED = bytes32(uint256(2));

    ValidatorRegistry public immutable registry;
    address public immutable treasury;

    /// @dev The whole escrow is one slot: the rest of the quote comes back as calldata and is checked against its hash. Keyed by
    /// client first, so that nobody can use up another client's request id. The end states stay, so that an id is never used twice.
    mapping(address client => mapping(bytes32 requestId => bytes32 commitment)) private _requests;
    /// @dev When the gateway has given up the escrow of the quote with this struct hash; 0 while it has not.
    mapping(bytes32 commitment => uint256 time) private _givenUpAt;

    event RequestInitiated(
        bytes32 indexed requestId,
        address indexed client,
        address indexed gateway,
        uint128 total,
        uint64 expiry,
        bytes32 quote
    );
    event PaymentDistributed(
        bytes32 indexed requestId,
        address indexed client,
        bytes32 indexed completion,
        uint128 cost,
        uint128 refunded,
        uint128 computeAmount,
        uint128 gatewayAmount,
        uint128 validatorShare,
        uint128 treasuryAmount,
        address[] validators
    );
    /// @notice The total goes back to the client from `refundableAt` on, unless a certificate pays it out before.
    event RequestGivenUp(bytes32 indexed requestId, address indexed client, bytes32 quote, uint256 refundableAt);
    event RequestRefunded(bytes32 indexed requestId, address indexed client, uint128 total);

    error ZeroTreasury();
    /// @notice A validator could take its stake before the last request is over that it has to judge.
    error UnstakeDelayTooShort(uint64 delay, uint256 least);
    error CommitteeMismatch(bytes32 quoted, bytes32 presented);
    /// @notice Who is not of the committee has no part in the payment.
    error ApprovalOutsideCommittee(uint256 approvals, uint256 members);
    error ZeroGateway();
    error ZeroCompute();
    error ZeroAmount();
    error WrongClient(address client, address caller);
    error NotGateway(address gateway, address caller);
    error ExpiryOutOfRange(uint64 expiry, uint256 latest);
    error SplitTooLarge(uint256 basisPoints);
    /// @notice The client has not signed that its request may end without being paid for.
    error InvalidConsent(address client);
    error AlreadyGivenUp(bytes32 requestId, uint256 refundableAt);
    error CostAboveTotal(uint256 cost, uint128 total);
    /// @notice This very quote is in escrow already: a retry has nothing left to do.
    error AlreadyInitiated(bytes32 requestId);
    /// @notice The client used this request id for another quote, or the request has ended.
    error RequestIdUsed(bytes32 requestId, bytes32 commitment);
    error NotEscrowed(bytes32 requestId, bytes32 commitment);
    error QuoteMismatch(bytes32 escrowed, bytes32 presented);
    error Expired(uint256 claimableUntil);
    error NotRefundable(uint256 refundableAt);

    constructor(IERC20 token_, ValidatorRegistry registry_, address treasury_)
        EIP712("NCN", PROTOCOL_VERSION)
        TokenVault(token_)
    {
        if (treasury_ == address(0)) revert ZeroTreasury();
        uint64 delay = registry_.unstakeDelay();
        if (delay < MAX_ESCROW_TIME + MAX_QUOTE_AGE) {
            revert UnstakeDelayTooShort(delay, MAX_ESCROW_TIME + MAX_QUOTE_AGE);
        }
        registry = registry_;
        treasury = treasury_;
    }

    /// @notice Puts the caller's `quote.total` (approved before) into escrow under the terms of the quote.
    function initiateInferenceRequest(Quote calldata quote) external nonReentrant {
        if (msg.sender != quote.client) revert WrongClient(quote.client, msg.sender);
        _initiate(quote);
        token.pull(msg.sender, quote.total);
    }

    /// @notice Puts the client's `quote.total` into escrow on its signature. Anyone may call, so that a client needs no gas.
    /// @param v The signature is the client's ReceiveWithAuthorization (ERC-3009) under the token's domain: from the client to this
    /// contract, `quote.total`, valid after 0 and before `quote.expiry`, and its nonce is the struct hash of the quote.
    /// So it pays this quote, once, and nobody can present it elsewhere.
    function initiateWithAuthorization(Quote calldata quote, uint8 v, bytes32 r, bytes32 s) external nonReentrant {
        bytes32 commitment = _initiate(quote);
        token.pull(quote.client, quote.total, ExactTransfer.Authorization(quote.expiry, commitment, v, r, s));
    }

    /// @notice Pays out of the escrow what the request costs, by the validators' approval of its {Completion} under this quote, and gives
    /// the rest back to the client. Anyone may call, until {CLAIM_TIME} after the expiry: mostly the gateway, or else a node that
    /// has served and holds the certificate.
    /// @param committee The quote's, whose hash it has.
    /// @param contributions Who served, and what each one's part costs. Together they cost at most `quote.total`. None when the validators
    /// approve that nothing was delivered: then the client has the total back at once.
    /// @param approvals 65-byte signatures (r, s, v) over the Completion's digest, one after the other, by ascending signer.
    function completeInferenceRequest(
        Quote calldata quote,
        Committee calldata committee,
        uint8 finish,
        Contribution[] calldata contributions,
        bytes calldata approvals
    ) external nonReentrant {
        bool served = contributions.length != 0;
        bytes32 commitment = _close(quote, served ? COMPLETED : REFUNDED);
        uint256 claimableUntil = quote.expiry + CLAIM_TIME;
        if (block.timestamp > claimableUntil) revert Expired(claimableUntil);
        bytes32 completion = MessageHash.completionHash(quote.requestId, commitment, finish, contributions);
        address[] memory signers = _requireApproved(quote, committee, _hashTypedDataV4(completion), approvals);
        if (served) _distribute(quote, completion, _costOf(quote, contributions), contributions, signers);
        else _refund(quote);
    }

    /// @notice Says for the gateway that it cannot serve the request. The total goes back to the client {CLAIM_TIME} later, unless a
    /// certificate pays it out before; or at once with the client's consent, which has nothing then that it would have to pay for.
    /// @param consent Empty, or the client's signature over the {TaskAccess} to cancel its request.
    function markRequestFailed(Quote calldata quote, bytes calldata consent) external nonReentrant {
        if (msg.sender != quote.gateway) revert NotGateway(quote.gateway, msg.sender);
        if (consent.length == 0) return _giveUp(quote);
        _close(quote, REFUNDED);
        bytes32 digest = _hashTypedDataV4(TaskAccess(quote.client, quote.requestId, CANCEL).hash());
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, consent);
        if (failure != ECDSA.RecoverError.NoError || signer != quote.client) revert InvalidConsent(quote.client);
        _refund(quote);
    }

    /// @notice Sends the total back to the client {CLAIM_TIME} after the quote has expired, or its gateway has given it up. Anyone may
    /// call, so a client needs no gateway for it. The client itself need not wait once the gateway has given up.
    function handleExpiredRequest(Quote calldata quote) external nonReentrant {
        bytes32 commitment = _close(quote, REFUNDED);
        if (block.timestamp <= quote.expiry + CLAIM_TIME) {
            bool agreed = msg.sender == quote.client && _givenUpAt[commitment] != 0;
            uint256 refundableAt = _refundableAt(quote, commitment);
            if (!agreed && block.timestamp < refundableAt) revert NotRefundable(refundableAt);
        }
        _refund(quote);
    }

    /// @return givenUpAt 0 while the gateway has not given the request up.
    /// @return refundableAt From when on anyone may send the total back.
    function endOf(Quote calldata quote) external view returns (uint256 givenUpAt, uint256 refundableAt) {
        bytes32 commitment = quote.hash();
        return (_givenUpAt[commitment], _refundableAt(quote, commitment));
    }

    /// @return commitment 0 for a request that was never escrowed, {COMPLETED}, {REFUNDED}, or else the struct hash of the quote
    /// that is in escrow.
    function requestState(address client, bytes32 requestId) external view returns (bytes32 commitment) {
        return _requests[client][requestId];
    }

    /// @notice What validators sign in preprocessing.
    function quoteDigest(Quote calldata quote) external view returns (bytes32) {
        return _hashTypedDataV4(quote.hash());
    }

    /// @notice What validators sign at completion.
    function completionDigest(Completion calldata completion) external view returns (bytes32) {
        return _hashTypedDataV4(completion.hash());
    }

    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    /// @dev Writes the escrow down; whoever calls takes the money in, or else reverts.
    function _initiate(Quote calldata quote) private returns (bytes32 commitment) {
        if (quote.total == 0) revert ZeroAmount();
        if (quote.gateway == address(0)) revert ZeroGateway();
        if (quote.compute == address(0)) revert ZeroCompute();
        uint256 basisPoints = uint256(quote.gatewayBps) + quote.validatorsBps + quote.treasuryBps;
        if (basisPoints > PaymentTree.BASIS_POINTS) revert SplitTooLarge(basisPoints);

        commitment = quote.hash();
        bytes32 state = _requests[quote.client][quote.requestId];
        if (state == commitment) revert AlreadyInitiated(quote.requestId);
        if (state != 0) revert RequestIdUsed(quote.requestId, state);
        // After the look at the state, so that a retry that comes late still learns that it was done.
        uint256 latest = block.timestamp + MAX_ESCROW_TIME;
        if (quote.expiry <= block.timestamp || quote.expiry > latest) revert ExpiryOutOfRange(quote.expiry, latest);

        _requests[quote.client][quote.requestId] = commitment;
        emit RequestInitiated(quote.requestId, quote.client, quote.gateway, quote.total, quote.expiry, commitment);
    }

    /// @dev Ends the escrow of `quote` before any token moves.
    function _close(Quote calldata quote, bytes32 end) private returns (bytes32 commitment) {
        commitment = _requireEscrowed(quote);
        _requests[quote.client][quote.requestId] = end;
    }

    /// @dev Proves that it is this quote that was escrowed, and has not ended.
    function _requireEscrowed(Quote calldata quote) private view returns (bytes32 commitment) {
        commitment = _requests[quote.client][quote.requestId];
        if (uint256(commitment) <= uint256(REFUNDED)) revert NotEscrowed(quote.requestId, commitment);
        bytes32 presented = quote.hash();
        if (commitment != presented) revert QuoteMismatch(commitment, presented);
    }

    /// @dev A certificate pays up to and including {CLAIM_TIME} after the expiry, a refund is possible from the second after it on.
    function _refundableAt(Quote calldata quote, bytes32 commitment) private view returns (uint256) {
        uint256 end = _givenUpAt[commitment];
        return (end == 0 || end > quote.expiry ? quote.expiry : end) + CLAIM_TIME + 1;
    }

    function _giveUp(Quote calldata quote) private {
        bytes32 commitment = _requireEscrowed(quote);
        if (_givenUpAt[commitment] != 0) {
            revert AlreadyGivenUp(quote.requestId, _refundableAt(quote, commitment));
        }
        _givenUpAt[commitment] = block.timestamp;
        emit RequestGivenUp(quote.requestId, quote.client, commitment, _refundableAt(quote, commitment));
    }

    function _requireApproved(
        Quote calldata quote,
        Committee calldata committee,
        bytes32 digest,
        bytes calldata approvals
    ) private view returns (address[] memory signers) {
        bytes32 presented = committee.hash();
        if (presented != quote.committee) revert CommitteeMismatch(quote.committee, presented);
        signers = Approvals.signersOf(digest, approvals);
        registry.requireStaked(signers);
        uint256 members = signers.requireCommittee(committee);
        if (members != signers.length) revert ApprovalOutsideCommittee(signers.length, members);
    }

    function _costOf(Quote calldata quote, Contribution[] calldata contributions) private pure returns (uint128) {
        uint256 cost = 0;
        for (uint256 i = 0; i < contributions.length; ++i) {
            if (contributions[i].compute == address(0)) revert ZeroCompute();
            cost += contributions[i].cost;
        }
        if (cost > quote.total) revert CostAboveTotal(cost, quote.total);
        return uint128(cost);
    }

    function _distribute(
        Quote calldata quote,
        bytes32 completion,
        uint128 cost,
        Contribution[] calldata contributions,
        address[] memory signers
    ) private {
        Payout memory payout = PaymentTree.split(
            cost, quote.gatewayBps, quote.validatorsBps, quote.treasuryBps, signers.length
        );
        emit PaymentDistributed(
            quote.requestId,
            quote.client,
            completion,
            cost,
            quote.total - cost,
            payout.compute,
            payout.gateway,
            payout.validator,
            payout.treasury,
            signers
        );
        _payNodes(contributions, payout.compute, cost);
        _pay(quote.gateway, payout.gateway);
        for (uint256 i = 0; i < signers.length; ++i) {
            _pay(signers[i], payout.validator);
        }
        _pay(treasury, payout.treasury);
        _pay(quote.client, quote.total - cost);
    }

    /// @dev Divides `amount` as the contributions' costs; the last one gets what rounding leaves.
    function _payNodes(Contribution[] calldata contributions, uint128 amount, uint128 cost) private {
        uint256 last = contributions.length - 1;
        uint256 left = amount;
        for (uint256 i = 0; i < last; ++i) {
            // Two uint128 fit a uint256, and no part is larger than the amount. Where nothing costs anything, there is none.
            uint128 part = cost == 0 ? 0 : uint128(uint256(amount) * contributions[i].cost / cost);
            left -= part;
            _pay(contributions[i].compute, part);
        }
        _pay(contributions[last].compute, uint128(left));
    }

    function _refund(Quote calldata quote) private {
        emit RequestRefunded(quote.requestId, quote.client, quote.total);
        _pay(quote.client, quote.total);
    }
}
