// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {NCNToken} from "../src/NCNToken.sol";
import {Test} from "./Test.sol";

contract NCNTokenTest is Test {
    bytes32 private constant PERMIT =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");

    uint256 private ownerKey = keyOf("owner");
    address private owner = vm.addr(ownerKey);
    address private other = accountOf("other");
    NCNToken private token = new NCNToken(owner, 1000 ether);

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
