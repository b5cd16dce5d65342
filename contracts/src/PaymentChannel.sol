// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Approvals} from "./Approvals.sol";
import {ExactTransfer} from "./ExactTransfer.sol";
import {MessageHash, PROTOCOL_VERSION} from "./MessageHash.sol";
import {ChannelClose, ChannelPayout, ChannelSettlement, Committee, SettledCompletion, Voucher} from "./Messages.sol";
import {TokenVault} from "./TokenVault.sol";
import {ValidatorRegistry} from "./ValidatorRegistry.sol";

/// What tells one channel from another. A client that wants a second channel with a gateway, or another after one was closed, takes
/// another salt.
struct ChannelTerms {
    address client;
    address gateway;
    bytes32 salt;
}

/// What a settlement takes out of one channel, with the voucher that allows it: `requestId` to `cumulative` are the voucher's
/// fields, where the voucher has the hash of the `committee`, and `signature` is the client's over its digest.
struct Charge {
    ChannelTerms terms;
    uint128 settledBefore;
    uint128 settledAfter;
    uint64 base;
    uint128 over;
    bytes32 requestId;
    bytes32 quote;
    Committee committee;
    uint64 number;
    uint128 amount;
    uint128 cumulative;
    bytes signature;
}

/// @title Holds a client's deposit for many requests, and pays them out in batches.
/// @notice The client signs a voucher per request, each for all it has promised so far. Now and then enough validators approve a
/// batch of served requests, and one transaction pays all of them, whatever their number. What the channel was charged only grows,
/// never above the deposit nor above the highest voucher. The rest goes back to the client: at once when the gateway
/// agrees, and in any case after the expiry.
contract PaymentChannel is EIP712, TokenVault {
    using Approvals for address[];
    using ExactTransfer for IERC20;
    using MessageHash for ChannelClose;
    using MessageHash for ChannelPayout;
    using MessageHash for ChannelSettlement;
    using MessageHash for Committee;
    using MessageHash for SettledCompletion;
    using MessageHash for Voucher;

    /// @dev Two storage slots.
    struct Channel {
        uint128 deposit;
        uint128 settled;
        uint40 expiry;
        uint8 state;
        /// Which of the vouchers' numbers are over, as {ChannelCharge} says.
        uint64 base;
        uint128 over;
    }

    /// @notice The longest a client's money can be bound without its extending the time.
    uint256 public constant MAX_CHANNEL_TIME = 180 days;
    /// @notice The most channels that one settlement charges.
    uint256 public constant MAX_CHARGES = 64;
    /// @notice The most accounts that one settlement pays.
    uint256 public constant MAX_PAYOUTS = 512;

    uint8 private constant NONE = 0;
    uint8 private constant OPEN = 1;
    uint8 private constant CLOSED = 2;

    ValidatorRegistry public immutable registry;

    /// @dev Closed channels stay, so that no voucher ever counts in a second channel.
    mapping(bytes32 id => Channel) private _channels;

    event ChannelOpened(
        bytes32 indexed channel,
        address indexed client,
        address indexed gateway,
        uint128 deposit,
        uint64 expiry,
        bytes32 salt
    );
    event ChannelToppedUp(bytes32 indexed channel, uint128 amount, uint128 deposit, uint64 expiry);
    event ChannelCharged(
        bytes32 indexed channel,
        address indexed client,
        address indexed gateway,
        uint128 settledBefore,
        uint128 settledAfter,
        bytes32 root
    );
    event BatchSettled(bytes32 indexed root, uint64 count, uint128 total, address[] validators);
    event ChannelClosed(
        bytes32 indexed channel,
        address indexed client,
        address indexed gateway,
        uint128 settled,
        uint128 refunded,
        bool expired
    );

    error ZeroGateway();
    error ZeroAmount();
    error WrongClient(address client, address caller);
    error ExpiryOutOfRange(uint64 expiry, uint256 latest);
    error ExpiryShortened(uint64 expiry, uint64 stated);
    error AlreadyOpen(bytes32 channel, uint128 deposit, uint128 settled, uint64 expiry);
    error NotOpen(bytes32 channel);
    error NotGateway(bytes32 channel, address gateway, address caller);
    error Closed(bytes32 channel);
    error Expired(bytes32 channel, uint64 expiry);
    error NotExpired(bytes32 channel, uint64 expiry);
    /// @notice The channel has another deposit than the client's authorisation starts from; it may be that it was presented before.
    error DepositMismatch(uint128 deposit, uint128 stated);
    /// @notice The channel has been charged more or less than this starts from; it may be that it was presented before.
    error SettlementMismatch(bytes32 channel, uint128 settled, uint128 stated);
    error NothingCharged(bytes32 channel, uint128 settledBefore, uint128 settledAfter);
    error OverAuthorised(bytes32 channel, uint128 settledAfter, uint128 cumulative);
    error OverDeposit(bytes32 channel, uint128 settledAfter, uint128 deposit);
    error InvalidVoucher(bytes32 channel);
    /// @notice A number that is over would be open again, and its request could be settled twice.
    error NumbersReopened(bytes32 channel, uint64 base, uint128 over);
    error InvalidClose(bytes32 channel);
    error EmptyBatch();
    error TooManyCharges(uint256 have, uint256 most);
    error TooManyPayouts(uint256 have, uint256 most);
    error UnsortedPayout(address account);
    error PayoutMismatch(uint256 charged, uint256 paid);

    constructor(IERC20 token_, ValidatorRegistry registry_) EIP712("NCN", PROTOCOL_VERSION) TokenVault(token_) {
        registry = registry_;
    }

    /// @notice Opens a channel with `amount` of the caller's tokens (approved before).
    function open(ChannelTerms calldata terms, uint128 amount, uint64 expiry) external nonReentrant {
        if (msg.sender != terms.client) revert WrongClient(terms.client, msg.sender);
        bytes32 id = channelId(terms);
        Channel memory channel_ = _channels[id];
        if (channel_.state == OPEN) revert AlreadyOpen(id, channel_.deposit, channel_.settled, channel_.expiry);
        if (channel_.state == CLOSED) revert Closed(id);
        _open(id, terms, amount, expiry);
        token.pull(msg.sender, amount);
    }

    /// @notice Adds `amount` of the caller's tokens (approved before) to its channel, and puts the expiry off. Either may stay as it
    /// is: an `amount` of 0, or the present expiry.
    function topUp(ChannelTerms calldata terms, uint128 amount, uint64 expiry) external nonReentrant {
        if (msg.sender != terms.client) revert WrongClient(terms.client, msg.sender);
        bytes32 id = channelId(terms);
        if (amount == 0 && expiry == _channels[id].expiry) revert ZeroAmount();
        _topUp(id, amount, expiry);
        if (amount != 0) token.pull(msg.sender, amount);
    }

    /// @notice Opens the client's channel or adds to it, on the client's signature. Anyone may call, so that a client needs no gas.
    /// @param depositBefore 0 to open the channel, or else what it has as deposit, so that no signature adds to a channel twice.
    /// @param v The signature is the client's ReceiveWithAuthorization (ERC-3009) under the token's domain: from the client to this
    /// contract, `amount`, valid after 0 and before `expiry`, and its nonce is {fundingNonce}.
    function fundWithAuthorization(
        ChannelTerms calldata terms,
        uint128 depositBefore,
        uint128 amount,
        uint64 expiry,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external nonReentrant {
        bytes32 id = channelId(terms);
        (uint8 state, uint128 deposit) = (_channels[id].state, _channels[id].deposit);
        if (state == CLOSED) revert Closed(id);
        if (deposit != depositBefore) revert DepositMismatch(deposit, depositBefore);
        if (amount == 0) revert ZeroAmount();
        if (state == NONE) _open(id, terms, amount, expiry);
        else _topUp(id, amount, expiry);
        bytes32 nonce = _fundingNonce(id, depositBefore, amount, expiry);
        token.pull(terms.client, amount, ExactTransfer.Authorization(expiry, nonce, v, r, s));
    }

    /// @notice Charges channels for a batch of served requests and pays everyone who had a part in them, by the client's voucher per
    /// channel and the approval of all of it together by the committee of each of these vouchers. Only the channels' gateway may call: others that have seen a batch and
    /// its approvals would charge what the gateway has given up and settles in another way.
    /// @param root Merkle root over the batch's `count` {SettledCompletion}s.
    /// @param payouts By ascending account; together exactly what is charged.
    /// @param approvals 65-byte signatures (r, s, v) over the ChannelSettlement's digest, one after the other, by ascending signer.
    function settle(
        bytes32 root,
        uint64 count,
        Charge[] calldata charges,
        ChannelPayout[] calldata payouts,
        bytes calldata approvals
    ) external nonReentrant {
        if (root == 0 || count == 0 || charges.length == 0) revert EmptyBatch();
        if (charges.length > MAX_CHARGES) revert TooManyCharges(charges.length, MAX_CHARGES);
        if (payouts.length > MAX_PAYOUTS) revert TooManyPayouts(payouts.length, MAX_PAYOUTS);
        uint128 total = 0;
        bytes32[] memory hashes = new bytes32[](charges.length);
        for (uint256 i = 0; i < charges.length; ++i) {
            Charge calldata charge = charges[i];
            hashes[i] = _charge(charge, root);
            total += charge.settledAfter - charge.settledBefore;
        }
        bytes32 settlement = keccak256(
            abi.encode(
                MessageHash.CHANNEL_SETTLEMENT,
                root,
                count,
                keccak256(abi.encodePacked(hashes)),
                _hashPayouts(payouts, total)
            )
        );
        // Who has nothing at stake does not count, and does not keep the others from counting.
        address[] memory signers = registry.staked(Approvals.signersOf(_hashTypedDataV4(settlement), approvals));
        for (uint256 i = 0; i < charges.length; ++i) {
            signers.requireCommittee(charges[i].committee);
        }
        emit BatchSettled(root, count, total, signers);
        for (uint256 i = 0; i < payouts.length; ++i) {
            _pay(payouts[i].account, payouts[i].amount);
        }
    }

    /// @notice Sends the rest of the deposit back to the client before the expiry, on the gateway's word that nothing is to come.
    /// @param settled What the channel has been charged, so that the gateway's word is of no use before its last settlement.
    /// @param gatewaySignature The gateway's over the ChannelClose's digest; not looked at when it is the gateway that calls.
    function close(ChannelTerms calldata terms, uint128 settled, bytes calldata gatewaySignature)
        external
        nonReentrant
    {
        bytes32 id = channelId(terms);
        Channel memory channel_ = _opened(id);
        if (channel_.settled != settled) revert SettlementMismatch(id, channel_.settled, settled);
        if (msg.sender != terms.gateway) {
            bytes32 digest = _hashTypedDataV4(ChannelClose(id, settled).hash());
            if (!_signed(terms.gateway, digest, gatewaySignature)) revert InvalidClose(id);
        }
        _close(id, terms, channel_, false);
    }

    /// @notice Sends the rest of the deposit back to the client once the channel has expired. Anyone may call, so a client needs no
    /// gateway for it.
    function refundExpired(ChannelTerms calldata terms) external nonReentrant {
        bytes32 id = channelId(terms);
        Channel memory channel_ = _opened(id);
        if (block.timestamp <= channel_.expiry) revert NotExpired(id, channel_.expiry);
        _close(id, terms, channel_, true);
    }

    /// @return deposit All that was ever paid in.
    /// @return settled What was charged of it; the rest of a closed channel went back to the client.
    /// @return expiry The last second in which it can be charged.
    /// @return state 0 for a channel that was never opened, 1 for an open one, 2 for a closed one.
    /// @return base Below this number all vouchers' requests were settled or are given up.
    /// @return over So is that of `base + i` where bit i is set.
    function channel(bytes32 id)
        external
        view
        returns (uint128 deposit, uint128 settled, uint64 expiry, uint8 state, uint64 base, uint128 over)
    {
        Channel storage channel_ = _channels[id];
        return (channel_.deposit, channel_.settled, channel_.expiry, channel_.state, channel_.base, channel_.over);
    }

    /// @notice Whether `leaf` is one of the requests under a batch's `root`. That the batch was settled is what {BatchSettled} says.
    /// @dev Pairs are hashed in ascending order. A leaf is the hash of 160 bytes and an inner node that of 64, so neither passes for
    /// the other.
    function isSettled(bytes32 root, SettledCompletion calldata leaf, bytes32[] calldata proof)
        external
        pure
        returns (bool)
    {
        return MerkleProof.verifyCalldata(proof, root, leaf.hash());
    }

    /// @notice What a client signs for each request.
    function voucherDigest(Voucher calldata voucher) external view returns (bytes32) {
        return _hashTypedDataV4(voucher.hash());
    }

    /// @notice What validators sign for a batch.
    function settlementDigest(ChannelSettlement calldata settlement) external view returns (bytes32) {
        return _hashTypedDataV4(settlement.hash());
    }

    /// @notice What a gateway signs to give the rest of a deposit back.
    function closeDigest(ChannelClose calldata close_) external view returns (bytes32) {
        return _hashTypedDataV4(close_.hash());
    }

    /// @notice The nonce of the authorisation that {fundWithAuthorization} presents to the token.
    function fundingNonce(ChannelTerms calldata terms, uint128 depositBefore, uint128 amount, uint64 expiry)
        external
        pure
        returns (bytes32)
    {
        return _fundingNonce(channelId(terms), depositBefore, amount, expiry);
    }

    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    function channelId(ChannelTerms calldata terms) public pure returns (bytes32) {
        return keccak256(abi.encode(terms));
    }

    /// @dev Writes the channel down; whoever calls takes the money in, or else reverts. So does {_topUp}.
    function _open(bytes32 id, ChannelTerms calldata terms, uint128 amount, uint64 expiry) private {
        if (amount == 0) revert ZeroAmount();
        if (terms.gateway == address(0)) revert ZeroGateway();
        _checkExpiry(expiry);
        // The check has bounded it.
        _channels[id] = Channel({deposit: amount, settled: 0, expiry: uint40(expiry), state: OPEN, base: 0, over: 0});
        emit ChannelOpened(id, terms.client, terms.gateway, amount, expiry, terms.salt);
    }

    function _topUp(bytes32 id, uint128 amount, uint64 expiry) private {
        Channel memory channel_ = _opened(id);
        if (block.timestamp > channel_.expiry) revert Expired(id, channel_.expiry);
        if (expiry < channel_.expiry) revert ExpiryShortened(channel_.expiry, expiry);
        _checkExpiry(expiry);
        uint128 deposit = channel_.deposit + amount;
        _channels[id].deposit = deposit;
        _channels[id].expiry = uint40(expiry);
        emit ChannelToppedUp(id, amount, deposit, expiry);
    }

    /// @dev Returns the hash of the {ChannelCharge}. What is written here makes a second charge of the same channel in this batch
    /// start from the wrong sum.
    function _charge(Charge calldata charge, bytes32 root) private returns (bytes32) {
        bytes32 id = channelId(charge.terms);
        if (msg.sender != charge.terms.gateway) revert NotGateway(id, charge.terms.gateway, msg.sender);
        Channel memory channel_ = _opened(id);
        if (block.timestamp > channel_.expiry) revert Expired(id, channel_.expiry);
        (uint128 settledBefore, uint128 settledAfter) = (charge.settledBefore, charge.settledAfter);
        if (channel_.settled != settledBefore) revert SettlementMismatch(id, channel_.settled, settledBefore);
        if (settledAfter <= settledBefore) revert NothingCharged(id, settledBefore, settledAfter);
        if (settledAfter > charge.cumulative) revert OverAuthorised(id, settledAfter, charge.cumulative);
        if (settledAfter > channel_.deposit) revert OverDeposit(id, settledAfter, channel_.deposit);
        bytes32 voucher = keccak256(
            abi.encode(
                MessageHash.VOUCHER,
                id,
                charge.requestId,
                charge.quote,
                charge.committee.hash(),
                charge.number,
                charge.amount,
                charge.cumulative
            )
        );
        if (!_signed(charge.terms.client, _hashTypedDataV4(voucher), charge.signature)) revert InvalidVoucher(id);
        if (!_covers(charge.base, charge.over, channel_)) revert NumbersReopened(id, channel_.base, channel_.over);
        channel_.settled = settledAfter;
        (channel_.base, channel_.over) = (charge.base, charge.over);
        _channels[id] = channel_;
        emit ChannelCharged(id, charge.terms.client, charge.terms.gateway, settledBefore, settledAfter, root);
        return
            keccak256(abi.encode(MessageHash.CHANNEL_CHARGE, id, settledBefore, settledAfter, charge.base, charge.over));
    }

    /// @dev Whether every number of the channel that is over still is.
    function _covers(uint64 base, uint128 over, Channel memory channel_) private pure returns (bool) {
        if (base < channel_.base) return false;
        uint64 shift = base - channel_.base;
        return shift >= 128 || (channel_.over >> shift) & ~over == 0;
    }

    function _close(bytes32 id, ChannelTerms calldata terms, Channel memory channel_, bool expired) private {
        _channels[id].state = CLOSED;
        uint128 rest = channel_.deposit - channel_.settled;
        emit ChannelClosed(id, terms.client, terms.gateway, channel_.settled, rest, expired);
        _pay(terms.client, rest);
    }

    function _opened(bytes32 id) private view returns (Channel memory channel_) {
        channel_ = _channels[id];
        if (channel_.state == NONE) revert NotOpen(id);
        if (channel_.state == CLOSED) revert Closed(id);
    }

    function _checkExpiry(uint64 expiry) private view {
        uint256 latest = block.timestamp + MAX_CHANNEL_TIME;
        if (expiry <= block.timestamp || expiry > latest) revert ExpiryOutOfRange(expiry, latest);
    }

    function _hashPayouts(ChannelPayout[] calldata payouts, uint128 total) private pure returns (bytes32) {
        bytes32[] memory hashes = new bytes32[](payouts.length);
        uint256 sum = 0;
        address previous = address(0);
        for (uint256 i = 0; i < payouts.length; ++i) {
            ChannelPayout calldata payout = payouts[i];
            if (payout.account <= previous) revert UnsortedPayout(payout.account);
            if (payout.amount == 0) revert ZeroAmount();
            previous = payout.account;
            sum += payout.amount;
            hashes[i] = payout.hash();
        }
        if (sum != total) revert PayoutMismatch(total, sum);
        return keccak256(abi.encodePacked(hashes));
    }

    function _signed(address account, bytes32 digest, bytes calldata signature) private pure returns (bool) {
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        return failure == ECDSA.RecoverError.NoError && signer == account;
    }

    function _fundingNonce(bytes32 id, uint128 depositBefore, uint128 amount, uint64 expiry)
        private
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(id, depositBefore, amount, expiry));
    }
}
