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
        assertQuorum(3, 5);
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
        assertQuorum(3, 5);
        vm.warp(NOW + 1);
        assertQuorum(4, 7);
        (,, ValidatorRegistry.Quorum[] memory quorums) = registry.history();
        vm.assertEq(quorums.length, 2);
        vm.assertEq(keccak256(abi.encode(quorums[0])), keccak256(abi.encode(STARTED - 1, 3, 5)));
        vm.assertEq(keccak256(abi.encode(quorums[1])), keccak256(abi.encode(NOW + 1, 4, 7)));
    }

    /// What was quoted before the last change is judged by what was valid before it.
    function test_TheQuorumChangesOnceADelay() public {
        vm.startPrank(owner);
        registry.setQuorum(4, 7);
        vm.warp(NOW + UNSTAKE_DELAY);
        expectError(ValidatorRegistry.QuorumChangeTooEarly.selector, abi.encode(NOW + 1 + UNSTAKE_DELAY));
        registry.setQuorum(3, 5);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        registry.setQuorum(3, 5);
        assertQuorum(4, 7);
    }

    function assertQuorum(uint256 threshold, uint256 committeeSize) private view {
        (uint16 m, uint16 n) = registry.quorum();
        vm.assertEq(m, threshold);
        vm.assertEq(n, committeeSize);
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
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
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

    // requireStaked

    function test_RequireStakedTakesWhoIsLeaving() public {
        address[] memory signers = addressesOf(keys);
        registry.requireStaked(signers);
        unstake(signers[2]);
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        registry.requireStaked(signers);
        withdraw(signers[2]);
        expectError(ValidatorRegistry.NoStake.selector, abi.encode(signers[2]));
        registry.requireStaked(signers);
    }

    // history

    /// Whoever joins and leaves, who was active at a time that has come stays the same.
    function testFuzz_ThePastStays(uint256 seed) public {
        address[] memory before = active();
        // Not the block's timestamp, which the optimizer takes for a constant within a test.
        uint256 time = NOW;
        address[] memory accounts = new address[](8);
        for (uint256 i = 0; i < 8; ++i) {
            accounts[i] = i < 5 ? vm.addr(keys[i]) : vm.addr(i + 1);
            give(accounts[i], MINIMUM_STAKE, address(registry));
        }
        for (uint256 i = 0; i < 24; ++i) {
            seed = uint256(keccak256(abi.encode(seed)));
            address account = accounts[seed % 8];
            vm.prank(account);
            if (seed & 0x100 == 0) {
                try registry.registerValidator(MINIMUM_STAKE) {} catch {}
            } else {
                try registry.requestUnstake() {} catch {}
            }
            vm.assertEq(activeAt(NOW), before);
            time += within(seed >> 16, 0, 2 hours);
            vm.warp(time);
        }
    }
}
