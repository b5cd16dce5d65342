// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {IERC3009, IERC3009Cancel} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {NCNToken} from "../src/NCNToken.sol";
import {Deploy} from "./Deploy.sol";
import {Test} from "./Test.sol";

contract NCNTokenTest is Test {
    bytes32 private constant PERMIT =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");

    uint256 private ownerKey = keyOf("owner");
    address private owner = vm.addr(ownerKey);
    address private other = accountOf("other");
    NCNToken private token = Deploy.token(owner, 1000 ether);

    function test_IsNcnWithTheSupplyAtTheOwner() public view {
        vm.assertEq(token.name(), "NCN");
        vm.assertEq(token.symbol(), "NCN");
        vm.assertEq(token.decimals(), 18);
        vm.assertEq(token.totalSupply(), 1000 ether);
        vm.assertEq(token.balanceOf(owner), 1000 ether);
        vm.assertEq(token.owner(), owner);
    }

    function test_OwnerMints() public {
        vm.prank(owner);
        token.mint(other, 5);
        vm.assertEq(token.balanceOf(other), 5);
        vm.assertEq(token.totalSupply(), 1000 ether + 5);
    }

    function test_NobodyElseMints() public {
        expectError(Ownable.OwnableUnauthorizedAccount.selector, abi.encode(other));
        vm.prank(other);
        token.mint(other, 5);
    }

    function test_PermitApprovesOnceAndOnlyAsSigned() public {
        uint256 deadline = block.timestamp + 1;
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(ownerKey, permitDigest(other, 7, 0, deadline));
        address stranger = ecrecover(permitDigest(other, 8, 0, deadline), v, r, s);
        expectError(ERC20Permit.ERC2612InvalidSigner.selector, abi.encode(stranger, owner));
        token.permit(owner, other, 8, deadline, v, r, s);

        token.permit(owner, other, 7, deadline, v, r, s);
        vm.assertEq(token.allowance(owner, other), 7);

        stranger = ecrecover(permitDigest(other, 7, 1, deadline), v, r, s);
        expectError(ERC20Permit.ERC2612InvalidSigner.selector, abi.encode(stranger, owner));
        token.permit(owner, other, 7, deadline, v, r, s);
    }

    function permitDigest(address spender, uint256 value, uint256 nonce, uint256 deadline)
        private
        view
        returns (bytes32)
    {
        bytes32 hash = keccak256(abi.encode(PERMIT, owner, spender, value, nonce, deadline));
        return MessageHashUtils.toTypedDataHash(token.DOMAIN_SEPARATOR(), hash);
    }
}

/// ERC-3009: payments by signature, from `payer` to `payee`.
contract AuthorizationTest is Test {
    /// One authorisation and the signature that it comes with.
    struct Authorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }

    uint256 private constant NOW = 1_800_000_000;
    uint256 private constant CHAIN = 42_161;
    uint256 private constant CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
    bytes32 private constant TRANSFER = keccak256(
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 private constant RECEIVE = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 private constant CANCEL = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");

    uint256 private payerKey = keyOf("payer");
    address private payer = vm.addr(payerKey);
    address private payee = accountOf("payee");
    NCNToken private token;

    function setUp() public {
        vm.warp(NOW);
        vm.chainId(CHAIN);
        token = Deploy.token(payer, 1000 ether);
    }

    function test_PermitAndAuthorizationsShareOneDomain() public view {
        (, string memory name, string memory version, uint256 chain, address verifier,,) = token.eip712Domain();
        vm.assertEq(name, "NCN");
        vm.assertEq(version, "1");
        vm.assertEq(chain, CHAIN);
        vm.assertEq(verifier, address(token));
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("NCN"),
                keccak256("1"),
                CHAIN,
                address(token)
            )
        );
        vm.assertEq(token.DOMAIN_SEPARATOR(), domain);
    }

    // transferWithAuthorization

    function test_AnyoneTransfersWhatThePayerSigned() public {
        Authorization memory authorization = newAuthorization();
        bytes memory signature = sign(payerKey, TRANSFER, authorization);
        vm.assertFalse(token.authorizationState(payer, authorization.nonce));
        vm.expectEmit(address(token));
        emit IERC3009.AuthorizationUsed(payer, authorization.nonce);
        transfer(authorization, signature);
        vm.assertEq(token.balanceOf(payee), 7 ether);
        vm.assertEq(token.balanceOf(payer), 993 ether);
        vm.assertTrue(token.authorizationState(payer, authorization.nonce));
    }

    /// Nonces are random, so one that is held back does not hold up the others.
    function test_AuthorizationsComeInAnyOrder() public {
        Authorization memory held = newAuthorization();
        Authorization memory quick = newAuthorization();
        quick.nonce = keccak256("quick");
        bytes memory signature = sign(payerKey, TRANSFER, held);
        transfer(quick, sign(payerKey, TRANSFER, quick));
        transfer(held, signature);
        vm.assertEq(token.balanceOf(payee), 14 ether);
    }

    function test_TransferRefusesAReplay() public {
        Authorization memory authorization = newAuthorization();
        bytes memory signature = sign(payerKey, TRANSFER, authorization);
        transfer(authorization, signature);
        expectError(ERC3009.ERC3009UsedAuthorization.selector, abi.encode(payer, authorization.nonce));
        transfer(authorization, signature);
    }

    /// Both kinds draw on one set of nonces.
    function test_ATransferUsesUpTheNonceOfAReceive() public {
        Authorization memory authorization = newAuthorization();
        bytes memory signature = sign(payerKey, RECEIVE, authorization);
        transfer(authorization, sign(payerKey, TRANSFER, authorization));
        expectError(ERC3009.ERC3009UsedAuthorization.selector, abi.encode(payer, authorization.nonce));
        vm.prank(payee);
        receiveIt(authorization, signature);
    }

    function test_TransferRefusesBeforeItsTime() public {
        Authorization memory authorization = newAuthorization();
        authorization.validAfter = NOW;
        bytes memory signature = sign(payerKey, TRANSFER, authorization);
        expectTimeError(authorization);
        transfer(authorization, signature);
        vm.warp(NOW + 1);
        transfer(authorization, signature);
    }

    function test_TransferRefusesAfterItsTime() public {
        Authorization memory authorization = newAuthorization();
        bytes memory signature = sign(payerKey, TRANSFER, authorization);
        vm.warp(authorization.validBefore);
        expectTimeError(authorization);
        transfer(authorization, signature);
        vm.warp(authorization.validBefore - 1);
        transfer(authorization, signature);
    }

    function test_TransferRefusesAnotherSigner() public {
        Authorization memory authorization = newAuthorization();
        bytes memory signature = sign(keyOf("thief"), TRANSFER, authorization);
        expectError(ERC3009.ERC3009InvalidSignature.selector);
        transfer(authorization, signature);
    }

    function test_TransferRefusesOtherTermsThanSigned() public {
        bytes memory signature = sign(payerKey, TRANSFER, newAuthorization());
        Authorization memory changed = newAuthorization();
        changed.to = accountOf("thief");
        refuse(changed, signature);
        changed = newAuthorization();
        changed.value += 1;
        refuse(changed, signature);
        changed = newAuthorization();
        changed.validAfter = 1;
        refuse(changed, signature);
        changed = newAuthorization();
        changed.validBefore += 1;
        refuse(changed, signature);
        changed = newAuthorization();
        changed.nonce = keccak256("another");
        refuse(changed, signature);
    }

    function test_TransferRefusesAHighS() public {
        Authorization memory authorization = newAuthorization();
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(payerKey, digestOf(TRANSFER, authorization));
        s = bytes32(CURVE_ORDER - uint256(s));
        expectError(ECDSA.ECDSAInvalidSignatureS.selector, abi.encode(s));
        transfer(authorization, abi.encodePacked(r, s, v == 27 ? uint8(28) : uint8(27)));
    }

    function test_TransferRefusesAnotherChain() public {
        Authorization memory authorization = newAuthorization();
        vm.chainId(CHAIN + 1);
        bytes memory signature = sign(payerKey, TRANSFER, authorization);
        vm.chainId(CHAIN);
        refuse(authorization, signature);
    }

    function test_TransferRefusesAnotherToken() public {
        Authorization memory authorization = newAuthorization();
        NCNToken other = Deploy.token(payer, 1000 ether);
        bytes32 digest = MessageHashUtils.toTypedDataHash(other.DOMAIN_SEPARATOR(), hashOf(TRANSFER, authorization));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(payerKey, digest);
        refuse(authorization, abi.encodePacked(r, s, v));
    }

    function test_TransferRefusesMoreThanThePayerHas() public {
        Authorization memory authorization = newAuthorization();
        authorization.value = 1001 ether;
        bytes memory signature = sign(payerKey, TRANSFER, authorization);
        bytes memory fields = abi.encode(payer, 1000 ether, 1001 ether);
        expectError(IERC20Errors.ERC20InsufficientBalance.selector, fields);
        transfer(authorization, signature);
        vm.assertFalse(token.authorizationState(payer, authorization.nonce));
    }

    // receiveWithAuthorization

    function test_ThePayeeReceives() public {
        Authorization memory authorization = newAuthorization();
        bytes memory signature = sign(payerKey, RECEIVE, authorization);
        vm.expectEmit(address(token));
        emit IERC3009.AuthorizationUsed(payer, authorization.nonce);
        vm.prank(payee);
        receiveIt(authorization, signature);
        vm.assertEq(token.balanceOf(payee), 7 ether);
        expectError(ERC3009.ERC3009UsedAuthorization.selector, abi.encode(payer, authorization.nonce));
        vm.prank(payee);
        receiveIt(authorization, signature);
    }

    /// Or the payment would arrive at a contract that does not notice it.
    function test_NobodyElseReceives() public {
        Authorization memory authorization = newAuthorization();
        bytes memory signature = sign(payerKey, RECEIVE, authorization);
        expectError(IERC20Errors.ERC20InvalidReceiver.selector, abi.encode(payee));
        vm.prank(payer);
        receiveIt(authorization, signature);
        refuse(authorization, signature);
    }

    function test_ReceiveRefusesOutOfItsTime() public {
        Authorization memory authorization = newAuthorization();
        authorization.validAfter = NOW;
        bytes memory signature = sign(payerKey, RECEIVE, authorization);
        expectTimeError(authorization);
        vm.prank(payee);
        receiveIt(authorization, signature);
        vm.warp(authorization.validBefore);
        expectTimeError(authorization);
        vm.prank(payee);
        receiveIt(authorization, signature);
    }

    function test_ReceiveRefusesTheSignatureOfATransfer() public {
        Authorization memory authorization = newAuthorization();
        bytes memory signature = sign(payerKey, TRANSFER, authorization);
        expectError(ERC3009.ERC3009InvalidSignature.selector);
        vm.prank(payee);
        receiveIt(authorization, signature);
    }

    // cancelAuthorization

    function test_ThePayerCancels() public {
        Authorization memory authorization = newAuthorization();
        bytes memory transferred = sign(payerKey, TRANSFER, authorization);
        bytes memory received = sign(payerKey, RECEIVE, authorization);
        vm.expectEmit(address(token));
        emit IERC3009Cancel.AuthorizationCanceled(payer, authorization.nonce);
        cancel(payerKey, authorization.nonce);
        vm.assertTrue(token.authorizationState(payer, authorization.nonce));

        bytes memory fields = abi.encode(payer, authorization.nonce);
        expectError(ERC3009.ERC3009UsedAuthorization.selector, fields);
        transfer(authorization, transferred);
        expectError(ERC3009.ERC3009UsedAuthorization.selector, fields);
        vm.prank(payee);
        receiveIt(authorization, received);
    }

    function test_NobodyElseCancels() public {
        bytes32 nonce = newAuthorization().nonce;
        uint256 thief = keyOf("thief");
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(thief, cancelDigest(nonce));
        expectError(ERC3009.ERC3009InvalidSignature.selector);
        token.cancelAuthorization(payer, nonce, v, r, s);
        // A nonce is the payer's own: the same one of somebody else says nothing.
        (v, r, s) = vm.sign(thief, cancelDigestOf(vm.addr(thief), nonce));
        token.cancelAuthorization(vm.addr(thief), nonce, v, r, s);
        vm.assertFalse(token.authorizationState(payer, nonce));
    }

    function newAuthorization() private view returns (Authorization memory) {
        return Authorization({
            from: payer, to: payee, value: 7 ether, validAfter: 0, validBefore: NOW + 1 hours, nonce: keccak256("nonce")
        });
    }

    function hashOf(bytes32 kind, Authorization memory authorization) private pure returns (bytes32) {
        return keccak256(abi.encode(kind, authorization));
    }

    function digestOf(bytes32 kind, Authorization memory authorization) private view returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(token.DOMAIN_SEPARATOR(), hashOf(kind, authorization));
    }

    function sign(uint256 key, bytes32 kind, Authorization memory authorization) private view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digestOf(kind, authorization));
        return abi.encodePacked(r, s, v);
    }

    function cancelDigest(bytes32 nonce) private view returns (bytes32) {
        return cancelDigestOf(payer, nonce);
    }

    function cancelDigestOf(address authorizer, bytes32 nonce) private view returns (bytes32) {
        bytes32 hash = keccak256(abi.encode(CANCEL, authorizer, nonce));
        return MessageHashUtils.toTypedDataHash(token.DOMAIN_SEPARATOR(), hash);
    }

    function cancel(uint256 key, bytes32 nonce) private {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, cancelDigest(nonce));
        token.cancelAuthorization(payer, nonce, v, r, s);
    }

    function refuse(Authorization memory authorization, bytes memory signature) private {
        expectError(ERC3009.ERC3009InvalidSignature.selector);
        transfer(authorization, signature);
    }

    function expectTimeError(Authorization memory authorization) private {
        bytes memory fields = abi.encode(authorization.validAfter, authorization.validBefore);
        expectError(ERC3009.ERC3009InvalidAuthorizationTime.selector, fields);
    }

    function transfer(Authorization memory authorization, bytes memory signature) private {
        (uint8 v, bytes32 r, bytes32 s) = parts(signature);
        token.transferWithAuthorization(
            authorization.from,
            authorization.to,
            authorization.value,
            authorization.validAfter,
            authorization.validBefore,
            authorization.nonce,
            v,
            r,
            s
        );
    }

    function receiveIt(Authorization memory authorization, bytes memory signature) private {
        (uint8 v, bytes32 r, bytes32 s) = parts(signature);
        token.receiveWithAuthorization(
            authorization.from,
            authorization.to,
            authorization.value,
            authorization.validAfter,
            authorization.validBefore,
            authorization.nonce,
            v,
            r,
            s
        );
    }

    function parts(bytes memory signature) private pure returns (uint8 v, bytes32 r, bytes32 s) {
        assembly ("memory-safe") {
            r := mload(add(signature, 32))
            s := mload(add(signature, 64))
            v := byte(0, mload(add(signature, 96)))
        }
    }
}
