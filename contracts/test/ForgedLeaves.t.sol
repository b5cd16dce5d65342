// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {SettledCompletion} from "../src/Messages.sol";
import {Fixture} from "./Fixture.sol";

/// Requests that are said to be in a batch and are not.
contract ForgedLeaves is Fixture {
    SettledCompletion[] private leaves;
    bytes32[] private nodes;
    bytes32 private root;

    function setUp() public override {
        super.setUp();
        for (uint256 i = 0; i < 4; ++i) {
            leaves.push(
                SettledCompletion({
                    channel: idOf(newTerms()),
                    completion: keccak256(abi.encode("completion", i)),
                    amount: 1 ether,
                    resultSignatures: keccak256(abi.encode("signature", i))
                })
            );
            nodes.push(hashOf(leaves[i]));
        }
        root = rootOf(nodes);
        vm.assertTrue(channels.isSettled(root, leaves[2], proofOf(nodes, 2)));
    }

    function test_LeafOfAnotherChannel() public view {
        SettledCompletion memory leaf = leaves[2];
        leaf.channel = keccak256("another channel");
        vm.assertFalse(channels.isSettled(root, leaf, proofOf(nodes, 2)));
    }

    function test_EveryFieldCounts() public view {
        SettledCompletion memory leaf = leaves[2];
        leaf.amount += 1;
        vm.assertFalse(channels.isSettled(root, leaf, proofOf(nodes, 2)));
        leaf = leaves[2];
        leaf.completion = leaves[1].completion;
        vm.assertFalse(channels.isSettled(root, leaf, proofOf(nodes, 2)));
        leaf = leaves[2];
        leaf.resultSignatures = leaves[1].resultSignatures;
        vm.assertFalse(channels.isSettled(root, leaf, proofOf(nodes, 2)));
    }

    function test_ProofOfAnotherLeaf() public view {
        vm.assertFalse(channels.isSettled(root, leaves[2], proofOf(nodes, 0)));
        vm.assertFalse(channels.isSettled(root, leaves[2], new bytes32[](0)));
    }

    /// An inner node has a proof too. But there is no request of which it would be the hash.
    function test_InnerNodeAsLeaf() public view {
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = pair(nodes[2], nodes[3]);
        vm.assertTrue(MerkleProof.verify(proof, root, pair(nodes[0], nodes[1])));
        SettledCompletion memory leaf;
        (leaf.channel, leaf.completion) = nodes[0] < nodes[1] ? (nodes[0], nodes[1]) : (nodes[1], nodes[0]);
        vm.assertFalse(channels.isSettled(root, leaf, proof));
        (leaf.channel, leaf.completion) = (leaf.completion, leaf.channel);
        vm.assertFalse(channels.isSettled(root, leaf, proof));
        // Nor is the type left out of the hash, which would make 128 bytes of it.
        vm.assertNotEq(hashOf(leaf), keccak256(abi.encode(leaf)));
    }

    function testFuzz_NothingElseIsInTheTree(SettledCompletion memory leaf, bytes32[] memory proof) public view {
        vm.assertFalse(channels.isSettled(root, leaf, proof));
        vm.assertFalse(channels.isSettled(0, leaf, proof));
    }
}
