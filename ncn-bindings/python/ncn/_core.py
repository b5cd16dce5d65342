"""What is generated, for expressions: its types do not say that a variant of a union is one of that union."""

from typing import Any

from . import _native

core: Any = _native
