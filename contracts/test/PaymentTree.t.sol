// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {PaymentTree, Payout} from "../src/PaymentTree.sol";
import {Test} from "./Test.sol";

contract PaymentTreeTest is Test {
    function test_DefaultSplitOfARoundTotal() public pure {
        Payout memory payout = PaymentTree.split(10_000, 1000, 500, 500, 5);
        vm.assertEq(payout.compute, 8000);
        vm.assertEq(payout.gateway, 1000);
        vm.assertEq(payout.validator, 100);
        vm.assertEq(payout.treasury, 500);
    }

    /// 999 * 10 % = 99.9, 999 * 5 % = 49.95, and 49 / 3 = 16.33: every remainder is compute's.
    function test_RemaindersGoToCompute() public pure {
        Payout memory payout = PaymentTree.split(999, 1000, 500, 500, 3);
        vm.assertEq(payout.gateway, 99);
        vm.assertEq(payout.validator, 16);
        vm.assertEq(payout.treasury, 49);
        vm.assertEq(payout.compute, 999 - 99 - 3 * 16 - 49);
    }

    function test_OneUnitGoesToCompute() public pure {
        Payout memory payout = PaymentTree.split(1, 3333, 3333, 3333, 3);
        vm.assertEq(payout.compute, 1);
        vm.assertEq(payout.gateway + payout.validator + payout.treasury, 0);
    }

    function test_LargestTotalDoesNotOverflow() public pure {
        uint128 most = type(uint128).max;
        Payout memory payout = PaymentTree.split(most, 10_000, 0, 0, 1);
        vm.assertEq(payout.gateway, most);
        vm.assertEq(payout.compute, 0);
    }

    function testFuzz_PartsSumToTotalAndAreRoundedDown(
        uint128 total,
        uint16 gatewayBps,
        uint16 validatorsBps,
        uint16 treasuryBps,
        uint16 signers
    ) public pure {
        gatewayBps = uint16(within(gatewayBps, 0, 10_000));
        validatorsBps = uint16(within(validatorsBps, 0, 10_000 - gatewayBps));
        treasuryBps = uint16(within(treasuryBps, 0, 10_000 - gatewayBps - validatorsBps));
        signers = uint16(within(signers, 1, 256));
        Payout memory payout = PaymentTree.split(total, gatewayBps, validatorsBps, treasuryBps, signers);

        uint256 sum = uint256(payout.compute) + payout.gateway + payout.treasury;
        vm.assertEq(sum + uint256(payout.validator) * signers, total);
        assertFloor(payout.gateway, uint256(total) * gatewayBps, 10_000);
        assertFloor(payout.treasury, uint256(total) * treasuryBps, 10_000);
        // Rounding twice is rounding once by the product.
        assertFloor(payout.validator, uint256(total) * validatorsBps, 10_000 * uint256(signers));
    }

    /// `part` is the largest integer that is at most numerator / denominator.
    function assertFloor(uint256 part, uint256 numerator, uint256 denominator) private pure {
        vm.assertTrue(part * denominator <= numerator, "too large");
        vm.assertTrue((part + 1) * denominator > numerator, "too small");
    }
}
