"""Pay for AI inference on a decentralised network, and hold a receipt that anyone can check.

`connect` gives a `Client` whose calls block, `aconnect` an `AsyncClient` for asyncio. Amounts are whole numbers of the token's smallest unit, of which
a token has 10**18 (`TOKEN`). Every error of the network is an `NcnError`, which says whether another try may help and whether money has moved;
arguments of wrong types are a `TypeError`, and of wrong values a `ValueError`, before anything is sent.
"""

from ._client import AsyncClient, AsyncStream, Client, Stream, aconnect, connect
from ._errors import ErrorKind, NcnError
from ._keys import Signer, SpendPolicy
from ._settings import DEVNET, TOKEN, Channel, Contracts, Network, OnChain, Relayed, devnet_key
from ._types import Answer, ChannelInfo, Estimate, ModelInfo, Offer, Receipt, Restarted, verify_receipt

__all__ = [
    "DEVNET",
    "TOKEN",
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Channel",
    "ChannelInfo",
    "Client",
    "Contracts",
    "ErrorKind",
    "Estimate",
    "ModelInfo",
    "NcnError",
    "Network",
    "Offer",
    "OnChain",
    "Receipt",
    "Relayed",
    "Restarted",
    "Signer",
    "SpendPolicy",
    "Stream",
    "aconnect",
    "connect",
    "devnet_key",
    "verify_receipt",
]
