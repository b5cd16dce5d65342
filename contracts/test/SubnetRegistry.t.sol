// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ExactTransfer} from "../src/ExactTransfer.sol";
import {NCNToken} from "../src/NCNToken.sol";
import {SubnetRegistry} from "../src/SubnetRegistry.sol";
import {Deploy} from "./Deploy.sol";
import {Test} from "./Test.sol";
import {FeeToken, HookToken, OpenToken, RefusingToken} from "./Tokens.sol";

contract SubnetRegistryTest is Test {
    uint128 private constant FEE = 5 ether;

    address private owner = accountOf("owner");
    address private treasury = accountOf("treasury");
    address private gateway = accountOf("gateway");
    address private other = accountOf("other");
    NCNToken private token;
    SubnetRegistry private subnets;

    function setUp() public {
        token = Deploy.token(owner, 1000 ether);
        subnets = Deploy.subnets(token, treasury, owner, FEE);
        fund(gateway);
        fund(other);
    }

    function fund(address account) private {
        vm.prank(owner);
        token.transfer(account, 100 ether);
        vm.prank(account);
        token.approve(address(subnets), type(uint256).max);
    }

    function create(address account, string memory name) private returns (bytes32) {
        vm.prank(account);
        return subnets.createSubnet(name);
    }

    function idOf(address account, string memory name) private pure returns (bytes32) {
        return keccak256(abi.encode(account, name));
    }

    function ofLength(uint256 length) private pure returns (string memory) {
        bytes memory name = new bytes(length);
        for (uint256 i = 0; i < length; ++i) {
            name[i] = "n";
        }
        return string(name);
    }

    function test_ConstructorSetsEverything() public {
        vm.assertEq(address(subnets.token()), address(token));
        vm.assertEq(subnets.treasury(), treasury);
        vm.assertEq(subnets.owner(), owner);
        vm.assertEq(subnets.creationFee(), FEE);
        expectError(SubnetRegistry.ZeroTreasury.selector);
        Deploy.subnets(token, address(0), owner, FEE);
    }

    // createSubnet

    function test_CreateRegistersAndPaysTheTreasury() public {
        bytes32 id = idOf(gateway, "chat");
        vm.assertEq(subnets.ownerOf(id), address(0));
        vm.expectEmit(address(subnets));
        emit SubnetRegistry.SubnetCreated(id, gateway, "chat", FEE);
        vm.assertEq(create(gateway, "chat"), id);
        vm.assertEq(subnets.ownerOf(id), gateway);
        vm.assertEq(token.balanceOf(treasury), FEE);
        vm.assertEq(token.balanceOf(gateway), 100 ether - FEE);
        vm.assertEq(token.balanceOf(address(subnets)), 0);
    }

    function test_CreateRefusesASecondTime() public {
        bytes32 id = create(gateway, "chat");
        expectError(SubnetRegistry.AlreadyCreated.selector, abi.encode(id));
        create(gateway, "chat");
        vm.assertEq(token.balanceOf(treasury), FEE);
    }

    function test_NobodyTakesAnothersName() public {
        bytes32 theirs = create(other, "chat");
        bytes32 id = create(gateway, "chat");
        vm.assertNotEq(id, theirs);
        vm.assertEq(subnets.ownerOf(theirs), other);
        vm.assertEq(subnets.ownerOf(id), gateway);
    }

    function test_CreateRefusesNamesOfTheWrongLength() public {
        expectError(SubnetRegistry.InvalidName.selector, abi.encode(0));
        create(gateway, "");
        string memory name = ofLength(65);
        expectError(SubnetRegistry.InvalidName.selector, abi.encode(65));
        create(gateway, name);
        create(gateway, ofLength(64));
        create(gateway, "n");
    }

    function test_CreateNeedsAnApproval() public {
        vm.prank(gateway);
        token.approve(address(subnets), FEE - 1);
        bytes memory fields = abi.encode(address(subnets), FEE - 1, FEE);
        expectError(IERC20Errors.ERC20InsufficientAllowance.selector, fields);
        create(gateway, "chat");
        vm.assertEq(subnets.ownerOf(idOf(gateway, "chat")), address(0));
    }

    function test_AFeeOfNothingMovesNothing() public {
        vm.prank(owner);
        subnets.setCreationFee(0);
        vm.prank(gateway);
        token.approve(address(subnets), 0);
        vm.expectEmit(address(subnets));
        emit SubnetRegistry.SubnetCreated(idOf(gateway, "chat"), gateway, "chat", 0);
        create(gateway, "chat");
        vm.assertEq(token.balanceOf(treasury), 0);
    }

    function test_TheTreasuryDoesNotPayItself() public {
        vm.expectEmit(address(subnets));
        emit SubnetRegistry.SubnetCreated(idOf(treasury, "chat"), treasury, "chat", 0);
        create(treasury, "chat");
    }

    // setCreationFee

    function test_OwnerSetsTheFee() public {
        vm.expectEmit(address(subnets));
        emit SubnetRegistry.CreationFeeChanged(7 ether);
        vm.prank(owner);
        subnets.setCreationFee(7 ether);
        create(gateway, "chat");
        vm.assertEq(token.balanceOf(treasury), 7 ether);
    }

    function test_NobodyElseSetsTheFee() public {
        expectError(Ownable.OwnableUnauthorizedAccount.selector, abi.encode(gateway));
        vm.prank(gateway);
        subnets.setCreationFee(0);
    }

    // Tokens that misbehave

    function test_TokenWithATransferFee() public {
        deployOver(new FeeToken());
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(FEE - FEE / 100, FEE));
        create(gateway, "chat");
        vm.assertEq(subnets.ownerOf(idOf(gateway, "chat")), address(0));
    }

    function test_TokenThatRefuses() public {
        RefusingToken refusing = new RefusingToken();
        deployOver(refusing);
        refusing.refuse();
        expectError(SafeERC20.SafeERC20FailedOperation.selector, abi.encode(address(refusing)));
        create(gateway, "chat");
    }

    /// Paid once, two subnets.
    function test_TokenThatCallsBack() public {
        HookToken hooked = new HookToken();
        deployOver(hooked);
        hooked.hook(address(subnets), abi.encodeCall(SubnetRegistry.createSubnet, ("second")));
        create(gateway, "chat");
        vm.assertFalse(hooked.succeeded());
        bytes memory refusal = abi.encodeWithSelector(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        vm.assertEq(keccak256(hooked.answer()), keccak256(refusal));
        vm.assertEq(subnets.ownerOf(idOf(gateway, "chat")), gateway);
        vm.assertEq(subnets.ownerOf(idOf(address(hooked), "second")), address(0));
        vm.assertEq(hooked.balanceOf(treasury), FEE);
    }

    function deployOver(OpenToken strange) private {
        subnets = Deploy.subnets(strange, treasury, owner, FEE);
        strange.mint(gateway, 100 ether);
        vm.prank(gateway);
        strange.approve(address(subnets), type(uint256).max);
    }
}
