// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Approvals} from "./Approvals.sol";
import {ExactTransfer} from "./ExactTransfer.sol";
import {MessageHash} from "./MessageHash.sol";
import {Completion, Quote} from "./Messages.sol";
import {PaymentTree, Payout} from "./PaymentTree.sol";
import {TokenVault} from "./TokenVault.sol";
import {ValidatorRegistry} from "./ValidatorRegistry.sol";

/// @title Holds a client's payment for one request until the validators release it or it goes back.
/// @notice An escrow ends in one of two ways, once. Enough validators approve the completion by the quote's expiry, and the
/// total is paid out. Or the gateway gives up, or the expiry passes, and the client has the total back.
/// Nobody can keep the money here: after the expiry anyone may send it home.
contract InferencePayment is EIP712, TokenVault {
    using Approvals for ValidatorRegistry;
    using ExactTransfer for IERC20;
    using MessageHash for Completion;
    using MessageHash for Quote;

    /// @notice The longest a client's money can be bound.
    uint256 public constant MAX_ESCROW_TIME = 7 days;
    /// @notice What `requestState` says of a request that was paid out.
    bytes32 public constant COMPLETED = bytes32(uint256(1));
    /// @notice What `requestState` says of a request whose total went back to the client.
    bytes32 public constant REFUNDED = bytes32(uint256(2));

    ValidatorRegistry public immutable registry;
    address public immutable treasury;

    /// @dev The whole escrow is one slot: the rest of the quote comes back as calldata and is checked against its hash. Keyed by
    /// client first, so that nobody can use up another client's request id. The end states stay, so that an id is never used twice.
    mapping(address client => mapping(bytes32 requestId => bytes32 commitment)) private _requests;

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
        address indexed compute,
        uint128 computeAmount,
        uint128 gatewayAmount,
        uint128 validatorShare,
        uint128 treasuryAmount,
        address[] validators
    );
    event RequestRefunded(bytes32 indexed requestId, address indexed client, uint128 total, bool expired);

    error ZeroTreasury();
    error ZeroGateway();
    error ZeroCompute();
    error ZeroAmount();
    error WrongClient(address client, address caller);
    error NotGateway(address gateway, address caller);
    error ExpiryOutOfRange(uint64 expiry, uint256 latest);
    error SplitTooLarge(uint256 basisPoints);
    /// @notice This very quote is in escrow already: a retry has nothing left to do.
    error AlreadyInitiated(bytes32 requestId);
    /// @notice The client used this request id for another quote, or the request has ended.
    error RequestIdUsed(bytes32 requestId, bytes32 commitment);
    error NotEscrowed(bytes32 requestId, bytes32 commitment);
    error QuoteMismatch(bytes32 escrowed, bytes32 presented);
    error Expired(uint64 expiry);
    error NotExpired(uint64 expiry);

    constructor(IERC20 token_, ValidatorRegistry registry_, address treasury_) EIP712("NCN", "1") TokenVault(token_) {
        if (treasury_ == address(0)) revert ZeroTreasury();
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

    /// @notice Pays the escrow out, by the validators' approval of this result by this compute node under this quote. Only the quote's
    /// gateway may call: whoever else has collected approvals (a validator sees all that it takes to ask the others) would decide which of
    /// them are paid, and leave the gateway without a certificate for the client's receipt.
    /// @param result Struct hash of the compute node's InferenceResult.
    /// @param compute The node that is paid: the quote's, or the one that took the task over.
    /// @param approvals 65-byte signatures (r, s, v) over the Completion's digest, one after the other, by ascending signer.
    function completeInferenceRequest(Quote calldata quote, bytes32 result, address compute, bytes calldata approvals)
        external
        nonReentrant
    {
        if (msg.sender != quote.gateway) revert NotGateway(quote.gateway, msg.sender);
        bytes32 commitment = _close(quote, COMPLETED);
        if (block.timestamp > quote.expiry) revert Expired(quote.expiry);
        if (compute == address(0)) revert ZeroCompute();
        Completion memory completion =
            Completion({requestId: quote.requestId, quote: commitment, result: result, compute: compute});
        address[] memory signers = registry.approvers(_hashTypedDataV4(completion.hash()), approvals);
        _distribute(quote, compute, signers);
    }

    /// @notice Sends the total back to the client once the quote has expired. Anyone may call, so a client needs no gateway for it.
    function handleExpiredRequest(Quote calldata quote) external nonReentrant {
        _close(quote, REFUNDED);
        if (block.timestamp <= quote.expiry) revert NotExpired(quote.expiry);
        _refund(quote, true);
    }

    /// @notice Sends the total back to the client before the expiry, on the gateway's word that it cannot serve the request.
    function markRequestFailed(Quote calldata quote) external nonReentrant {
        if (msg.sender != quote.gateway) revert NotGateway(quote.gateway, msg.sender);
        _close(quote, REFUNDED);
        _refund(quote, false);
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

    /// @dev Ends the escrow of `quote` before any token moves, and proves that it is this quote that was escrowed.
    function _close(Quote calldata quote, bytes32 end) private returns (bytes32 commitment) {
        commitment = _requests[quote.client][quote.requestId];
        if (uint256(commitment) <= uint256(REFUNDED)) revert NotEscrowed(quote.requestId, commitment);
        bytes32 presented = quote.hash();
        if (commitment != presented) revert QuoteMismatch(commitment, presented);
        _requests[quote.client][quote.requestId] = end;
    }

    function _distribute(Quote calldata quote, address compute, address[] memory signers) private {
        Payout memory payout =
            PaymentTree.split(quote.total, quote.gatewayBps, quote.validatorsBps, quote.treasuryBps, signers.length);
        emit PaymentDistributed(
            quote.requestId,
            quote.client,
            compute,
            payout.compute,
            payout.gateway,
            payout.validator,
            payout.treasury,
            signers
        );
        _pay(compute, payout.compute);
        _pay(quote.gateway, payout.gateway);
        for (uint256 i = 0; i < signers.length; ++i) {
            _pay(signers[i], payout.validator);
        }
        _pay(treasury, payout.treasury);
    }

    function _refund(Quote calldata quote, bool expired) private {
        emit RequestRefunded(quote.requestId, quote.client, quote.total, expired);
        _pay(quote.client, quote.total);
    }
}
