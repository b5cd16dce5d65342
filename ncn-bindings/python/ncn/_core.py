"""What is generated, for expressions: its types do not say that a variant of a union is one of that union."""

from typing import Any

from . import _native

core: Any = _native


def _disarm(kind: Any) -> None:
    """Has a collected object refuse to be used: what it stood for is freed then, and the collector may run other code of its cycle after that."""
    free = kind.__del__

    def finalize(self: Any) -> None:
        free(self)
        self.__dict__.pop("_handle", None)

    kind.__del__ = finalize


for _kind in (_native.Client, _native.Running):
    _disarm(_kind)


def is_there(native: Any) -> bool:
    """Whether it can be used still."""
    return "_handle" in native.__dict__
