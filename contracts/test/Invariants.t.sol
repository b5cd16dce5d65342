// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {InferencePayment} from "../src/InferencePayment.sol";
import {Committee, Completion, Contribution, Quote} from "../src/Messages.sol";
import {NCNToken} from "../src/NCNToken.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Authorisation, Fixture, Signing} from "./Fixture.sol";

/// What forge calls at random. Every action knows whether it has to succeed, so a call that is let through or turned away against
/// the rules fails at once; the invariants look at the sums.
contract Schedule is Signing {
    struct Request {
        Quote quote;
        uint256 givenUpAt;
        uint8 ended;
        uint128 cost;
    }

    uint256 private constant CLIENTS = 3;

    NCNToken private immutable token;
    ValidatorRegistry private immutable registry;
    InferencePayment private immutable payment;
    uint256[] private keys;
    address[] public clients;
    address[] public holders;
    Request[] private requests;
    mapping(address validator => uint256 stake) public stakes;

    /// What each client has been charged and has been given back.
    mapping(address client => uint256 amount) public paid;
    mapping(address client => uint256 amount) public refunded;
    uint256 public relays;
    uint256 public completions;
    uint256 public expiries;
    uint256 public failures;
    uint256 public withdrawals;
    uint256 public rejoinings;

    constructor(
        NCNToken token_,
        ValidatorRegistry registry_,
        InferencePayment payment_,
        uint256[] memory keys_,
        address[] memory others
    ) {
        (token, registry, payment, keys) = (token_, registry_, payment_, keys_);
        holders = others;
        committee = Committee({threshold: uint16(keys.length / 2 + 1), members: addressesOf(keys)});
        for (uint256 i = 0; i < CLIENTS; ++i) {
            clients.push(vm.addr(clientKey(i)));
            holders.push(clients[i]);
            vm.prank(clients[i]);
            token.approve(address(payment), type(uint256).max);
        }
        for (uint256 i = 0; i < keys.length; ++i) {
            holders.push(vm.addr(keys[i]));
            stakes[vm.addr(keys[i])] = registry.stakeOf(vm.addr(keys[i]));
        }
    }

    function initiate(uint256 seed, uint128 total, uint64 time, uint16[3] calldata parts) external {
        Quote memory quote = newQuote(seed, total, time, parts);
        if (quote.total == 0) return;
        vm.prank(quote.client);
        payment.initiateInferenceRequest(quote);
        initiated(quote);
    }

    /// Somebody relays the client's signature; in one of a few cases it is not the client's, or not of this quote.
    function initiateWithAuthorization(uint256 seed, uint128 total, uint64 time, uint16[3] calldata parts) external {
        Quote memory quote = newQuote(seed, total, time, parts);
        if (quote.total == 0) return;
        bytes32 nonce = seed % 5 == 0 ? bytes32(seed) : hashOf(quote);
        uint256 key = clientKey(seed % 7 == 0 ? (seed + 1) % CLIENTS : seed % CLIENTS);
        Authorisation memory a = authorise(key, token, address(payment), quote.total, quote.expiry, nonce);
        bool allowed = seed % 5 != 0 && seed % 7 != 0;
        try payment.initiateWithAuthorization(quote, a.v, a.r, a.s) {
            vm.assertTrue(allowed, "initiated without the client");
            initiated(quote);
            ++relays;
        } catch {
            vm.assertFalse(allowed);
        }
    }

    function initiateAgain(uint256 seed) external {
        if (requests.length == 0) return;
        Quote memory quote = requests[seed % requests.length].quote;
        vm.prank(quote.client);
        try payment.initiateInferenceRequest(quote) {
            vm.assertTrue(false, "initiated twice");
        } catch {}
        uint256 key = clientKey(indexOf(quote.client));
        Authorisation memory a = authorise(key, token, address(payment), quote.total, quote.expiry, hashOf(quote));
        try payment.initiateWithAuthorization(quote, a.v, a.r, a.s) {
            vm.assertTrue(false, "relayed twice");
        } catch {}
    }

    function complete(uint256 seed, uint256 signers, address compute) external {
        if (requests.length == 0) return;
        // Often the newest, which is the least likely to have ended.
        Request storage request = requests[seed % 3 == 0 ? (seed >> 8) % requests.length : requests.length - 1];
        Quote memory quote = request.quote;
        uint128 cost = uint128(within(signers >> 128, 0, quote.total));
        (bytes memory approvals, uint256 count) = approve(quote, signers, contributionOf(holders[2], cost));
        bool allowed = request.ended == 0 && block.timestamp <= quote.expiry + payment.CLAIM_TIME()
            && count >= committee.threshold;
        // Approvals name who is paid; in one of a few cases somebody else tries.
        if (uint160(compute) % 4 != 0) compute = holders[2];
        if (compute != holders[2]) allowed = false;
        // Or for more than was paid in, whoever approves it.
        if (signers >> 250 == 0) {
            cost = quote.total + 1;
            (approvals,) = approve(quote, signers, contributionOf(compute, cost));
            allowed = false;
        }
        // In one of a few cases it is not the gateway that pays out, which is as good.
        if (seed % 8 != 0) vm.prank(quote.gateway);
        try payment.completeInferenceRequest(quote, committee, 1, contributionOf(compute, cost), approvals) {
            vm.assertTrue(allowed, "completed against the rules");
            ++request.ended;
            request.cost = cost;
            refunded[quote.client] += quote.total - cost;
            ++completions;
        } catch {
            vm.assertFalse(allowed);
        }
    }

    function expire(uint256 seed, bool client) external {
        if (requests.length == 0) return;
        Request storage request = requests[seed % requests.length];
        uint256 end = request.quote.expiry;
        if (request.givenUpAt != 0 && request.givenUpAt < end) end = request.givenUpAt;
        bool allowed = block.timestamp > end + payment.CLAIM_TIME() || (client && request.givenUpAt != 0);
        if (request.ended != 0) allowed = false;
        if (client) vm.prank(request.quote.client);
        try payment.handleExpiredRequest(request.quote) {
            vm.assertTrue(allowed, "refunded against the rules");
            ended(request);
            ++expiries;
        } catch {
            vm.assertFalse(allowed);
        }
    }

    function giveUp(uint256 seed, bool gateway, bool agreed) external {
        if (requests.length == 0) return;
        Request storage request = requests[seed % requests.length];
        Quote memory quote = request.quote;
        bool allowed = request.ended == 0 && gateway && (agreed || request.givenUpAt == 0);
        // In one of a few cases it is another client that agrees.
        bytes memory word;
        if (agreed) {
            uint256 key = clientKey((indexOf(quote.client) + (seed % 5 == 0 ? 1 : 0)) % CLIENTS);
            word = consent(address(payment), quote, key, 2);
            if (seed % 5 == 0) allowed = false;
        }
        vm.prank(gateway ? quote.gateway : quote.client);
        try payment.markRequestFailed(quote, word) {
            vm.assertTrue(allowed, "given up against the rules");
            if (agreed) ended(request);
            else request.givenUpAt = block.timestamp;
            ++failures;
        } catch {
            vm.assertFalse(allowed);
        }
    }

    /// Mostly minutes, in which escrows expire one after the other, and now and then days, in which stakes come free.
    function wait(uint256 time) external {
        vm.warp(block.timestamp + within(time, 1, time % 4 == 0 ? 12 days : 20 minutes));
    }

    function unstake(uint256 seed) external {
        address validator = vm.addr(keys[seed % keys.length]);
        bool allowed = stakes[validator] != 0 && registry.withdrawableAt(validator) == 0;
        vm.prank(validator);
        try registry.requestUnstake() {
            vm.assertTrue(allowed, "left twice");
        } catch {
            vm.assertFalse(allowed);
        }
    }

    function withdraw(uint256 seed) external {
        address validator = vm.addr(keys[seed % keys.length]);
        uint256 ready = registry.withdrawableAt(validator);
        bool allowed = ready != 0 && block.timestamp >= ready;
        try registry.withdrawStake(validator) {
            vm.assertTrue(allowed, "withdrawn against the rules");
            stakes[validator] = 0;
            ++withdrawals;
        } catch {
            vm.assertFalse(allowed);
        }
    }

    function register(uint256 seed, uint256 amount) external {
        address validator = vm.addr(keys[seed % keys.length]);
        amount = within(amount, 0, token.balanceOf(validator));
        bool known = stakes[validator] != 0;
        bool allowed = amount > 0 && stakes[validator] + amount >= registry.minimumStake()
            && registry.withdrawableAt(validator) == 0;
        vm.startPrank(validator);
        token.approve(address(registry), amount);
        try registry.registerValidator(amount) {
            vm.assertTrue(allowed, "registered against the rules");
            stakes[validator] += amount;
            if (!known) ++rejoinings;
        } catch {
            vm.assertFalse(allowed);
        }
        vm.stopPrank();
    }

    /// A total of 0 stands for a client that has nothing left.
    function newQuote(uint256 seed, uint128 total, uint64 time, uint16[3] calldata parts)
        private
        view
        returns (Quote memory quote)
    {
        address client = clients[seed % CLIENTS];
        uint256 balance = token.balanceOf(client);
        if (balance == 0) return quote;
        quote.requestId = keccak256(abi.encode(requests.length));
        quote.client = client;
        quote.gateway = holders[1];
        quote.compute = holders[2];
        quote.committee = hashOf(committee);
        // Often so small that most parts are nothing.
        quote.total = uint128(within(total, 1, seed % 2 == 0 && balance > 1000 ? 1000 : balance));
        quote.gatewayBps = uint16(within(parts[0], 0, 10_000));
        quote.validatorsBps = uint16(within(parts[1], 0, 10_000 - quote.gatewayBps));
        quote.treasuryBps = uint16(within(parts[2], 0, 10_000 - quote.gatewayBps - quote.validatorsBps));
        quote.expiry = uint64(within(time, block.timestamp + 1, block.timestamp + 2 hours));
    }

    function initiated(Quote memory quote) private {
        requests.push(Request(quote, 0, 0, 0));
        paid[quote.client] += quote.total;
    }

    function indexOf(address client) private view returns (uint256) {
        return client == clients[0] ? 0 : client == clients[1] ? 1 : 2;
    }

    function clientKey(uint256 i) private pure returns (uint256) {
        return uint256(keccak256(abi.encode("client", i)));
    }

    /// Signatures of the validators whose bit is set, and how many there are if all of them have a stake (0 if one has not).
    function approve(Quote memory quote, uint256 signers, Contribution[] memory contributions)
        private
        view
        returns (bytes memory approvals, uint256 count)
    {
        // The hash from the event of the escrow would do; the view gives the same digest for an escrow that has ended.
        bytes32 commitment = payment.requestState(quote.client, quote.requestId);
        bytes32 digest = payment.completionDigest(Completion(quote.requestId, commitment, 1, contributions));
        bool staked = true;
        for (uint256 i = 0; i < keys.length; ++i) {
            if (signers >> i & 1 == 0) continue;
            (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[i], digest);
            approvals = abi.encodePacked(approvals, r, s, v);
            ++count;
            staked = staked && registry.stakeOf(vm.addr(keys[i])) != 0;
        }
        if (!staked) count = 0;
    }

    function contributionOf(address compute, uint128 cost) private pure returns (Contribution[] memory contributions) {
        contributions = new Contribution[](1);
        contributions[0] = Contribution(compute, 0, cost);
    }

    function ended(Request storage request) private {
        ++request.ended;
        refunded[request.quote.client] += request.quote.total;
    }

    function requestAt(uint256 i) external view returns (Request memory) {
        return requests[i];
    }

    function requestCount() external view returns (uint256) {
        return requests.length;
    }

    function holderCount() external view returns (uint256) {
        return holders.length;
    }

    function clientCount() external pure returns (uint256) {
        return CLIENTS;
    }
}

/// Over any schedule of clients, gateways, validators and time.
contract Invariants is Fixture {
    uint256 private constant BUDGET = 50 ether;

    Schedule private schedule;

    function setUp() public override {
        super.setUp();
        addValidators("more ", 2);
        address[] memory others = new address[](4);
        (others[0], others[1], others[2], others[3]) = (treasury, gateway, compute, owner);
        schedule = new Schedule(token, registry, payment, keys, others);
        for (uint256 i = 0; i < schedule.clientCount(); ++i) {
            address account = schedule.clients(i);
            vm.prank(owner);
            token.transfer(account, BUDGET);
        }
        // So that validators that are leaving can come back, or top up.
        for (uint256 i = 0; i < keys.length; ++i) {
            give(vm.addr(keys[i]), MINIMUM_STAKE, address(registry));
        }
        // Whatever is left with the fixture's client is out of the game.
        vm.prank(client);
        token.transfer(owner, 1000 ether);
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(schedule);
    }

    /// One function for all of them, so that forge plays each schedule once.
    function invariant_MoneyAndStakesAddUp() public view {
        tokensAreConserved();
        theContractHoldsWhatIsInEscrow();
        aRequestEndsAtMostOnce();
        aClientPaysWhatItSigned();
        theRegistryHoldsTheStakes();
        theActiveListIsTheActiveSet();
    }

    /// The rules would hold of schedules in which nothing happens, too; this one shows that everything does.
    function test_SchedulesReachEveryOutcome() public {
        for (uint256 i = 0; i < 1000; ++i) {
            uint256 seed = uint256(keccak256(abi.encode(i)));
            uint256 other = uint256(keccak256(abi.encode(seed)));
            uint256 action = i % 9;
            uint16[3] memory parts = [uint16(seed), uint16(other), 100];
            if (i % 18 == 0) schedule.initiate(seed, uint128(other), uint64(other), parts);
            if (i % 18 == 9) schedule.initiateWithAuthorization(seed, uint128(other), uint64(other), parts);
            if (action == 1) schedule.initiateAgain(seed);
            if (action == 2) schedule.complete(seed, other, address(uint160(seed)));
            if (action == 3) schedule.expire(seed, other % 4 == 0);
            if (action == 4) schedule.giveUp(seed, i % 4 == 0, other % 2 == 0);
            if (action == 5) schedule.wait(seed);
            if (action == 6) schedule.unstake(seed);
            if (action == 7) schedule.withdraw(seed);
            if (action == 8) schedule.register(seed, other);
        }
        vm.assertTrue(schedule.relays() > 0, "none relayed");
        vm.assertTrue(schedule.completions() > 0, "none completed");
        vm.assertTrue(schedule.expiries() > 0, "none expired");
        vm.assertTrue(schedule.failures() > 0, "none failed");
        vm.assertTrue(schedule.withdrawals() > 0, "no stake withdrawn");
        vm.assertTrue(schedule.rejoinings() > 0, "nobody came back");
        invariant_MoneyAndStakesAddUp();
        afterInvariant();
    }

    function tokensAreConserved() private view {
        uint256 sum = token.balanceOf(address(payment)) + token.balanceOf(address(registry));
        for (uint256 i = 0; i < schedule.holderCount(); ++i) {
            sum += token.balanceOf(schedule.holders(i));
        }
        vm.assertEq(sum, SUPPLY, "tokens went elsewhere");
        vm.assertEq(token.totalSupply(), SUPPLY);
    }

    function theContractHoldsWhatIsInEscrow() private view {
        uint256 escrowed = 0;
        for (uint256 i = 0; i < schedule.requestCount(); ++i) {
            Schedule.Request memory request = schedule.requestAt(i);
            if (request.ended == 0) escrowed += request.quote.total;
        }
        vm.assertEq(token.balanceOf(address(payment)), escrowed, "held and owed differ");
    }

    function aRequestEndsAtMostOnce() private view {
        uint256 completed = 0;
        for (uint256 i = 0; i < schedule.requestCount(); ++i) {
            Schedule.Request memory request = schedule.requestAt(i);
            bytes32 state = payment.requestState(request.quote.client, request.quote.requestId);
            bool over = state == payment.COMPLETED() || state == payment.REFUNDED();
            vm.assertEq(request.ended, over ? 1 : 0, "ended more than once, or unnoticed");
            if (state == payment.COMPLETED()) ++completed;
        }
        vm.assertEq(completed, schedule.completions(), "a refund completed");
    }

    function aClientPaysWhatItSigned() private view {
        for (uint256 i = 0; i < schedule.clientCount(); ++i) {
            address account = schedule.clients(i);
            uint256 spent = schedule.paid(account) - schedule.refunded(account);
            vm.assertEq(token.balanceOf(account), BUDGET - spent, "a client's balance is off");
        }
    }

    function theRegistryHoldsTheStakes() private view {
        uint256 staked = 0;
        for (uint256 i = 0; i < keys.length; ++i) {
            address validator = vm.addr(keys[i]);
            vm.assertEq(registry.stakeOf(validator), schedule.stakes(validator), "a stake is off");
            staked += registry.stakeOf(validator);
        }
        vm.assertEq(token.balanceOf(address(registry)), staked, "held and staked differ");
    }

    function theActiveListIsTheActiveSet() private view {
        address[] memory active = active();
        uint256 count = 0;
        for (uint256 i = 0; i < keys.length; ++i) {
            if (registry.isActive(vm.addr(keys[i]))) ++count;
        }
        vm.assertEq(active.length, count, "list and set differ in size");
        for (uint256 i = 0; i < active.length; ++i) {
            vm.assertTrue(registry.isActive(active[i]), "listed but not active");
            vm.assertTrue(registry.stakeOf(active[i]) >= MINIMUM_STAKE, "active below the minimum");
            for (uint256 j = 0; j < i; ++j) {
                vm.assertTrue(active[i] != active[j], "listed twice");
            }
        }
    }

    /// However a schedule ends: when time has passed, every escrow can be emptied, by anyone.
    function afterInvariant() public {
        vm.warp(block.timestamp + 2 hours + payment.CLAIM_TIME());
        for (uint256 i = 0; i < schedule.requestCount(); ++i) {
            Schedule.Request memory request = schedule.requestAt(i);
            if (request.ended == 0) payment.handleExpiredRequest(request.quote);
        }
        vm.assertEq(token.balanceOf(address(payment)), 0, "money is stuck");
    }
}
