// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Fixture} from "./Fixture.sol";

/// The network, a newcomer to its registry, and one of its validators with money to spare.
abstract contract RegistryFixture is Fixture {
    bytes32 internal constant EVIDENCE = keccak256("evidence");

    address internal newcomer = accountOf("newcomer");
    address internal validator;

    function setUp() public override {
        super.setUp();
        validator = vm.addr(keys[0]);
        give(newcomer, 1000 ether, address(registry));
        give(validator, 1000 ether, address(registry));
    }

    function register(address account, uint256 amount) internal {
        vm.prank(account);
        registry.registerValidator(amount);
    }

    function unstake(address account) internal {
        vm.prank(account);
        registry.requestUnstake();
    }

    function withdraw(address account) internal {
        registry.withdrawStake(account);
    }

    /// This contract stands in for the slasher.
    function startSlashing() internal {
        vm.prank(owner);
        registry.setSlasher(address(this));
    }

    function slash(address account, uint16 basisPoints) internal returns (uint256) {
        return registry.slash(account, basisPoints, EVIDENCE);
    }

    function assertUnknown(address account) internal {
        vm.assertFalse(registry.isActive(account));
        vm.assertEq(registry.stakeOf(account), 0);
        vm.assertEq(registry.withdrawableAt(account), 0);
        vm.warp(block.timestamp + 10 * UNSTAKE_DELAY);
        expectError(ValidatorRegistry.NotLeaving.selector, abi.encode(account));
        withdraw(account);
    }
}
