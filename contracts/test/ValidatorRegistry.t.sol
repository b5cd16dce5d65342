// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Deploy} from "./Deploy.sol";
import {RegistryFixture} from "./RegistryFixture.sol";

contract ValidatorRegistryTest is RegistryFixture {
    // Construction

    function test_ConstructorSetsEverything() public view {
        vm.assertEq(address(registry.token()), address(token));
        vm.assertEq(registry.owner(), owner);
        vm.assertEq(registry.minimumStake(), MINIMUM_STAKE);
        vm.assertEq(registry.unstakeDelay(), UNSTAKE_DELAY);
        vm.assertEq(registry.treasury(), treasury);
        vm.assertEq(registry.slasher(), address(0));
        vm.assertEq(registry.threshold(), 3);
        vm.assertEq(registry.committeeSize(), 5);
    }

    function test_ConstructorRefusesNoStake() public {
        expectError(ValidatorRegistry.ZeroMinimumStake.selector);
        Deploy.registry(token, owner, 0, UNSTAKE_DELAY, 3, 5, treasury);
    }

    function test_ConstructorRefusesNoTreasury() public {
        expectError(ValidatorRegistry.ZeroTreasury.selector);
        Deploy.registry(token, owner, MINIMUM_STAKE, UNSTAKE_DELAY, 3, 5, address(0));
    }

    function test_ConstructorRefusesABadQuorum() public {
        expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(2, 5));
        Deploy.registry(token, owner, MINIMUM_STAKE, UNSTAKE_DELAY, 2, 5, treasury);
    }

    // setSlasher

    function test_OwnerSetsTheSlasher() public {
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.SlasherChanged(newcomer);
        vm.prank(owner);
        registry.setSlasher(newcomer);
        vm.assertEq(registry.slasher(), newcomer);
    }

    function test_NobodyElseSetsTheSlasher() public {
        expectError(Ownable.OwnableUnauthorizedAccount.selector, abi.encode(newcomer));
        vm.prank(newcomer);
        registry.setSlasher(newcomer);
    }

    // setQuorum

    function test_OwnerSetsTheQuorum() public {
        vm.expectEmit(address(registry));
        emit ValidatorRegistry.QuorumChanged(4, 7);
        vm.prank(owner);
        registry.setQuorum(4, 7);
        vm.assertEq(registry.threshold(), 4);
        vm.assertEq(registry.committeeSize(), 7);
    }

    function test_NobodyElseSetsTheQuorum() public {
        expectError(Ownable.OwnableUnauthorizedAccount.selector, abi.encode(newcomer));
        vm.prank(newcomer);
        registry.setQuorum(1, 1);
    }

    function testFuzz_QuorumIsAMajorityOfACommittee(uint16 threshold, uint16 committeeSize) public {
        // Close enough to each other that both answers occur.
        committeeSize = uint16(within(committeeSize, 0, 300));
        threshold = uint16(within(threshold, 0, 300));
        bool valid = threshold > 0 && threshold <= committeeSize && threshold > committeeSize - threshold
            && committeeSize <= 256;
        vm.startPrank(owner);
        if (!valid) expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(threshold, committeeSize));
        registry.setQuorum(threshold, committeeSize);
    }

    function test_QuorumLimits() public {
        vm.startPrank(owner);
        expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(0, 0));
        registry.setQuorum(0, 0);
        expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(2, 4));
        registry.setQuorum(2, 4);
        expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(6, 5));
        registry.setQuorum(6, 5);
        expectError(ValidatorRegistry.InvalidQuorum.selector, abi.encode(257, 257));
        registry.setQuorum(257, 257);
        registry.setQuorum(1, 1);
        registry.setQuorum(256, 256);
    }

    // requireActive

    function test_RequireActiveReturnsTheQuorum() public view {
        (uint16 threshold, uint16 committeeSize) = registry.requireActive(addressesOf(keys));
        vm.assertEq(threshold, 3);
        vm.assertEq(committeeSize, 5);
    }

    function test_RequireActiveNamesTheFirstThatIsNot() public {
        address[] memory signers = addressesOf(keys);
        signers[3] = newcomer;
        signers[4] = accountOf("another");
        expectError(ValidatorRegistry.InactiveValidator.selector, abi.encode(newcomer));
        registry.requireActive(signers);
    }
}
