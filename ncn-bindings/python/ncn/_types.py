"""Answers and receipts, and values from what programs in Python have."""

from __future__ import annotations

import html
import io
import sys
from typing import Any, Dict, List, Mapping, Optional, Union

from . import _native
from ._core import core
from ._errors import translated
from ._native import ChannelInfo, Estimate, ModelInfo, Offer, Receipt

__all__ = [
    "Answer",
    "ChannelInfo",
    "Estimate",
    "File",
    "ModelInfo",
    "Offer",
    "Receipt",
    "Restarted",
    "from_native",
    "to_native",
    "verify_receipt",
]

_DTYPES = {"float32": "F32", "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8", "bool": "BOOL"}
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "audio/wav"), (b"%PDF", "application/pdf"))


class File(bytes):
    """A file's bytes, and what kind of file it is (`media_type`)."""

    media_type: str

    def __new__(cls, data: bytes, media_type: str) -> File:
        file = super().__new__(cls, data)
        file.media_type = media_type
        return file


def _media_type(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), "application/octet-stream")


def to_native(name: str, value: Any) -> _native.Value:
    """A value as the native library takes it: of a str, bytes, a numpy array, or a PIL image."""
    if isinstance(value, str):
        return core.Value.TEXT(value)
    if isinstance(value, File):
        return core.Value.FILE(value.media_type, bytes(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        return core.Value.FILE(_media_type(data), data)
    # Neither library is needed to send a value of the other, so neither is imported.
    numpy, image = sys.modules.get("numpy"), sys.modules.get("PIL.Image")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        array = numpy.asarray(value)
        dtype = _DTYPES.get(array.dtype.name)
        if dtype is None:
            raise TypeError(f"input `{name}`: a tensor of {array.dtype.name}: use one of {', '.join(_DTYPES)}")
        data = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
        return core.Value.TENSOR(core.DataType[dtype], list(array.shape), data)
    if image is not None and isinstance(value, image.Image):
        png = io.BytesIO()
        value.save(png, "PNG")
        return core.Value.FILE("image/png", png.getvalue())
    raise TypeError(f"input `{name}`: is a {type(value).__name__}: give a str, bytes, a numpy array or a PIL image")


def from_native(value: Any) -> Any:
    """A value as programs use it: a str, a File, or a numpy array where numpy is installed, and a nested list where it is not."""
    if value.is_TEXT():
        return value.text
    if value.is_FILE():
        return File(value.data, value.media_type)
    return _tensor(value)


def _tensor(value: Any) -> Any:
    try:
        import numpy
    except ImportError:
        import array

        code = {"F32": "f", "I32": "i", "I64": "q", "I8": "b", "U8": "B", "BOOL": "B"}[value.dtype.name]
        flat = array.array(code, value.data)
        if sys.byteorder == "big":
            flat.byteswap()
        return _nested(flat.tolist(), list(value.shape))
    dtype = {"F32": "<f4", "I32": "<i4", "I64": "<i8", "I8": "i1", "U8": "u1", "BOOL": "?"}[value.dtype.name]
    return numpy.frombuffer(value.data, dtype).reshape(value.shape)


def _nested(flat: List[Any], shape: List[int]) -> Any:
    if not shape:
        return flat[0]
    # Without a number in it, a list of a thousand million empty ones says no more than an empty one.
    if len(shape) == 1 or not flat:
        return flat
    step = len(flat) // shape[0]
    return [_nested(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


class Restarted:
    """In the place of a part: the parts so far are void, the output begins anew."""

    def __repr__(self) -> str:
        return "Restarted()"


class Answer:
    """A verified answer: its output by name, what it cost, and the receipt that proves it."""

    def __init__(self, native: _native.Answer) -> None:
        self.request_id: str = native.request_id
        self.output: Dict[str, Any] = {name: from_native(value) for name, value in native.output.items()}
        self.cost: int = native.cost
        self.finish: str = native.finish
        self.input_units: int = native.input_units
        self.output_units: int = native.output_units
        self.steps: Dict[str, int] = {timing.step: timing.micros for timing in native.steps}
        self.receipt: Receipt = native.receipt

    def __getitem__(self, name: str) -> Any:
        return self.output[name]

    def text(self, name: str = "text") -> str:
        """The text of this name. A KeyError when there is none, a TypeError when it is no text."""
        value = self.output[name]
        if not isinstance(value, str):
            raise TypeError(f"output `{name}`: is no text")
        return value

    def __repr__(self) -> str:
        output = ", ".join(f"{name}={_short(value)}" for name, value in self.output.items())
        return f"Answer({output}; cost={self.cost}, request {self.request_id[:10]}..)"

    def _repr_html_(self) -> str:
        cells = [(name, _short(value, 2_000)) for name, value in self.output.items()]
        receipt = self.receipt
        cells += [
            ("cost", f"{self.cost / 10**18:.6f} of at most {receipt.total / 10**18:.6f}"),
            ("receipt", f"request {self.request_id}, approved by {receipt.approvals} validators of network {receipt.network}"),
        ]
        rows = "".join(f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{html.escape(text)}</td></tr>" for name, text in cells)
        return f"<table>{rows}</table>"


def _short(value: Any, most: int = 60) -> str:
    if isinstance(value, File):
        return f"{value.media_type}, {len(value)} bytes"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def verify_receipt(receipt: Union[str, bytes, Receipt], network: Optional[str] = None) -> Receipt:
    """Checks a receipt, offline: that every party signed what it says, and that enough validators of its network approved it.

    Without `network`, the hash of the network to trust, the one that the receipt states is taken: compare `.network` of the result. Raises an NcnError
    that says which part is wrong.
    """
    if isinstance(receipt, Receipt):
        receipt = receipt.json
    if isinstance(receipt, bytes):
        receipt = receipt.decode()
    with translated():
        return _native.verify_receipt(receipt, network)


def inputs_to_native(inputs: Mapping[str, Any]) -> Dict[str, _native.Value]:
    """All inputs of an order."""
    return {name: to_native(name, value) for name, value in inputs.items()}
