// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Approvals} from "../src/Approvals.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {MessageHash} from "../src/MessageHash.sol";
import {
    ChannelCharge,
    ChannelClose,
    ChannelPayout,
    ChannelSettlement,
    Committee,
    Completion,
    Contribution,
    Quote,
    SettledCompletion,
    Voucher
} from "../src/Messages.sol";
import {NCNToken} from "../src/NCNToken.sol";
import {ChannelTerms, Charge, PaymentChannel} from "../src/PaymentChannel.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Deploy} from "./Deploy.sol";
import {Authorisation, Signing} from "./Signing.sol";

/// A settlement as it goes into a transaction, without the approvals.
struct Batch {
    bytes32 root;
    uint64 count;
    Charge[] charges;
    ChannelPayout[] payouts;
}

/// Names and places of a network, and what its members do.
abstract contract Network is Signing {
    uint256 internal constant NOW = 1_800_000_000;
    uint256 internal constant STARTED = NOW - 30 days;
    uint256 internal constant CHAIN = 42_161;
    uint128 internal constant SUPPLY = 1_000_000 ether;
    uint128 internal constant MINIMUM_STAKE = 100 ether;
    uint64 internal constant UNSTAKE_DELAY = 10 days;
    uint64 internal constant CHANNEL_EXPIRY = uint64(NOW + 30 days);
    bytes32 internal constant RESULT = keccak256("result");
    /// Why an output ended: the model was done.
    uint8 internal constant STOP = 1;

    uint256 internal clientKey = keyOf("client");
    uint256 internal gatewayKey = keyOf("gateway");
    address internal owner = accountOf("owner");
    address internal client = accountOf("client");
    address internal gateway = accountOf("gateway");
    address internal compute = accountOf("compute");
    address internal treasury = accountOf("treasury");
    /// Sorted by the validators' addresses, as approvals have to be.
    uint256[] internal keys;

    NCNToken internal token;
    ValidatorRegistry internal registry;
    InferencePayment internal payment;
    PaymentChannel internal channels;

    function addValidators(string memory prefix, uint256 count) internal {
        for (uint256 i = 0; i < count; ++i) {
            uint256 key = keyOf(string.concat(prefix, string(abi.encodePacked(bytes1(uint8(0x41 + i))))));
            insert(key);
            give(vm.addr(key), MINIMUM_STAKE, address(registry));
            vm.prank(vm.addr(key));
            registry.registerValidator(MINIMUM_STAKE);
        }
    }

    /// Who judges what is quoted now, in the list's order.
    function active() internal view returns (address[] memory) {
        (uint64 time,,) = registry.history();
        return activeAt(time);
    }

    function activeAt(uint256 time) internal view returns (address[] memory accounts) {
        (, ValidatorRegistry.Member[] memory members,) = registry.history();
        accounts = new address[](members.length);
        uint256 count = 0;
        for (uint256 i = 0; i < members.length; ++i) {
            if (members[i].activeFrom <= time && time < members[i].activeUntil) accounts[count++] = members[i].account;
        }
        assembly ("memory-safe") {
            mstore(accounts, count)
        }
    }

    function give(address account, uint256 amount, address spender) internal {
        vm.prank(owner);
        token.transfer(account, amount);
        vm.prank(account);
        token.approve(spender, type(uint256).max);
    }

    function insert(uint256 key) internal {
        keys.push(key);
        for (uint256 i = keys.length - 1; i > 0 && vm.addr(keys[i - 1]) > vm.addr(key); --i) {
            (keys[i - 1], keys[i]) = (keys[i], keys[i - 1]);
        }
    }

    function newQuote() internal view returns (Quote memory) {
        return Quote({
            requestId: keccak256("request"),
            client: client,
            gateway: gateway,
            compute: compute,
            modelDigest: keccak256("model"),
            basePrice: 1 ether,
            inputPrice: 0.1 ether,
            outputPrice: 0.4 ether,
            inputUnit: 2,
            outputUnit: 2,
            maxInputUnits: 10,
            maxOutputUnits: 20,
            total: 10 ether,
            gatewayBps: 1000,
            validatorsBps: 500,
            treasuryBps: 500,
            expiry: uint64(block.timestamp + 1 hours),
            trustRoot: keccak256("trust root"),
            epoch: uint64(STARTED),
            salt: keccak256("salt"),
            committee: hashOf(committee)
        });
    }

    function initiate(Quote memory quote) internal {
        vm.prank(quote.client);
        payment.initiateInferenceRequest(quote);
    }

    function newEscrow() internal returns (Quote memory quote) {
        quote = newQuote();
        initiate(quote);
    }

    /// One node gives everything, for this much.
    function contributionOf(uint128 cost) internal view returns (Contribution[] memory contributions) {
        contributions = new Contribution[](1);
        contributions[0] = Contribution({compute: compute, result: RESULT, cost: cost});
    }

    function contributionOf(Quote memory quote) internal view returns (Contribution[] memory) {
        return contributionOf(quote.total);
    }

    /// The escrowed quote's hash, read from the contract that holds it. It costs all that it can.
    function completionOf(Quote memory quote) internal view returns (Completion memory) {
        return completionOf(quote, contributionOf(quote));
    }

    function completionOf(Quote memory quote, Contribution[] memory contributions)
        internal
        view
        returns (Completion memory)
    {
        bytes32 commitment = payment.requestState(quote.client, quote.requestId);
        return Completion(quote.requestId, commitment, STOP, contributions);
    }

    function digestOf(Quote memory quote) internal view returns (bytes32) {
        return payment.completionDigest(completionOf(quote));
    }

    function complete(Quote memory quote, bytes memory approvals) internal {
        vm.prank(quote.gateway);
        payment.completeInferenceRequest(quote, committee, STOP, contributionOf(quote), approvals);
    }

    /// The client's word that it has nothing to pay for.
    function consentOf(Quote memory quote) internal view returns (bytes memory) {
        return consentOf(quote, clientKey, 2);
    }

    function consentOf(Quote memory quote, uint256 key, uint8 purpose) internal view returns (bytes memory) {
        return consent(address(payment), quote, key, purpose);
    }

    /// The gateway gives up, and the client has its total back at once.
    function giveUp(Quote memory quote) internal {
        vm.prank(quote.gateway);
        payment.markRequestFailed(quote, consentOf(quote));
    }

    /// The first second in which anyone sends an expired total home.
    function refundableAt(Quote memory quote) internal view returns (uint256) {
        return quote.expiry + payment.CLAIM_TIME() + 1;
    }

    function first(uint256 count) internal view returns (uint256[] memory some) {
        some = new uint256[](count);
        for (uint256 i = 0; i < count; ++i) {
            some[i] = keys[i];
        }
    }

    function approve(bytes32 digest, uint256[] memory signers) internal pure returns (bytes memory approvals) {
        for (uint256 i = 0; i < signers.length; ++i) {
            approvals = bytes.concat(approvals, approve(digest, signers[i]));
        }
    }

    /// What the contract has to say to signatures that recover to strangers: the first that does not ascend, or else the first.
    function refusal(bytes32 expected, bytes memory approvals) internal pure returns (bytes memory) {
        address lowest;
        address previous;
        for (uint256 i = 0; i < approvals.length / 65; ++i) {
            bytes32 r;
            bytes32 s;
            assembly ("memory-safe") {
                r := mload(add(add(approvals, 32), mul(i, 65)))
                s := mload(add(add(approvals, 64), mul(i, 65)))
            }
            address signer = ecrecover(expected, uint8(approvals[i * 65 + 64]), r, s);
            if (signer <= previous) {
                return abi.encodeWithSelector(Approvals.UnsortedApproval.selector, signer);
            }
            if (i == 0) lowest = signer;
            previous = signer;
        }
        return abi.encodeWithSelector(ValidatorRegistry.NoStake.selector, lowest);
    }

    // Token authorisations

    function authorise(Quote memory quote) internal view returns (Authorisation memory) {
        return authorise(clientKey, token, address(payment), quote.total, quote.expiry, hashOf(quote));
    }

    function relay(Quote memory quote, Authorisation memory a) internal {
        payment.initiateWithAuthorization(quote, a.v, a.r, a.s);
    }

    // Channels

    function newTerms() internal view returns (ChannelTerms memory) {
        return ChannelTerms({client: client, gateway: gateway, salt: keccak256("salt")});
    }

    function idOf(ChannelTerms memory terms) internal pure returns (bytes32) {
        return keccak256(abi.encode(terms.client, terms.gateway, terms.salt));
    }

    function open(ChannelTerms memory terms, uint128 amount) internal {
        vm.prank(terms.client);
        channels.open(terms, amount, CHANNEL_EXPIRY);
    }

    /// A hundred tokens for thirty days.
    function newChannel() internal returns (ChannelTerms memory terms) {
        terms = newTerms();
        open(terms, 100 ether);
    }

    function nonceOf(ChannelTerms memory terms, uint128 depositBefore, uint128 amount, uint64 expiry)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(idOf(terms), depositBefore, amount, expiry));
    }

    function authorise(ChannelTerms memory terms, uint128 depositBefore, uint128 amount, uint64 expiry)
        internal
        view
        returns (Authorisation memory)
    {
        bytes32 nonce = nonceOf(terms, depositBefore, amount, expiry);
        return authorise(clientKey, channels.token(), address(channels), amount, expiry, nonce);
    }

    function fund(
        ChannelTerms memory terms,
        uint128 depositBefore,
        uint128 amount,
        uint64 expiry,
        Authorisation memory a
    ) internal {
        channels.fundWithAuthorization(terms, depositBefore, amount, expiry, a.v, a.r, a.s);
    }

    function newVoucher(ChannelTerms memory terms, uint128 cumulative) internal view returns (Voucher memory) {
        return Voucher({
            channel: idOf(terms),
            requestId: keccak256("request"),
            quote: keccak256("quote"),
            committee: hashOf(committee),
            number: 7,
            amount: 10 ether,
            cumulative: cumulative
        });
    }

    function digestOf(Voucher memory voucher) internal view returns (bytes32) {
        return typedDigest(address(channels), keccak256(abi.encode(MessageHash.VOUCHER, voucher)));
    }

    function digestOf(ChannelClose memory close) internal view returns (bytes32) {
        return typedDigest(address(channels), keccak256(abi.encode(MessageHash.CHANNEL_CLOSE, close)));
    }

    /// A charge on the client's voucher for all of it.
    function newCharge(ChannelTerms memory terms, uint128 settledBefore, uint128 settledAfter)
        internal
        view
        returns (Charge memory)
    {
        return newCharge(terms, settledBefore, settledAfter, newVoucher(terms, settledAfter), clientKey);
    }

    function newCharge(
        ChannelTerms memory terms,
        uint128 settledBefore,
        uint128 settledAfter,
        Voucher memory voucher,
        uint256 key
    ) internal view returns (Charge memory) {
        return Charge({
            terms: terms,
            settledBefore: settledBefore,
            settledAfter: settledAfter,
            base: 0,
            over: 0,
            requestId: voucher.requestId,
            quote: voucher.quote,
            committee: committee,
            number: voucher.number,
            amount: voucher.amount,
            cumulative: voucher.cumulative,
            signature: approve(digestOf(voucher), key)
        });
    }

    /// One channel is charged; compute gets nine tenths and the gateway the rest, if there is one.
    function newBatch(Charge memory charge) internal view returns (Batch memory batch) {
        batch.root = keccak256("root");
        batch.count = 7;
        batch.charges = new Charge[](1);
        batch.charges[0] = charge;
        uint128 total = charge.settledAfter > charge.settledBefore ? charge.settledAfter - charge.settledBefore : 1;
        batch.payouts = new ChannelPayout[](total < 10 ? 1 : 2);
        batch.payouts[0] = ChannelPayout(compute, total - total / 10);
        if (total >= 10) batch.payouts[1] = ChannelPayout(gateway, total / 10);
        sort(batch.payouts);
    }

    function newBatch(ChannelTerms memory terms, uint128 settledBefore, uint128 settledAfter)
        internal
        view
        returns (Batch memory)
    {
        return newBatch(newCharge(terms, settledBefore, settledAfter));
    }

    function sort(ChannelPayout[] memory payouts) internal pure {
        for (uint256 i = 1; i < payouts.length; ++i) {
            for (uint256 j = i; j > 0 && payouts[j - 1].account > payouts[j].account; --j) {
                (payouts[j - 1], payouts[j]) = (payouts[j], payouts[j - 1]);
            }
        }
    }

    function settlementOf(Batch memory batch) internal pure returns (ChannelSettlement memory settlement) {
        settlement.root = batch.root;
        settlement.count = batch.count;
        settlement.payouts = batch.payouts;
        settlement.charges = new ChannelCharge[](batch.charges.length);
        for (uint256 i = 0; i < batch.charges.length; ++i) {
            Charge memory charge = batch.charges[i];
            settlement.charges[i] =
                ChannelCharge(idOf(charge.terms), charge.settledBefore, charge.settledAfter, charge.base, charge.over);
        }
    }

    function digestOf(Batch memory batch) internal view returns (bytes32) {
        return channels.settlementDigest(settlementOf(batch));
    }

    function settle(Batch memory batch, bytes memory approvals) internal {
        if (batch.charges.length > 0) vm.prank(batch.charges[0].terms.gateway);
        channels.settle(batch.root, batch.count, batch.charges, batch.payouts, approvals);
    }

    /// As three validators approve it.
    function settle(Batch memory batch) internal {
        settle(batch, approve(digestOf(batch), first(3)));
    }

    function settledOf(ChannelTerms memory terms) internal view returns (uint128 settled) {
        (, settled,,,,) = channels.channel(idOf(terms));
    }

    // Merkle trees

    function hashOf(SettledCompletion memory leaf) internal pure returns (bytes32) {
        return keccak256(abi.encode(MessageHash.SETTLED_COMPLETION, leaf));
    }

    /// The level above: pairs are hashed in ascending order, and what is left over goes up as it is.
    function levelAbove(bytes32[] memory nodes) internal pure returns (bytes32[] memory above) {
        above = new bytes32[]((nodes.length + 1) / 2);
        for (uint256 i = 0; i < above.length; ++i) {
            if (2 * i + 1 == nodes.length) above[i] = nodes[2 * i];
            else above[i] = pair(nodes[2 * i], nodes[2 * i + 1]);
        }
    }

    function pair(bytes32 left, bytes32 right) internal pure returns (bytes32) {
        return keccak256(left < right ? abi.encodePacked(left, right) : abi.encodePacked(right, left));
    }

    function rootOf(bytes32[] memory nodes) internal pure returns (bytes32) {
        while (nodes.length > 1) nodes = levelAbove(nodes);
        return nodes[0];
    }

    function proofOf(bytes32[] memory nodes, uint256 place) internal pure returns (bytes32[] memory proof) {
        proof = new bytes32[](16);
        uint256 length = 0;
        for (; nodes.length > 1; place /= 2) {
            if (place ^ 1 < nodes.length) proof[length++] = nodes[place ^ 1];
            nodes = levelAbove(nodes);
        }
        assembly ("memory-safe") {
            mstore(proof, length)
        }
    }
}

/// A network of five validators that need three approvals and have been active for a month, and one client with money.
abstract contract Fixture is Network {
    function setUp() public virtual {
        vm.warp(STARTED - 1);
        vm.chainId(CHAIN);
        token = Deploy.token(owner, SUPPLY);
        registry = Deploy.registry(token, owner, MINIMUM_STAKE, UNSTAKE_DELAY, 3, 5, treasury);
        payment = Deploy.payment(token, registry, treasury);
        channels = Deploy.channels(token, registry);
        addValidators("validator ", 5);
        committee = Committee({threshold: 3, members: addressesOf(keys)});
        vm.warp(NOW);
        give(client, 1000 ether, address(payment));
        vm.prank(client);
        token.approve(address(channels), type(uint256).max);
    }
}
