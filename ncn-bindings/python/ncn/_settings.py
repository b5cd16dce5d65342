"""Which network, and how it is paid."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Optional, Sequence, Union

from . import _native
from ._core import core
from ._native import Contracts

__all__ = ["DEVNET", "TOKEN", "Channel", "Contracts", "Network", "OnChain", "Payment", "Relayed", "devnet_key", "key_file"]

TOKEN = 10**18
"""One token, in its smallest units."""


@dataclass(frozen=True)
class OnChain:
    """Pay each request by a transaction of the key's account, into escrow."""


@dataclass(frozen=True)
class Relayed:
    """Pay each request by a signature that the gateway brings to the chain: neither a chain nor gas is needed."""


@dataclass(frozen=True)
class Channel:
    """Pay each request by a voucher, out of the channel in this file, as `channel_open` wrote it."""

    path: str


Payment = Union[OnChain, Relayed, Channel]


@dataclass(frozen=True)
class Network:
    """A network: where it is called, and why it is trusted.

    `gateways` are URLs, of which the first that answers is taken; `rpc` are URLs of its chain. With a chain, `contracts` say which contracts on it are the
    network's; without one, `hash` says which network is trusted.
    """

    gateways: Sequence[str]
    rpc: Sequence[str] = ()
    contracts: Optional[Contracts] = None
    hash: Optional[str] = None
    confirmations: int = 1
    preset: Optional[_native.Network] = field(default=None, repr=False)

    @classmethod
    def devnet(cls, gateway: str = "http://127.0.0.1:50051", rpc: Optional[str] = "http://127.0.0.1:8545") -> Network:
        """`ncn devnet` on this machine. `rpc` is where it was told to serve its chain; None where it does not."""
        return cls([gateway], [rpc] if rpc else [], preset=core.Network.DEVNET())

    @classmethod
    def testnet(cls, gateways: Sequence[str], rpc: Sequence[str], contracts: Union[str, Contracts]) -> Network:
        """A network on a public test chain, where payments wait for 3 confirmations. `contracts` may be the JSON that `ncn contracts deploy` prints."""
        where = _contracts(contracts)
        return cls(gateways, rpc, where, preset=core.Network.TESTNET(where))

    def native(self) -> _native.Network:
        """The same as the native library takes it."""
        if self.preset is not None:
            return self.preset
        return core.Network.CUSTOM(self.contracts, self.hash, self.confirmations)


def _contracts(contracts: Union[str, Contracts]) -> Contracts:
    if isinstance(contracts, Contracts):
        return contracts
    addresses = json.loads(contracts)
    missing = [name for name in ("payment", "channels", "subnets", "slashing") if not isinstance(addresses.get(name), str)]
    if missing:
        raise ValueError(f"contracts: lack {', '.join(missing)}")
    return Contracts(**{name: addresses[name] for name in ("payment", "channels", "subnets", "slashing")})


DEVNET = Network.devnet()
"""`ncn devnet --rpc 127.0.0.1:8545` on this machine."""


def devnet_key(number: int = 0) -> _native.Key:
    """One of the keys of `ncn devnet`, which everybody knows."""
    return core.Key.DEVNET(number)


def key_file(path: str, password: Optional[str] = None) -> _native.Key:
    """A key in a file, as `ncn wallet new` writes it."""
    return core.Key.FILE(str(path), password)
