// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {MessageHash} from "../src/MessageHash.sol";
import "../src/Messages.sol";
import {Deploy} from "./Deploy.sol";
import {MessageHarness} from "./MessageHarness.sol";
import {Test} from "./Test.sol";

/// Each struct hash is compared with two others: forge's own EIP-712 encoder, fed with the type as Messages.sol has it, and for
/// the structs with dynamic members an encoding that is laid out word by word.
contract MessageHashTest is Test {
    MessageHarness private harness = Deploy.harness();
    uint256 private structs;
    mapping(string name => string) private types;

    function setUp() public {
        bytes memory file = bytes(vm.readFile("src/Messages.sol"));
        for (uint256 i = 0; i < file.length; ++i) {
            if (matches(file, i, "\nstruct ")) readType(file, i + 8);
        }
    }

    function test_TypeReaderUnderstandsTheFile() public view {
        vm.assertEq(typeOf("TaskAccess"), "TaskAccess(address client,bytes32 requestId,uint8 purpose)");
        vm.assertEq(typeOf("Attachment"), "Attachment(address node,address gateway,bytes32 challenge)");
    }

    function test_EveryStructOfTheFileIsHashed() public view {
        vm.assertEq(structs, 26);
    }

    function testFuzz_InferenceRequest(InferenceRequest calldata message) public view {
        bytes32 hash = harness.hashInferenceRequest(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("InferenceRequest"), abi.encode(message)));
        bytes memory head = bytes.concat(
            keccak256(bytes(typeOf("InferenceRequest"))),
            word(message.client),
            message.subnet,
            message.modelDigest,
            message.inputHash
        );
        bytes memory tail = bytes.concat(
            keccak256(abi.encodePacked(message.parameters)),
            word(message.maxPrice),
            word(message.deadline),
            message.nonce,
            message.draw
        );
        vm.assertEq(hash, keccak256(bytes.concat(head, tail)));
    }

    function testFuzz_Quote(Quote calldata message) public view {
        bytes32 hash = harness.hashQuote(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("Quote"), abi.encode(message)));
    }

    function testFuzz_Committee(Committee calldata message) public view {
        bytes32 hash = harness.hashCommittee(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("Committee"), abi.encode(message)));
    }

    function testFuzz_InferenceResult(InferenceResult calldata message) public view {
        bytes32 hash = harness.hashInferenceResult(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("InferenceResult"), abi.encode(message)));
    }

    function testFuzz_Completion(Completion calldata message) public view {
        bytes32 hash = harness.hashCompletion(message);
        string memory definition = string.concat(typeOf("Completion"), typeOf("Contribution"));
        vm.assertEq(hash, vm.eip712HashStruct(definition, abi.encode(message)));
        bytes memory contributions;
        for (uint256 i = 0; i < message.contributions.length; ++i) {
            contributions = bytes.concat(contributions, harness.hashContribution(message.contributions[i]));
        }
        bytes memory words =
            bytes.concat(message.requestId, message.quote, word(message.finish), keccak256(contributions));
        vm.assertEq(hash, keccak256(bytes.concat(keccak256(bytes(definition)), words)));
    }

    function testFuzz_Contribution(Contribution calldata message) public view {
        bytes32 hash = harness.hashContribution(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("Contribution"), abi.encode(message)));
    }

    function testFuzz_CompletionAuthorization(CompletionAuthorization calldata message) public view {
        bytes32 hash = harness.hashCompletionAuthorization(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("CompletionAuthorization"), abi.encode(message)));
    }

    function testFuzz_Dispatch(Dispatch calldata message) public view {
        bytes32 hash = harness.hashDispatch(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("Dispatch"), abi.encode(message)));
    }

    function testFuzz_Acknowledgement(Acknowledgement calldata message) public view {
        bytes32 hash = harness.hashAcknowledgement(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("Acknowledgement"), abi.encode(message)));
    }

    function testFuzz_ReceiptSeal(ReceiptSeal calldata message) public view {
        bytes32 hash = harness.hashReceiptSeal(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("ReceiptSeal"), abi.encode(message)));
    }

    function testFuzz_TaskAccess(TaskAccess calldata message) public view {
        bytes32 hash = harness.hashTaskAccess(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("TaskAccess"), abi.encode(message)));
    }

    function testFuzz_Voucher(Voucher calldata message) public view {
        bytes32 hash = harness.hashVoucher(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("Voucher"), abi.encode(message)));
    }

    function testFuzz_SettledCompletion(SettledCompletion calldata message) public view {
        bytes32 hash = harness.hashSettledCompletion(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("SettledCompletion"), abi.encode(message)));
    }

    function testFuzz_ChannelSettlement(ChannelSettlement calldata message) public view {
        bytes32 hash = harness.hashChannelSettlement(message);
        string memory definition =
            string.concat(typeOf("ChannelSettlement"), typeOf("ChannelCharge"), typeOf("ChannelPayout"));
        vm.assertEq(hash, vm.eip712HashStruct(definition, abi.encode(message)));
    }

    function testFuzz_SettlementRequest(SettlementRequest calldata message) public view {
        bytes32 hash = harness.hashSettlementRequest(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("SettlementRequest"), abi.encode(message)));
    }

    function testFuzz_ChannelClose(ChannelClose calldata message) public view {
        bytes32 hash = harness.hashChannelClose(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("ChannelClose"), abi.encode(message)));
    }

    function testFuzz_DowntimeReport(DowntimeReport calldata message) public view {
        bytes32 hash = harness.hashDowntimeReport(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("DowntimeReport"), abi.encode(message)));
    }

    function testFuzz_NodeRecord(NodeRecord calldata message) public view {
        bytes32 hash = harness.hashNodeRecord(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("NodeRecord"), abi.encode(message)));
        bytes memory models;
        for (uint256 i = 0; i < message.models.length; ++i) {
            models = bytes.concat(models, message.models[i]);
        }
        bytes memory head = bytes.concat(
            keccak256(bytes(typeOf("NodeRecord"))), word(message.node), word(message.role), message.subnet
        );
        bytes memory tail = bytes.concat(
            keccak256(abi.encodePacked(message.endpoint)),
            keccak256(models),
            word(message.confinement),
            word(message.sequence),
            word(message.expiresAt)
        );
        vm.assertEq(hash, keccak256(bytes.concat(head, tail)));
    }

    function testFuzz_Heartbeat(Heartbeat calldata message) public view {
        bytes32 hash = harness.hashHeartbeat(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("Heartbeat"), abi.encode(message)));
    }

    function testFuzz_PendingRequests(PendingRequests calldata message) public view {
        bytes32 hash = harness.hashPendingRequests(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("PendingRequests"), abi.encode(message)));
        bytes memory head =
            bytes.concat(keccak256(bytes(typeOf("PendingRequests"))), word(message.gateway), message.subnet);
        bytes memory tail = bytes.concat(
            keccak256(abi.encodePacked(message.requests)), word(message.sequence), word(message.expiresAt)
        );
        vm.assertEq(hash, keccak256(bytes.concat(head, tail)));
    }

    function testFuzz_Departure(Departure calldata message) public view {
        bytes32 hash = harness.hashDeparture(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("Departure"), abi.encode(message)));
    }

    function testFuzz_Attachment(Attachment calldata message) public view {
        bytes32 hash = harness.hashAttachment(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("Attachment"), abi.encode(message)));
    }

    function testFuzz_SubnetModel(SubnetModel calldata message) public view {
        bytes32 hash = harness.hashSubnetModel(message);
        vm.assertEq(hash, vm.eip712HashStruct(typeOf("SubnetModel"), abi.encode(message)));
    }

    function testFuzz_Subnet(Subnet calldata message) public view {
        string memory definition = string.concat(typeOf("Subnet"), typeOf("SubnetModel"));
        bytes32 hash = harness.hashSubnet(message);
        vm.assertEq(hash, vm.eip712HashStruct(definition, abi.encode(message)));
        bytes memory models;
        for (uint256 i = 0; i < message.models.length; ++i) {
            models = bytes.concat(models, harness.hashSubnetModel(message.models[i]));
        }
        bytes memory head =
            bytes.concat(keccak256(bytes(definition)), word(message.owner), keccak256(abi.encodePacked(message.name)));
        bytes memory tail = bytes.concat(
            keccak256(abi.encodePacked(message.gateways)),
            keccak256(models),
            word(message.gatewayBps),
            word(message.validatorsBps),
            word(message.treasuryBps),
            word(message.version)
        );
        vm.assertEq(hash, keccak256(bytes.concat(head, tail)));
    }

    /// Two messages of one shape are not each other: the type is part of the hash.
    function testFuzz_SameWordsOfAnotherTypeHashDifferently(address node, uint64 sequence, bytes32 id) public view {
        bytes32 departure = harness.hashDeparture(Departure(node, sequence));
        bytes32 heartbeat = harness.hashHeartbeat(Heartbeat(node, sequence, 0));
        vm.assertNotEq(departure, heartbeat);
        vm.assertNotEq(harness.hashTaskAccess(TaskAccess(node, id, 1)), keccak256(abi.encode(node, id, uint8(1))));
    }

    function testFuzz_DigestBindsChainAndContract(uint256 chain, address contract_, bytes32 hash) public view {
        bytes32 digest = harness.digest(chain, contract_, hash);
        vm.assertNotEq(digest, harness.digest(chain ^ 1, contract_, hash));
        vm.assertNotEq(digest, harness.digest(chain, address(uint160(contract_) ^ 1), hash));
        vm.assertNotEq(digest, harness.digest(chain, contract_, hash ^ bytes32(uint256(1))));
    }

    function word(address value) private pure returns (bytes32) {
        return bytes32(uint256(uint160(value)));
    }

    function word(uint256 value) private pure returns (bytes32) {
        return bytes32(value);
    }

    function typeOf(string memory name) private view returns (string memory) {
        return types[name];
    }

    /// Turns "Name {\n    type field;\n}" into "Name(type field,type field)".
    function readType(bytes memory file, uint256 i) private {
        bytes memory name;
        for (; file[i] != " "; ++i) {
            name = bytes.concat(name, file[i]);
        }
        bytes memory fields;
        for (i += 2; file[i] != "}"; ++i) {
            if (file[i] == "\n") {
                while (file[i + 1] == " ") ++i;
            } else if (file[i] == "/") {
                while (file[i + 1] != "\n") ++i;
            } else {
                fields = bytes.concat(fields, file[i] == ";" ? bytes1(",") : file[i]);
            }
        }
        fields[fields.length - 1] = ")";
        types[string(name)] = string(bytes.concat(name, "(", fields));
        ++structs;
    }

    function matches(bytes memory file, uint256 start, bytes memory text) private pure returns (bool) {
        if (start + text.length > file.length) return false;
        for (uint256 i = 0; i < text.length; ++i) {
            if (file[start + i] != text[i]) return false;
        }
        return true;
    }
}
