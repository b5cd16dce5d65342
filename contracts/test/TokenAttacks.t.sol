// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ExactTransfer} from "../src/ExactTransfer.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {Committee, Quote} from "../src/Messages.sol";
import {TokenVault} from "../src/TokenVault.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {Deploy} from "./Deploy.sol";
import {Authorisation, Fixture} from "./Fixture.sol";
import {FeeToken, HookToken, OpenToken, RefusingToken} from "./Tokens.sol";

/// Tokens that misbehave.
contract TokenAttacks is Fixture {
    HookToken private hooked = new HookToken();

    /// The same network, paid in another token.
    function use(OpenToken other) private {
        registry = Deploy.registry(other, owner, MINIMUM_STAKE, UNSTAKE_DELAY, 1, 1, treasury);
        payment = Deploy.payment(other, registry, treasury);
        other.mint(client, 1000 ether);
        vm.startPrank(client);
        other.approve(address(payment), type(uint256).max);
        other.approve(address(registry), type(uint256).max);
        vm.stopPrank();
    }

    function useHooked() private returns (Quote memory quote, bytes memory approvals) {
        use(hooked);
        committee = Committee({threshold: 1, members: addressesOf(first(1))});
        hooked.mint(vm.addr(keys[0]), MINIMUM_STAKE);
        vm.startPrank(vm.addr(keys[0]));
        hooked.approve(address(registry), MINIMUM_STAKE);
        registry.registerValidator(MINIMUM_STAKE);
        vm.stopPrank();
        // The token itself is the client and gateway of a second escrow, so that its calls would be let through.
        quote = newQuote();
        quote.client = address(hooked);
        quote.gateway = address(hooked);
        hooked.mint(address(hooked), 100 ether);
        vm.prank(address(hooked));
        hooked.approve(address(payment), type(uint256).max);
        initiate(quote);
        approvals = approve(digestOf(quote), keys[0]);
    }

    function assertHookWasRefused() private view {
        vm.assertFalse(hooked.succeeded());
        vm.assertEq(
            keccak256(hooked.answer()),
            keccak256(abi.encodeWithSelector(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector))
        );
    }

    function test_FeeOnTransfer() public {
        FeeToken fee = new FeeToken();
        use(fee);
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(9.9 ether, 10 ether));
        initiate(newQuote());
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(99 ether, 100 ether));
        vm.prank(client);
        registry.registerValidator(100 ether);
        Quote memory quote = newQuote();
        Authorisation memory a = authorise(clientKey, fee, address(payment), 10 ether, quote.expiry, hashOf(quote));
        expectError(ExactTransfer.ShortTransfer.selector, abi.encode(9.9 ether, 10 ether));
        relay(quote, a);
        vm.assertEq(fee.balanceOf(client), 1000 ether);
    }

    function test_TokenThatSaysNo() public {
        RefusingToken refusing = new RefusingToken();
        use(refusing);
        Quote memory quote = newEscrow();
        refusing.refuse();
        vm.expectEmit(address(payment));
        emit TokenVault.PaymentDeferred(client, 10 ether);
        vm.prank(gateway);
        payment.markRequestFailed(quote, consentOf(quote));
        vm.assertEq(payment.owed(client), 10 ether);
        expectError(SafeERC20.SafeERC20FailedOperation.selector, abi.encode(refusing));
        payment.withdraw(client);
        vm.assertEq(payment.owed(client), 10 ether);
        quote.requestId = keccak256("another request");
        expectError(SafeERC20.SafeERC20FailedOperation.selector, abi.encode(refusing));
        initiate(quote);
    }

    function test_ReentrantInitiate() public {
        (Quote memory inner,) = useHooked();
        inner.requestId = keccak256("another request");
        hooked.hook(address(payment), abi.encodeCall(payment.initiateInferenceRequest, (inner)));
        newEscrow();
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(payment)), 20 ether);
    }

    function test_ReentrantInitiateWithAuthorisation() public {
        (Quote memory inner,) = useHooked();
        Quote memory quote = newQuote();
        Authorisation memory a = authorise(clientKey, hooked, address(payment), 10 ether, quote.expiry, hashOf(quote));
        // From an authorised escrow into another one, and into a refund of the first.
        hooked.hook(address(payment), abi.encodeCall(payment.initiateWithAuthorization, (inner, 27, 0, 0)));
        relay(quote, a);
        assertHookWasRefused();
        vm.prank(gateway);
        payment.markRequestFailed(quote, consentOf(quote));
        quote.requestId = keccak256("another request");
        a = authorise(clientKey, hooked, address(payment), 10 ether, quote.expiry, hashOf(quote));
        hooked.hook(address(payment), abi.encodeCall(payment.markRequestFailed, (inner, consentOf(inner))));
        relay(quote, a);
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(payment)), 20 ether);
    }

    function test_ReentrantComplete() public {
        (Quote memory inner, bytes memory approvals) = useHooked();
        Quote memory quote = newEscrow();
        bytes memory call = abi.encodeCall(
            payment.completeInferenceRequest, (inner, committee, STOP, contributionOf(inner), approvals)
        );
        hooked.hook(address(payment), call);
        complete(quote, approve(digestOf(quote), keys[0]));
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(payment)), 10 ether);
    }

    function test_ReentrantMarkFailed() public {
        (Quote memory inner,) = useHooked();
        Quote memory quote = newEscrow();
        hooked.hook(address(payment), abi.encodeCall(payment.markRequestFailed, (inner, consentOf(inner))));
        vm.prank(gateway);
        payment.markRequestFailed(quote, consentOf(quote));
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(payment)), 10 ether);
    }

    function test_ReentrantRefund() public {
        (Quote memory inner,) = useHooked();
        Quote memory quote = newEscrow();
        vm.warp(refundableAt(quote));
        hooked.hook(address(payment), abi.encodeCall(payment.handleExpiredRequest, (inner)));
        payment.handleExpiredRequest(quote);
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(payment)), 10 ether);
    }

    /// The state is written before a token moves, so a hook sees the request as ended even without the guard.
    function test_StateIsFinalBeforeTokensMove() public {
        useHooked();
        Quote memory quote = newEscrow();
        hooked.hook(address(payment), abi.encodeCall(payment.requestState, (client, quote.requestId)));
        complete(quote, approve(digestOf(quote), keys[0]));
        vm.assertTrue(hooked.succeeded());
        vm.assertEq(abi.decode(hooked.answer(), (bytes32)), payment.COMPLETED());
    }

    /// Without the guard, tokens that arrive for the inner registration would count for the outer one as well.
    function test_ReentrantRegister() public {
        use(hooked);
        hooked.mint(address(hooked), MINIMUM_STAKE);
        vm.prank(address(hooked));
        hooked.approve(address(registry), type(uint256).max);
        hooked.hook(address(registry), abi.encodeCall(registry.registerValidator, (MINIMUM_STAKE)));
        vm.prank(client);
        registry.registerValidator(MINIMUM_STAKE);
        assertHookWasRefused();
        vm.assertEq(registry.stakeOf(address(hooked)), 0);
    }

    function test_ReentrantWithdraw() public {
        use(hooked);
        hooked.mint(address(hooked), MINIMUM_STAKE);
        vm.startPrank(address(hooked));
        hooked.approve(address(registry), type(uint256).max);
        registry.registerValidator(MINIMUM_STAKE);
        registry.requestUnstake();
        vm.stopPrank();
        vm.startPrank(client);
        registry.registerValidator(MINIMUM_STAKE);
        registry.requestUnstake();
        vm.warp(NOW + 1 + UNSTAKE_DELAY);
        hooked.hook(address(registry), abi.encodeCall(registry.withdrawStake, (address(hooked))));
        registry.withdrawStake(client);
        assertHookWasRefused();
        vm.assertEq(hooked.balanceOf(address(registry)), MINIMUM_STAKE);
    }
}
