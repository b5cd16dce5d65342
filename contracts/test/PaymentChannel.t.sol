// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {PROTOCOL_VERSION} from "../src/MessageHash.sol";
import {ChannelClose, ChannelSettlement, SettledCompletion, Voucher} from "../src/Messages.sol";
import {ChannelTerms} from "../src/PaymentChannel.sol";
import {Fixture} from "./Fixture.sol";
import {Deploy} from "./Deploy.sol";
import {MessageHarness} from "./MessageHarness.sol";

contract PaymentChannelTest is Fixture {
    MessageHarness private harness = Deploy.harness();

    // Construction and views

    function test_ConstructorSetsEverything() public view {
        vm.assertEq(address(channels.token()), address(token));
        vm.assertEq(address(channels.registry()), address(registry));
        (, string memory name, string memory version, uint256 chain, address contract_,,) = channels.eip712Domain();
        vm.assertEq(name, "NCN");
        vm.assertEq(version, PROTOCOL_VERSION);
        vm.assertEq(chain, block.chainid);
        vm.assertEq(contract_, address(channels));
    }

    function testFuzz_DigestsAreTheMessagesUnderTheDomain(
        Voucher calldata voucher,
        ChannelSettlement calldata settlement,
        ChannelClose calldata close
    ) public view {
        bytes32 hash = harness.hashVoucher(voucher);
        vm.assertEq(channels.voucherDigest(voucher), harness.digest(block.chainid, address(channels), hash));
        hash = harness.hashChannelSettlement(settlement);
        vm.assertEq(channels.settlementDigest(settlement), harness.digest(block.chainid, address(channels), hash));
        hash = harness.hashChannelClose(close);
        vm.assertEq(channels.closeDigest(close), harness.digest(block.chainid, address(channels), hash));
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", channels.domainSeparator(), hash));
        vm.assertEq(channels.closeDigest(close), digest);
    }

    function testFuzz_AChannelIsItsTerms(ChannelTerms memory terms, ChannelTerms memory others) public view {
        bytes32 id = channels.channelId(terms);
        vm.assertEq(id, keccak256(abi.encode(terms.client, terms.gateway, terms.salt)));
        if (keccak256(abi.encode(terms)) != keccak256(abi.encode(others))) {
            vm.assertNotEq(id, channels.channelId(others));
        }
    }

    function testFuzz_FundingNonce(ChannelTerms memory terms, uint128 before, uint128 amount, uint64 expiry)
        public
        view
    {
        bytes32 nonce = keccak256(abi.encode(channels.channelId(terms), before, amount, expiry));
        vm.assertEq(channels.fundingNonce(terms, before, amount, expiry), nonce);
    }

    // isSettled

    function testFuzz_EveryLeafIsProven(uint256 seed, uint256 count) public view {
        count = within(count, 1, 40);
        SettledCompletion[] memory leaves = new SettledCompletion[](count);
        bytes32[] memory nodes = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            leaves[i] = SettledCompletion(bytes32(seed), keccak256(abi.encode(seed, i)), uint128(i), bytes32(i));
            nodes[i] = hashOf(leaves[i]);
        }
        bytes32 root = rootOf(nodes);
        for (uint256 i = 0; i < count; ++i) {
            bytes32[] memory proof = proofOf(nodes, i);
            vm.assertTrue(channels.isSettled(root, leaves[i], proof));
            SettledCompletion memory other = leaves[i];
            other.amount += 1;
            vm.assertFalse(channels.isSettled(root, other, proof));
        }
        SettledCompletion memory stranger;
        vm.assertFalse(channels.isSettled(root, stranger, proofOf(nodes, 0)));
    }
}
