// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {InferencePayment} from "../src/InferencePayment.sol";
import {Committee, ChannelClose, ChannelPayout, Quote, Voucher} from "../src/Messages.sol";
import {ChannelTerms, Charge, PaymentChannel} from "../src/PaymentChannel.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Authorisation, Batch, Network} from "./Fixture.sol";
import {BlockListToken} from "./Tokens.sol";

/// What forge calls at random: channels and escrows of three clients, side by side in one token, which now and then refuses to pay
/// somebody. Every action knows whether it has to succeed, and none may move a channel back; the invariants look at the sums.
contract ChannelSchedule is Network {
    struct Model {
        uint128 deposit;
        uint128 settled;
        uint64 expiry;
        uint8 state;
        /// The highest that the client signed.
        uint128 signed;
    }

    struct Escrow {
        Quote quote;
        bool ended;
    }

    uint256 public constant CLIENTS = 3;
    uint256 public constant CHANNELS = 12;
    uint256 private constant MAX_TIME = 180 days;

    BlockListToken private immutable money;
    address[] public accounts;
    address[] private payees;
    ChannelTerms[] private terms;
    mapping(uint256 channel => Model) private models;
    mapping(uint256 channel => Voucher[]) private vouchers;
    Escrow[] private escrows;
    /// Calls that were let through once, which is how often they may be.
    bytes[] private spent;

    /// What each client has been charged and has been given back, or is owed.
    mapping(address client => uint256 amount) public paid;
    mapping(address client => uint256 amount) public refunded;

    uint256 public openings;
    uint256 public fundings;
    uint256 public additions;
    uint256 public settlements;
    uint256 public manyAtOnce;
    uint256 public refusals;
    uint256 public replays;
    uint256 public closings;
    uint256 public expiries;
    uint256 public withdrawals;
    uint256 public completions;

    constructor(
        BlockListToken money_,
        ValidatorRegistry registry_,
        InferencePayment payment_,
        PaymentChannel channels_,
        uint256[] memory keys_
    ) {
        (money, registry, payment, channels, keys) = (money_, registry_, payment_, channels_, keys_);
        committee = Committee({threshold: 3, members: addressesOf(keys)});
        payees = [gateway, compute, treasury, vm.addr(keys[0]), vm.addr(keys[1]), vm.addr(keys[2])];
        for (uint256 i = 0; i < CLIENTS; ++i) {
            accounts.push(vm.addr(keyAt(i)));
            vm.startPrank(accounts[i]);
            money.approve(address(payment), type(uint256).max);
            money.approve(address(channels), type(uint256).max);
            vm.stopPrank();
        }
        for (uint256 i = 0; i < payees.length; ++i) {
            accounts.push(payees[i]);
        }
        for (uint256 i = 0; i < CHANNELS; ++i) {
            terms.push(ChannelTerms(accounts[i % CLIENTS], gateway, bytes32(i)));
        }
    }

    /// Deposits, charges and expiries only grow, states only advance, and a closed channel stays as it is.
    modifier neverBack() {
        Model[] memory before = new Model[](CHANNELS);
        for (uint256 i = 0; i < CHANNELS; ++i) {
            before[i] = stored(i);
        }
        _;
        for (uint256 i = 0; i < CHANNELS; ++i) {
            Model memory now_ = stored(i);
            vm.assertTrue(now_.settled >= before[i].settled, "a charge was taken back");
            vm.assertTrue(now_.deposit >= before[i].deposit, "a deposit shrank");
            vm.assertTrue(now_.expiry >= before[i].expiry, "an expiry came closer");
            vm.assertTrue(now_.state >= before[i].state, "a channel was reopened");
            if (before[i].state != 2) continue;
            vm.assertEq(keccak256(abi.encode(now_)), keccak256(abi.encode(before[i])), "a closed channel moved");
        }
    }

    function openOne(uint256 seed, uint128 amount, uint64 time) external neverBack {
        uint256 i = seed % CHANNELS;
        (uint128 some, uint64 expiry) = funds(i, seed >> 8, amount, time);
        bool allowed = models[i].state == 0 && some > 0 && inTime(expiry);
        vm.prank(terms[i].client);
        try channels.open(terms[i], some, expiry) {
            vm.assertTrue(allowed, "opened against the rules");
            funded(i, some, expiry);
            ++openings;
        } catch {
            vm.assertFalse(allowed);
        }
    }

    function topUp(uint256 seed, uint128 amount, uint64 time) external neverBack {
        uint256 i = seed % CHANNELS;
        (uint128 some, uint64 expiry) = funds(i, seed >> 8, amount, time);
        bool allowed = extensible(i, expiry) && (some > 0 || expiry != models[i].expiry);
        vm.prank(terms[i].client);
        try channels.topUp(terms[i], some, expiry) {
            vm.assertTrue(allowed, "topped up against the rules");
            funded(i, some, expiry);
            ++additions;
        } catch {
            vm.assertFalse(allowed);
        }
    }

    /// Somebody relays the client's signature; in one of a few cases it is another's, or starts from another deposit.
    function fundOne(uint256 seed, uint128 amount, uint64 time) external neverBack {
        uint256 i = seed % CHANNELS;
        (uint128 some, uint64 expiry) = funds(i, seed >> 8, amount, time);
        uint128 stated = seed >> 16 & 7 == 0 ? amount : models[i].deposit;
        uint256 key = keyAt(seed >> 24 & 7 == 0 ? i + 1 : i);
        bytes32 nonce = nonceOf(terms[i], stated, some, expiry);
        Authorisation memory a = authorise(key, money, address(channels), some, expiry, nonce);
        bool allowed = stated == models[i].deposit && some > 0 && key == keyAt(i);
        allowed = allowed && (models[i].state == 0 ? inTime(expiry) : extensible(i, expiry));
        bytes memory call =
            abi.encodeCall(channels.fundWithAuthorization, (terms[i], stated, some, expiry, a.v, a.r, a.s));
        (bool success,) = address(channels).call(call);
        vm.assertEq(success, allowed);
        if (!success) return;
        funded(i, some, expiry);
        spent.push(call);
        ++fundings;
    }

    /// The client promises more, whether or not what it promised before was ever charged.
    function signVoucher(uint256 seed, uint128 amount) external {
        uint256 i = seed % CHANNELS;
        uint128 cumulative = models[i].signed + uint128(within(amount, 1, 10 ether));
        Voucher memory voucher = newVoucher(terms[i], cumulative);
        voucher.requestId = bytes32(seed);
        vouchers[i].push(voucher);
        models[i].signed = cumulative;
    }

    function settleSome(uint256 seed, uint256 signers) external neverBack {
        Batch memory batch;
        batch.root = keccak256(abi.encode(seed));
        batch.count = uint64(within(seed, 1, type(uint64).max));
        batch.charges = new Charge[](1 + (seed >> 8) % 3);
        bool allowed = true;
        uint256 total = 0;
        // One channel may come up twice.
        for (uint256 k = 0; k < batch.charges.length; ++k) {
            uint256 i = (seed >> 16) % CHANNELS + k * ((seed >> 24) % 4);
            i %= CHANNELS;
            if (vouchers[i].length == 0) return;
            for (uint256 j = 0; j < k; ++j) {
                if (idOf(batch.charges[j].terms) == idOf(terms[i])) allowed = false;
            }
            bool good;
            (batch.charges[k], good) = randomCharge(i, uint256(keccak256(abi.encode(seed, k))));
            allowed = allowed && good;
            if (batch.charges[k].settledAfter > batch.charges[k].settledBefore) {
                total += batch.charges[k].settledAfter - batch.charges[k].settledBefore;
            }
        }
        bool fair;
        (batch.payouts, fair) = randomPayouts(seed, total);
        (bytes memory approvals, bool enough) = approvalsOf(digestOf(batch), signers);
        allowed = allowed && fair && enough;
        bytes memory call =
            abi.encodeCall(channels.settle, (batch.root, batch.count, batch.charges, batch.payouts, approvals));
        // In one of a few cases it is not the gateway that tries.
        if (seed % 16 != 0) vm.prank(gateway);
        else allowed = false;
        (bool success,) = address(channels).call(call);
        vm.assertEq(success, allowed);
        if (!success) {
            ++refusals;
            return;
        }
        for (uint256 k = 0; k < batch.charges.length; ++k) {
            uint256 i = uint256(batch.charges[k].terms.salt);
            models[i].settled = batch.charges[k].settledAfter;
        }
        spent.push(call);
        ++settlements;
        if (batch.charges.length > 1) ++manyAtOnce;
    }

    function again(uint256 seed) external neverBack {
        if (spent.length == 0) return;
        vm.prank(gateway);
        (bool success,) = address(channels).call(spent[seed % spent.length]);
        vm.assertFalse(success);
        ++replays;
    }

    function closeOne(uint256 seed, uint256 way) external neverBack {
        uint256 i = seed % CHANNELS;
        Model memory model = models[i];
        uint128 settled = way >> 8 & 1 == 0 ? model.settled : model.settled + 1;
        bytes memory word =
            approve(digestOf(ChannelClose(idOf(terms[i]), settled)), way >> 16 & 1 == 0 ? gatewayKey : keyAt(i));
        bool gateways = way & 1 == 0;
        bool allowed = model.state == 1 && settled == model.settled && (gateways || way >> 16 & 1 == 0);
        vm.prank(gateways ? gateway : terms[i].client);
        try channels.close(terms[i], settled, word) {
            vm.assertTrue(allowed, "closed against the rules");
            ended(i);
            ++closings;
        } catch {
            vm.assertFalse(allowed);
        }
    }

    function refund(uint256 seed) external neverBack {
        uint256 i = seed % CHANNELS;
        bool allowed = models[i].state == 1 && block.timestamp > models[i].expiry;
        try channels.refundExpired(terms[i]) {
            vm.assertTrue(allowed, "refunded against the rules");
            ended(i);
            ++expiries;
        } catch {
            vm.assertFalse(allowed);
        }
    }

    /// Mostly hours, in which channels expire one after the other, and now and then days.
    function wait(uint256 time) external {
        vm.warp(block.timestamp + within(time, 1, time % 8 == 0 ? 3 days : 3 hours));
    }

    function refuse(uint256 seed, uint256 way) external {
        money.refuse(accounts[seed % accounts.length], BlockListToken.Refusal(way % 3 == 0 ? way / 3 % 7 : 0));
    }

    /// With a limit, because some recipients burn all there is.
    function withdraw(uint256 seed) external neverBack {
        address account = accounts[seed % accounts.length];
        bool willing = money.refusals(account) == BlockListToken.Refusal.None;
        bool allowed = willing && channels.owed(account) > 0;
        try channels.withdraw{gas: 300_000}(account) {
            vm.assertTrue(allowed, "withdrawn against the rules");
            ++withdrawals;
        } catch {
            vm.assertFalse(allowed);
        }
        allowed = willing && payment.owed(account) > 0;
        try payment.withdraw{gas: 300_000}(account) {
            vm.assertTrue(allowed, "withdrawn against the rules");
        } catch {
            vm.assertFalse(allowed);
        }
    }

    function escrow(uint256 seed, uint128 total) external neverBack {
        uint256 i = seed % CLIENTS;
        Quote memory quote = newQuote();
        quote.requestId = keccak256(abi.encode(escrows.length));
        quote.client = accounts[i];
        quote.total = uint128(within(total, 0, money.balanceOf(accounts[i]) / 8));
        if (quote.total == 0) return;
        quote.expiry = uint64(block.timestamp + within(seed, 1, 6 hours));
        if (seed >> 8 & 1 == 0) {
            initiate(quote);
        } else {
            Authorisation memory a =
                authorise(keyAt(i), money, address(payment), quote.total, quote.expiry, hashOf(quote));
            relay(quote, a);
        }
        escrows.push(Escrow(quote, false));
        paid[quote.client] += quote.total;
    }

    function endEscrow(uint256 seed) external neverBack {
        if (escrows.length == 0) return;
        Escrow storage one = escrows[seed % escrows.length];
        if (one.ended) return;
        if (block.timestamp >= refundableAt(one.quote)) {
            payment.handleExpiredRequest(one.quote);
            refunded[one.quote.client] += one.quote.total;
        } else if (seed >> 8 & 1 == 0) {
            bytes memory agreed = consent(address(payment), one.quote, keyFor(one.quote.client), 2);
            vm.prank(gateway);
            payment.markRequestFailed(one.quote, agreed);
            refunded[one.quote.client] += one.quote.total;
        } else {
            complete(one.quote, approve(digestOf(one.quote), first(3)));
            ++completions;
        }
        one.ended = true;
    }

    // What the actions are made of

    function keyAt(uint256 i) private pure returns (uint256) {
        return uint256(keccak256(abi.encode("client", i % CLIENTS)));
    }

    function keyFor(address client) private view returns (uint256) {
        for (uint256 i = 0; true; ++i) {
            if (accounts[i] == client) return keyAt(i);
        }
    }

    /// An amount that the client has, and mostly an expiry that is allowed.
    function funds(uint256 i, uint256 seed, uint128 amount, uint64 time)
        private
        view
        returns (uint128 some, uint64 expiry)
    {
        some = uint128(within(amount, 0, money.balanceOf(terms[i].client) / 4));
        uint256 least = block.timestamp > models[i].expiry ? block.timestamp : models[i].expiry;
        expiry = uint64(within(time, least, least + 1 days));
        if (seed % 8 == 0) {
            expiry = uint64(within(time, block.timestamp - 1 days, block.timestamp + MAX_TIME + 1 days));
        }
        if (seed % 8 == 1) expiry = models[i].expiry;
    }

    function inTime(uint64 expiry) private view returns (bool) {
        return expiry > block.timestamp && expiry <= block.timestamp + MAX_TIME;
    }

    function extensible(uint256 i, uint64 expiry) private view returns (bool) {
        Model memory model = models[i];
        return model.state == 1 && block.timestamp <= model.expiry && expiry >= model.expiry && inTime(expiry);
    }

    function funded(uint256 i, uint128 amount, uint64 expiry) private {
        models[i].deposit += amount;
        models[i].expiry = expiry;
        models[i].state = 1;
        paid[terms[i].client] += amount;
    }

    function ended(uint256 i) private {
        models[i].state = 2;
        refunded[terms[i].client] += models[i].deposit - models[i].settled;
    }

    /// On any voucher that the client ever signed; mostly for what it allows, and sometimes from another start or for more.
    function randomCharge(uint256 i, uint256 seed) private view returns (Charge memory charge, bool good) {
        Model memory model = models[i];
        Voucher memory voucher = vouchers[i][seed % vouchers[i].length];
        uint128 settledBefore = model.settled;
        if (seed >> 16 & 15 == 0) settledBefore = uint128(within(seed >> 32, 0, model.deposit));
        uint128 most = voucher.cumulative < model.deposit ? voucher.cumulative : model.deposit;
        if (seed >> 20 & 15 == 0) most += 1 ether;
        uint128 settledAfter = most > settledBefore ? uint128(within(seed >> 40, settledBefore, most)) : most;
        bool signed = seed >> 24 & 15 != 0;
        charge = newCharge(terms[i], settledBefore, settledAfter, voucher, signed ? keyAt(i) : gatewayKey);
        good = model.state == 1 && block.timestamp <= model.expiry && settledBefore == model.settled
            && settledAfter > settledBefore && settledAfter <= voucher.cumulative && settledAfter <= model.deposit
            && signed;
    }

    /// Any division of the total, and sometimes one that is off by one.
    function randomPayouts(uint256 seed, uint256 total)
        private
        view
        returns (ChannelPayout[] memory payouts, bool fair)
    {
        uint256 count = 1 + (seed >> 32) % payees.length;
        if (count > total) count = total;
        payouts = new ChannelPayout[](count);
        for (uint256 k = 0; k < count; ++k) {
            uint256 left = count - k - 1;
            uint256 part = left == 0 ? total : within(uint256(keccak256(abi.encode(seed, k))), 1, total - left);
            payouts[k] = ChannelPayout(payees[k], uint128(part));
            total -= part;
        }
        sort(payouts);
        fair = count != 0 && seed >> 48 & 15 != 0;
        if (count != 0 && !fair) payouts[0].amount += seed >> 52 & 1 == 0 ? 1 : type(uint128).max - payouts[0].amount;
    }

    /// Mostly a quorum.
    function approvalsOf(bytes32 digest, uint256 signers) private view returns (bytes memory approvals, bool enough) {
        if (signers & 0x700 != 0) signers = 0x1f;
        uint256 count = 0;
        for (uint256 i = 0; i < 5; ++i) {
            if (signers >> i & 1 == 0) continue;
            approvals = bytes.concat(approvals, approve(digest, keys[i]));
            ++count;
        }
        enough = count >= 3;
    }

    // What the invariants look at

    function stored(uint256 i) private view returns (Model memory model) {
        (model.deposit, model.settled, model.expiry, model.state,,) = channels.channel(idOf(terms[i]));
    }

    function modelAt(uint256 i) external view returns (Model memory) {
        return models[i];
    }

    function termsAt(uint256 i) external view returns (ChannelTerms memory) {
        return terms[i];
    }

    function accountCount() external view returns (uint256) {
        return accounts.length;
    }

    function escrowAt(uint256 i) external view returns (Escrow memory) {
        return escrows[i];
    }

    function escrowCount() external view returns (uint256) {
        return escrows.length;
    }
}
