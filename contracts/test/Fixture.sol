// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {Completion, Quote} from "../src/Messages.sol";
import {NCNToken} from "../src/NCNToken.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Test} from "./Test.sol";

/// A network of five validators that need three approvals, and one client with money.
abstract contract Fixture is Test {
    uint256 internal constant NOW = 1_800_000_000;
    uint256 internal constant CHAIN = 42_161;
    uint128 internal constant SUPPLY = 1_000_000 ether;
    uint128 internal constant MINIMUM_STAKE = 100 ether;
    uint64 internal constant UNSTAKE_DELAY = 3 days;
    bytes32 internal constant RESULT = keccak256("result");

    address internal owner = accountOf("owner");
    address internal client = accountOf("client");
    address internal gateway = accountOf("gateway");
    address internal compute = accountOf("compute");
    address internal treasury = accountOf("treasury");
    /// Sorted by the validators' addresses, as approvals have to be.
    uint256[] internal keys;

    NCNToken internal token;
    ValidatorRegistry internal registry;
    InferencePayment internal payment;

    function setUp() public virtual {
        vm.warp(NOW);
        vm.chainId(CHAIN);
        token = new NCNToken(owner, SUPPLY);
        registry = new ValidatorRegistry(token, owner, MINIMUM_STAKE, UNSTAKE_DELAY, 3, 5, treasury);
        payment = new InferencePayment(token, registry, treasury);
        addValidators("validator ", 5);
        give(client, 1000 ether, address(payment));
    }

    function addValidators(string memory prefix, uint256 count) internal {
        for (uint256 i = 0; i < count; ++i) {
            uint256 key = keyOf(string.concat(prefix, string(abi.encodePacked(bytes1(uint8(0x41 + i))))));
            insert(key);
            give(vm.addr(key), MINIMUM_STAKE, address(registry));
            vm.prank(vm.addr(key));
            registry.registerValidator(MINIMUM_STAKE);
        }
    }

    function give(address account, uint256 amount, address spender) internal {
        vm.prank(owner);
        token.transfer(account, amount);
        vm.prank(account);
        token.approve(spender, type(uint256).max);
    }

    function insert(uint256 key) private {
        keys.push(key);
        for (uint256 i = keys.length - 1; i > 0 && vm.addr(keys[i - 1]) > vm.addr(key); --i) {
            (keys[i - 1], keys[i]) = (keys[i], keys[i - 1]);
        }
    }

    function newQuote() internal view returns (Quote memory) {
        return Quote({
            requestId: keccak256("request"),
            client: client,
            gateway: gateway,
            compute: compute,
            modelDigest: keccak256("model"),
            total: 10 ether,
            gatewayBps: 1000,
            validatorsBps: 500,
            treasuryBps: 500,
            expiry: uint64(block.timestamp + 1 hours),
            trustRoot: keccak256("trust root")
        });
    }

    function initiate(Quote memory quote) internal {
        vm.prank(quote.client);
        payment.initiateInferenceRequest(quote);
    }

    function newEscrow() internal returns (Quote memory quote) {
        quote = newQuote();
        initiate(quote);
    }

    /// The escrowed quote's hash, read from the contract that holds it.
    function completionOf(Quote memory quote) internal view returns (Completion memory) {
        bytes32 commitment = payment.requestState(quote.client, quote.requestId);
        return Completion({requestId: quote.requestId, quote: commitment, result: RESULT, compute: compute});
    }

    function digestOf(Quote memory quote) internal view returns (bytes32) {
        return payment.completionDigest(completionOf(quote));
    }

    function complete(Quote memory quote, bytes memory approvals) internal {
        payment.completeInferenceRequest(quote, RESULT, compute, approvals);
    }

    function first(uint256 count) internal view returns (uint256[] memory some) {
        some = new uint256[](count);
        for (uint256 i = 0; i < count; ++i) {
            some[i] = keys[i];
        }
    }

    function addressesOf(uint256[] memory some) internal pure returns (address[] memory accounts) {
        accounts = new address[](some.length);
        for (uint256 i = 0; i < some.length; ++i) {
            accounts[i] = vm.addr(some[i]);
        }
    }

    function approve(bytes32 digest, uint256[] memory signers) internal pure returns (bytes memory approvals) {
        for (uint256 i = 0; i < signers.length; ++i) {
            approvals = bytes.concat(approvals, approve(digest, signers[i]));
        }
    }

    function approve(bytes32 digest, uint256 signer) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(signer, digest);
        return abi.encodePacked(r, s, v);
    }
}
