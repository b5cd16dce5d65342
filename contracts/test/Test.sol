// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

/// What a call cost, as forge counts it.
struct Gas {
    uint64 gasLimit;
    uint64 gasTotalUsed;
    uint64 gasMemoryUsed;
    int64 gasRefunded;
    uint64 gasRemaining;
}

/// The part of forge's cheat codes that these tests use.
interface Vm {
    function addr(uint256 key) external pure returns (address);
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function label(address account, string calldata name) external;

    function warp(uint256 timestamp) external;
    function chainId(uint256 id) external;
    function etch(address account, bytes calldata code) external;
    function prank(address caller) external;
    function startPrank(address caller) external;
    function stopPrank() external;
    function assume(bool condition) external pure;

    function expectRevert(bytes calldata data) external;
    function expectEmit(address emitter) external;

    function lastCallGas() external view returns (Gas memory gas);
    function record() external;
    function accesses(address target) external returns (bytes32[] memory reads, bytes32[] memory writes);
    function readFile(string calldata path) external view returns (string memory);
    function eip712HashStruct(string calldata definition, bytes calldata encoded) external pure returns (bytes32);

    function assertTrue(bool condition) external pure;
    function assertFalse(bool condition) external pure;
    function assertTrue(bool condition, string calldata reason) external pure;
    function assertEq(bool left, bool right) external pure;
    function assertEq(uint256 left, uint256 right) external pure;
    function assertEq(uint256 left, uint256 right, string calldata reason) external pure;
    function assertEq(address left, address right) external pure;
    function assertEq(bytes32 left, bytes32 right) external pure;
    function assertEq(bytes32 left, bytes32 right, string calldata reason) external pure;
    function assertEq(string calldata left, string calldata right) external pure;
    function assertEq(address[] calldata left, address[] calldata right) external pure;
    function assertNotEq(bytes32 left, bytes32 right) external pure;
    function assertLe(uint256 left, uint256 right, string calldata reason) external pure;
}

abstract contract Test {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    /// A key that is the same in each run; its owner is labelled in traces.
    function keyOf(string memory name) internal returns (uint256 key) {
        key = uint256(keccak256(bytes(name)));
        vm.label(vm.addr(key), name);
    }

    function accountOf(string memory name) internal returns (address) {
        return vm.addr(keyOf(name));
    }

    /// Folds a fuzzed number into [least, most].
    function within(uint256 value, uint256 least, uint256 most) internal pure returns (uint256) {
        unchecked {
            uint256 size = most - least + 1;
            return size == 0 ? value : least + value % size;
        }
    }

    function expectError(bytes4 selector) internal {
        vm.expectRevert(abi.encodeWithSelector(selector));
    }

    function expectError(bytes4 selector, bytes memory fields) internal {
        vm.expectRevert(bytes.concat(selector, fields));
    }
}
