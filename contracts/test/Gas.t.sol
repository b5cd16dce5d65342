// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Quote} from "../src/Messages.sol";
import {Fixture} from "./Fixture.sol";

/// What a transaction costs, with its base fee and calldata, and with storage as cold as at its start.
/// The ceilings are about 1 % above what was measured: room for another compiler, none for another storage slot. Who makes something
/// dearer has to say so here.
/// forge-config: default.isolate = true
contract GasTest is Fixture {
    Quote private quote;
    bytes private approvals;

    /// The usual case: others have money in escrow, and everyone who is paid has held the token before.
    function setUp() public override {
        super.setUp();
        newEscrow();
        give(compute, 1, address(1));
        give(gateway, 1, address(1));
        give(treasury, 1, address(1));
        for (uint256 i = 0; i < 3; ++i) {
            give(vm.addr(keys[i]), 1, address(1));
        }
        quote = newQuote();
        quote.requestId = keccak256("measured");
    }

    function test_GasOfInitiate() public {
        initiate(quote);
        assertCost(72_500);
    }

    function test_GasOfComplete() public {
        initiate(quote);
        approvals = approve(digestOf(quote), first(3));
        complete(quote, approvals);
        assertCost(124_500);
    }

    /// Each of the five first balances costs a new slot.
    function test_GasOfCompleteForNewcomers() public {
        (gateway, compute) = (accountOf("new gateway"), accountOf("new compute"));
        (quote.gateway, quote.compute) = (gateway, compute);
        addValidators("new ", 3);
        uint256[] memory signers = new uint256[](3);
        uint256 found = 0;
        for (uint256 i = 0; i < keys.length; ++i) {
            if (token.balanceOf(vm.addr(keys[i])) == 0 && found < 3) signers[found++] = keys[i];
        }
        initiate(quote);
        approvals = approve(digestOf(quote), signers);
        complete(quote, approvals);
        assertCost(210_500);
    }

    function test_GasOfRefund() public {
        initiate(quote);
        vm.warp(quote.expiry + 1);
        payment.handleExpiredRequest(quote);
        assertCost(49_500);
    }

    function assertCost(uint256 ceiling) private view {
        vm.assertLe(vm.lastCallGas().gasTotalUsed, ceiling, "dearer than it was");
    }
}
