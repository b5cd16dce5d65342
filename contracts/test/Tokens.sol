// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

/// Tokens that a careful contract has to survive. What they sign is in the same domain as the real one's.
abstract contract OpenToken is ERC20("Test", "TEST"), EIP712("NCN", "1"), ERC3009 {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }
}

/// Keeps a hundredth of each transfer.
contract FeeToken is OpenToken {
    function _update(address from, address to, uint256 amount) internal override {
        if (from != address(0) && to != address(0)) {
            super._update(from, address(this), amount / 100);
            amount -= amount / 100;
        }
        super._update(from, to, amount);
    }
}

/// Says no instead of reverting, once it is told to.
contract RefusingToken is OpenToken {
    bool public refusing;

    function refuse() external {
        refusing = true;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        return !refusing && super.transfer(to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) public override returns (bool) {
        return !refusing && super.transferFrom(from, to, amount);
    }
}

/// Calls somebody in the middle of its next transfer, like a token with hooks would, and keeps what came of it.
contract HookToken is OpenToken {
    address private _target;
    bytes private _call;
    bool public succeeded;
    bytes public answer;

    function hook(address target, bytes calldata call) external {
        (_target, _call) = (target, call);
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        address target = _target;
        if (target == address(0)) return;
        _target = address(0);
        (succeeded, answer) = target.call(_call);
    }
}

/// Does not pay some accounts, in one of the ways that there are.
contract BlockListToken is OpenToken {
    enum Refusal {
        None,
        Reverts,
        SaysNo,
        SaysNonsense,
        SaysTooLittle,
        BurnsAllGas,
        RevertsAtLength
    }

    mapping(address account => Refusal) public refusals;

    error Blocked(address account);

    function refuse(address account, Refusal refusal) external {
        refusals[account] = refusal;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        Refusal refusal = refusals[to];
        if (refusal == Refusal.None) return super.transfer(to, amount);
        if (refusal == Refusal.Reverts) revert Blocked(to);
        if (refusal == Refusal.SaysNo) return false;
        assembly ("memory-safe") {
            switch refusal
            case 3 {
                mstore(0x00, 2)
                return(0x00, 0x20)
            }
            case 4 {
                mstore(0x00, 1)
                return(0x00, 0x1f)
            }
            case 5 { invalid() }
            default { revert(0x00, 100000) }
        }
    }
}

/// Answers nothing to a transfer, as some old tokens do.
contract SilentToken is OpenToken {
    function transfer(address to, uint256 amount) public override returns (bool) {
        super.transfer(to, amount);
        assembly ("memory-safe") {
            return(0x00, 0x00)
        }
    }
}
