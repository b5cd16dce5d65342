// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {SlashingFixture} from "./SlashingFixture.sol";

contract SlashingConstruction is SlashingFixture {
    function test_ConstructorSetsEverything() public view {
        vm.assertEq(address(slashing.registry()), address(registry));
        vm.assertEq(address(slashing.payment()), address(payment));
        vm.assertEq(address(slashing.channel()), address(channel));
    }

    function test_WhatOffencesCost() public view {
        vm.assertEq(slashing.INVALID_SIGNATURE(), 5000);
        vm.assertEq(slashing.INVALID_RESULT(), 3000);
        vm.assertEq(slashing.COLLUSION(), 10_000);
        vm.assertEq(slashing.DOWNTIME(), 1000);
        vm.assertEq(slashing.MIN_DOWNTIME(), 86_400);
        vm.assertEq(slashing.MAX_REPORT_AGE(), 86_400);
        vm.assertEq(slashing.MAX_APPROVALS(), registry.MAX_VALIDATORS());
    }

    function test_EvidenceKeepsOffencesAndDigestsApart() public view {
        bytes32 evidence = slashing.evidenceOf("COLLUSION", bytes32(uint256(1)));
        vm.assertEq(evidence, keccak256(abi.encode(bytes32("COLLUSION"), 1)));
        vm.assertNotEq(evidence, slashing.evidenceOf("INVALID_RESULT", bytes32(uint256(1))));
        vm.assertNotEq(evidence, slashing.evidenceOf("COLLUSION", bytes32(uint256(2))));
    }
}
