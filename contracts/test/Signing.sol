// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {MessageHash, PROTOCOL_VERSION} from "../src/MessageHash.sol";
import {Committee, Completion, Quote, TaskAccess} from "../src/Messages.sol";
import {Test} from "./Test.sol";

/// A client's signature that moves its tokens (ERC-3009).
struct Authorisation {
    uint8 v;
    bytes32 r;
    bytes32 s;
}

/// Signatures, and what they are under. Made by hand, so that no call comes between an expectation and what is expected.
abstract contract Signing is Test {
    /// Three of the five that are there from the beginning.
    Committee internal committee;

    function addressesOf(uint256[] memory some) internal pure returns (address[] memory accounts) {
        accounts = new address[](some.length);
        for (uint256 i = 0; i < some.length; ++i) {
            accounts[i] = vm.addr(some[i]);
        }
    }

    uint256 internal constant CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    function approve(bytes32 digest, uint256 signer) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(signer, digest);
        return abi.encodePacked(r, s, v);
    }

    /// The same signature in its other form.
    function mirrored(bytes32 digest, uint256 signer) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(signer, digest);
        return abi.encodePacked(r, CURVE_ORDER - uint256(s), v == 27 ? uint8(28) : uint8(27));
    }

    /// Under a contract of the network.
    function typedDigest(address contract_, bytes32 hash) internal view returns (bytes32) {
        return typedDigest(contract_, PROTOCOL_VERSION, hash);
    }

    /// The test tokens have the same domain name as the contracts, and a version of their own.
    function typedDigest(address contract_, string memory version, bytes32 hash) internal view returns (bytes32) {
        bytes32 kind = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
        bytes32 domain =
            keccak256(abi.encode(kind, keccak256("NCN"), keccak256(bytes(version)), block.chainid, contract_));
        return keccak256(abi.encodePacked(hex"1901", domain, hash));
    }

    function authorise(uint256 key, IERC20 token_, address to, uint256 value, uint256 validBefore, bytes32 nonce)
        internal
        view
        returns (Authorisation memory authorisation)
    {
        bytes32 kind = keccak256(
            "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        bytes32 hash = keccak256(abi.encode(kind, vm.addr(key), to, value, 0, validBefore, nonce));
        (authorisation.v, authorisation.r, authorisation.s) = vm.sign(key, typedDigest(address(token_), "1", hash));
    }

    /// A client's word that its request may be cancelled, or signed for another purpose.
    function consent(address contract_, Quote memory quote, uint256 key, uint8 purpose)
        internal
        view
        returns (bytes memory)
    {
        bytes32 hash = MessageHash.hash(TaskAccess(quote.client, quote.requestId, purpose));
        return approve(typedDigest(contract_, hash), key);
    }

    function hashOf(Quote memory quote) internal pure returns (bytes32) {
        return keccak256(abi.encode(MessageHash.QUOTE, quote));
    }

    function hashOf(Committee memory members) internal pure returns (bytes32) {
        return
            keccak256(
                abi.encode(MessageHash.COMMITTEE, members.threshold, keccak256(abi.encodePacked(members.members)))
            );
    }

    function hashOf(Completion memory completion) internal pure returns (bytes32) {
        bytes memory hashes;
        for (uint256 i = 0; i < completion.contributions.length; ++i) {
            bytes32 hash = keccak256(abi.encode(MessageHash.CONTRIBUTION, completion.contributions[i]));
            hashes = bytes.concat(hashes, hash);
        }
        return keccak256(
            abi.encode(
                MessageHash.COMPLETION, completion.requestId, completion.quote, completion.finish, keccak256(hashes)
            )
        );
    }
}
