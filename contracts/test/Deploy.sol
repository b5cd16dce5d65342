// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {InferencePayment} from "../src/InferencePayment.sol";
import {NCNToken} from "../src/NCNToken.sol";
import {PaymentChannel} from "../src/PaymentChannel.sol";
import {ISettlementDigest, Slashing} from "../src/Slashing.sol";
import {SubnetRegistry} from "../src/SubnetRegistry.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {MessageHarness} from "./MessageHarness.sol";

interface Artifacts {
    function getCode(string calldata path) external view returns (bytes memory code);
}

/// Deploys the bytecode of artifacts/, which is what goes onto a chain. Tests are compiled without optimization, which takes seconds instead of
/// a quarter of an hour; the bytecode of `new` would be unoptimized with them.
library Deploy {
    Artifacts private constant artifacts = Artifacts(address(uint160(uint256(keccak256("hevm cheat code")))));

    function token(address owner, uint256 supply) internal returns (NCNToken) {
        return NCNToken(create("artifacts/NCNToken.json", abi.encode(owner, supply)));
    }

    function registry(
        IERC20 token_,
        address owner,
        uint128 minimumStake,
        uint64 unstakeDelay,
        uint16 threshold,
        uint16 committeeSize,
        address treasury
    ) internal returns (ValidatorRegistry) {
        bytes memory arguments =
            abi.encode(token_, owner, minimumStake, unstakeDelay, threshold, committeeSize, treasury);
        return ValidatorRegistry(create("artifacts/ValidatorRegistry.json", arguments));
    }

    function payment(IERC20 token_, ValidatorRegistry registry_, address treasury) internal returns (InferencePayment) {
        return InferencePayment(create("artifacts/InferencePayment.json", abi.encode(token_, registry_, treasury)));
    }

    function channels(IERC20 token_, ValidatorRegistry registry_) internal returns (PaymentChannel) {
        return PaymentChannel(create("artifacts/PaymentChannel.json", abi.encode(token_, registry_)));
    }

    function slashing(ValidatorRegistry registry_, InferencePayment payment_, ISettlementDigest channel)
        internal
        returns (Slashing)
    {
        return Slashing(create("artifacts/Slashing.json", abi.encode(registry_, payment_, channel)));
    }

    function subnets(IERC20 token_, address treasury, address owner, uint256 fee) internal returns (SubnetRegistry) {
        return SubnetRegistry(create("artifacts/SubnetRegistry.json", abi.encode(token_, treasury, owner, fee)));
    }

    function harness() internal returns (MessageHarness) {
        return MessageHarness(create("artifacts/MessageHarness.json", ""));
    }

    /// As `new` does, with the constructor's error where it reverts.
    function create(string memory path, bytes memory arguments) private returns (address created) {
        bytes memory code = bytes.concat(artifacts.getCode(path), arguments);
        assembly ("memory-safe") {
            created := create(0, add(code, 0x20), mload(code))
            if iszero(created) {
                let free := mload(0x40)
                returndatacopy(free, 0, returndatasize())
                revert(free, returndatasize())
            }
        }
    }
}
