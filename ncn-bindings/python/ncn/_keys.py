"""What a program implements itself: keys that only it can use, and a word on what is paid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Callable, Union

from . import _native
from ._core import core
from ._types import Offer

__all__ = ["Signer", "SpendPolicy", "native_policy", "native_signer"]

SpendPolicy = Callable[[Offer], bool]
"""Says whether an offer may be paid. It is called in a thread of its own; an exception is a no."""


class Signer(ABC):
    """A key that only its owner can use, such as one in a hardware wallet. Its methods are called in threads of their own, and may take their time."""

    @abstractmethod
    def address(self) -> str:
        """The key's address: `0x` and 40 hexadecimal digits."""

    @abstractmethod
    def sign_digest(self, digest: bytes) -> bytes:
        """Signs a digest of 32 bytes as it is: r, s and v (27 or 28), 65 bytes."""


class _NativeSigner(_native.Signer):
    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def address(self) -> str:
        try:
            return self._signer.address()
        except Exception as error:
            raise _native.SignerError.Failed(f"{type(error).__name__}: {error}") from error

    def sign_digest(self, digest: bytes) -> bytes:
        try:
            return bytes(self._signer.sign_digest(digest))
        except Exception as error:
            raise _native.SignerError.Failed(f"{type(error).__name__}: {error}") from error


class _NativePolicy(_native.SpendPolicy):
    def __init__(self, policy: SpendPolicy) -> None:
        self._policy = policy

    def may_pay(self, offer: Offer) -> bool:
        try:
            return bool(self._policy(offer))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise _native.NcnError.Failed(_native.ErrorKind.NOT_ALLOWED, reason, False, False) from error


def native_signer(key: Union[str, Signer, _native.Key]) -> _native.Key:
    """A key as the native library takes it."""
    if isinstance(key, str):
        return core.Key.SECRET(key)
    if isinstance(key, Signer):
        return core.Key.FOREIGN(_NativeSigner(key))
    if isinstance(key, _native.Key):
        return key
    raise TypeError(f"key: is a {type(key).__name__}: give a secret key's hexadecimal digits, a Signer, or devnet_key(n)")


def native_policy(policy: SpendPolicy) -> _native.SpendPolicy:
    """A policy as the native library takes it."""
    if not callable(policy):
        raise TypeError("policy: is not callable: give a function of an Offer")
    return _NativePolicy(policy)
