"""Errors of the network, and what to do about them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from . import _native
from ._native import ErrorKind

__all__ = ["ErrorKind", "NcnError", "translated"]


class NcnError(Exception):
    """Why there is no answer.

    `kind` says what to do about it, `retryable` whether the same call may succeed on another try, and `paid` whether money has been paid out or is
    still held, or nothing proves that it is not.
    """

    def __init__(self, reason: str, kind: ErrorKind, retryable: bool = False, paid: bool = False) -> None:
        super().__init__(reason)
        self.kind = kind
        self.retryable = retryable
        self.paid = paid


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the native library as those of this package."""
    try:
        yield
    except _native.NcnError.Failed as error:
        raise NcnError(error.reason, error.kind, error.retryable, error.paid) from None
