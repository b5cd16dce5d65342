"""Clients: one whose calls block, and one for asyncio."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import socket
import threading
import weakref
from typing import Any, AsyncIterator, Callable, Coroutine, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

from . import _native
from ._core import core, is_there
from ._errors import translated
from ._keys import Signer, SpendPolicy, native_policy, native_signer
from ._settings import DEVNET, Channel, Network, OnChain, Payment, Relayed, devnet_key
from ._types import Answer, ChannelInfo, Estimate, ModelInfo, Receipt, Restarted, from_native, inputs_to_native

__all__ = ["AsyncClient", "AsyncStream", "Client", "Stream", "aconnect", "connect"]

T = TypeVar("T")
Part = Union[str, Dict[str, Any], Restarted]
Key = Union[str, Signer, _native.Key]

# How long a blocking stream waits before it lets Python look for signals.
_SLICE_MILLIS = 20
# How long the end of the process is put off, until the gateways have heard of what it gives up.
_END_MILLIS = 2_000


class _Loop:
    """An event loop in a thread of its own, for calls that block: they work beside any other loop, and Ctrl-C ends them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: Optional[int] = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            # A fork takes no thread along.
            if self._loop is None or self._owner != os.getpid():
                self._loop, self._owner = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="ncn", daemon=True).start()
            return self._loop

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(call, self._started())
        try:
            return future.result()
        except BaseException:
            # Also KeyboardInterrupt, while it waits: nobody wants the result any more.
            future.cancel()
            raise

    def end(self) -> None:
        """Gives up what still runs."""
        if self._loop is None or self._owner != os.getpid():
            return

        async def give_up() -> None:
            calls = asyncio.all_tasks() - {asyncio.current_task()}
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

        ending = asyncio.run_coroutine_threadsafe(give_up(), self._loop)
        try:
            ending.result(_END_MILLIS / 1_000)
        except Exception:
            ending.cancel()


_LOOP = _Loop()
_STREAMS: "weakref.WeakSet[AsyncStream]" = weakref.WeakSet()


@atexit.register
def _end() -> None:
    try:
        for stream in list(_STREAMS):
            stream._give_up()
        _LOOP.end()
    finally:
        # Whatever happens before it: a thread that calls an interpreter which has ended takes the process down.
        _native.shut_down(_END_MILLIS)


def _connection(
    network: Network, key: Optional[Key], payment: Payment, max_price: Optional[int], timeout: Optional[int], policy: Optional[SpendPolicy]
) -> _native.Connection:
    if not isinstance(network, Network):
        raise TypeError(f"network: is a {type(network).__name__}: give a Network, such as DEVNET")
    if isinstance(payment, OnChain):
        pays = core.Payment.ON_CHAIN()
    elif isinstance(payment, Relayed):
        pays = core.Payment.RELAYED()
    elif isinstance(payment, Channel):
        pays = core.Payment.CHANNEL(str(payment.path))
    else:
        raise TypeError(f"payment: is a {type(payment).__name__}: give OnChain(), Relayed() or Channel(path)")
    preset = network.native()
    if key is None:
        if not preset.is_DEVNET():
            raise ValueError("key: is missing: give the client's key")
        key = devnet_key()
    if max_price is None and preset.is_DEVNET():
        # Tokens of a devnet are worth nothing.
        max_price = 10**18
    return _native.Connection(
        gateways=list(network.gateways),
        network=preset,
        key=native_signer(key),
        payment=pays,
        rpc=list(network.rpc),
        max_price=_amount("max_price", max_price),
        timeout=timeout,
        policy=None if policy is None else native_policy(policy),
    )


def _amount(name: str, amount: Optional[int]) -> Optional[int]:
    if amount is None:
        return None
    if not isinstance(amount, int) or isinstance(amount, bool):
        raise TypeError(f"{name}: is a {type(amount).__name__}: amounts are whole numbers of the smallest unit, never floats")
    if not 0 <= amount < 2**128:
        raise ValueError(f"{name}: {amount} is no amount")
    return amount


def _order(
    model: str,
    inputs: Optional[Mapping[str, Any]],
    named: Mapping[str, Any],
    parameters: Optional[Mapping[str, Any]],
    max_price: Optional[int],
    timeout: Optional[int],
) -> _native.Order:
    if not isinstance(model, str):
        raise TypeError(f"model: is a {type(model).__name__}: give the model's name")
    return _native.Order(
        model=model,
        inputs=inputs_to_native({**(inputs or {}), **named}),
        parameters=json.dumps(parameters or {}),
        max_price=_amount("max_price", max_price),
        timeout=timeout,
    )


def _part(event: Any, text_only: bool) -> Part:
    if event.is_RESTARTED():
        return Restarted()
    values = {name: from_native(value) for name, value in event.values.items()}
    if text_only:
        # Models say more than that, such as why they end.
        return values.get("text", "")
    return values


def _ended(answer: Optional[Answer]) -> Answer:
    if answer is None:
        raise ValueError("stream: was closed before its end")
    return answer


class AsyncStream:
    """The parts of an output as they come: texts of a chat, or values by name. Iterate over it; afterwards `answer` is the verified answer.

    It starts with the first part that is asked for. Closing it before its end cancels the request.
    """

    def __init__(self, start: Callable[[], Coroutine[Any, Any, _native.Running]], text_only: bool) -> None:
        self._start: Optional[Callable[[], Coroutine[Any, Any, _native.Running]]] = start
        self._running: Optional[_native.Running] = None
        self._is_starting = self._is_waiting = self._is_closed = False
        # A byte comes to it when there may be another part.
        self._wakeups: Optional[socket.socket] = None
        self._text_only = text_only
        self.answer: Optional[Answer] = None
        _STREAMS.add(self)

    def __aiter__(self) -> AsyncIterator[Part]:
        return self

    async def _begun(self) -> Optional[_native.Running]:
        if self._is_starting:
            raise RuntimeError("stream: is iterated over elsewhere")
        if self._start is not None:
            start, self._start = self._start, None
            self._is_starting = True
            try:
                running = await start()
            finally:
                self._is_starting = False
            if self._is_closed:
                running.give_up()
                return None
            self._running = running
        return self._running

    async def _next(self, running: _native.Running) -> Any:
        """The next event; None after the end."""
        loop = asyncio.get_running_loop()
        while True:
            waited: Any = running.try_next()
            if waited.is_NEXT():
                return waited.event
            if waited.is_OVER():
                return None
            if self._wakeups is not None:
                await loop.sock_recv(self._wakeups, 64)
                continue
            descriptor = running.wakeups()
            if descriptor is None:
                return await running.next()
            self._wakeups = socket.socket(fileno=descriptor)
            self._wakeups.setblocking(False)

    async def __anext__(self) -> Part:
        if self._is_waiting:
            raise RuntimeError("stream: is iterated over elsewhere")
        self._is_waiting = True
        try:
            return await self._advance()
        finally:
            self._is_waiting = False
            if self._running is None:
                self._close_wakeups()

    async def _advance(self) -> Part:
        try:
            with translated():
                running = await self._begun()
                if running is None:
                    raise StopAsyncIteration
                try:
                    event = await self._next(running)
                except core.NcnError:
                    self._keep(running.answer())
                    raise
        except BaseException:
            self._give_up()
            raise
        if event is not None and not event.is_FINISHED():
            return _part(event, self._text_only)
        if event is not None:
            self._keep(event.answer)
        self._running = None
        raise StopAsyncIteration

    def _give_up(self) -> None:
        # A traceback may refer to what waits for the next part: that it is not referred to here any more is not enough.
        running, self._running = self._running, None
        if running is not None and is_there(running):
            running.give_up()
        if not self._is_waiting:
            # What waits has heard of it, and closes it.
            self._close_wakeups()

    def _close_wakeups(self) -> None:
        wakeups, self._wakeups = self._wakeups, None
        if wakeups is not None:
            wakeups.close()

    def __del__(self) -> None:
        self._close_wakeups()

    def _keep(self, answer: Optional[_native.Answer]) -> None:
        self.answer = None if answer is None else Answer(answer)

    async def finish(self) -> Answer:
        """The verified answer, without the parts that are left."""
        async for _ in self:
            pass
        return _ended(self.answer)

    async def cancel(self) -> None:
        """Has the request end now: what was delivered until then is paid for, and is the answer."""
        running = self._running
        with translated():
            if running is not None:
                await running.cancel()
            elif self._is_starting:
                # Nothing was delivered yet.
                self._close()

    def _close(self) -> None:
        self._start, self._is_closed = None, True
        self._give_up()

    async def aclose(self) -> None:
        """Gives the request up, if it has no end yet."""
        self._close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Stream:
    """The same in a thread that waits."""

    def __init__(self, stream: AsyncStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Part]:
        return self

    def __next__(self) -> Part:
        stream = self._stream
        try:
            with translated():
                running = _LOOP.run(stream._begun()) if stream._start is not None or stream._is_starting else stream._running
                while running is not None:
                    try:
                        waited: Any = running.next_within(_SLICE_MILLIS)
                    except core.NcnError:
                        stream._keep(running.answer())
                        raise
                    if waited.is_NOTHING():
                        if stream._running is not running:
                            # Another thread has closed it.
                            break
                        continue
                    if waited.is_OVER():
                        break
                    if waited.event.is_FINISHED():
                        stream._keep(waited.event.answer)
                        break
                    return _part(waited.event, stream._text_only)
        except BaseException:
            stream._give_up()
            raise
        stream._running = None
        raise StopIteration

    @property
    def answer(self) -> Optional[Answer]:
        """The verified answer, once it is there."""
        return self._stream.answer

    def finish(self) -> Answer:
        """The verified answer, without the parts that are left."""
        for _ in self:
            pass
        return _ended(self.answer)

    def cancel(self) -> None:
        """Has the request end now: what was delivered until then is paid for, and is the answer."""
        _LOOP.run(self._stream.cancel())

    def close(self) -> None:
        """Gives the request up, if it has no end yet."""
        self._stream._close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """A way to the network for asyncio: see `aconnect`. A call whose task is cancelled is cancelled at the compute node."""

    def __init__(self, native: _native.Client) -> None:
        self._native = native

    @property
    def address(self) -> str:
        """The address of the client's key."""
        return self._native.address()

    async def models(self) -> List[ModelInfo]:
        """What the gateway offers now."""
        with translated():
            return await self._native.models()

    async def estimate(self, model: str, inputs: Optional[Mapping[str, Any]] = None, *, parameters: Optional[Mapping[str, Any]] = None, **named: Any) -> Estimate:
        """What an order may cost. Nothing is signed or paid."""
        with translated():
            return await self._native.estimate(_order(model, inputs, named, parameters, None, None))

    async def infer(
        self,
        model: str,
        inputs: Optional[Mapping[str, Any]] = None,
        *,
        parameters: Optional[Mapping[str, Any]] = None,
        max_price: Optional[int] = None,
        timeout: Optional[int] = None,
        **named: Any,
    ) -> Answer:
        """Orders, pays and waits for the verified answer. Inputs are given by name, in a mapping or as further arguments: a str, bytes, a numpy array or a
        PIL image."""
        with translated():
            return Answer(await self._native.infer(_order(model, inputs, named, parameters, max_price, timeout)))

    def stream(
        self,
        model: str,
        inputs: Optional[Mapping[str, Any]] = None,
        *,
        parameters: Optional[Mapping[str, Any]] = None,
        max_price: Optional[int] = None,
        timeout: Optional[int] = None,
        **named: Any,
    ) -> AsyncStream:
        """Orders and pays; the parts of the output come as they are made, each as values by name."""
        order = _order(model, inputs, named, parameters, max_price, timeout)
        return AsyncStream(lambda: self._native.stream(order), False)

    def chat(
        self,
        model: str,
        messages: Union[str, Sequence[Mapping[str, str]]],
        parameters: Optional[Mapping[str, Any]] = None,
        *,
        max_price: Optional[int] = None,
        timeout: Optional[int] = None,
    ) -> AsyncStream:
        """Has a model go on with a conversation: a text, or messages with `role` and `content`. The parts are texts."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        said = [{"role": message["role"], "content": message["content"]} for message in messages]
        order = _order(model, {"messages": json.dumps(said)}, {}, parameters, max_price, timeout)
        return AsyncStream(lambda: self._native.stream(order), True)

    async def embed(self, model: str, text: str) -> List[float]:
        """The embedding of a text."""
        with translated():
            return await self._native.embed(model, text)

    async def balance(self, account: Optional[str] = None) -> int:
        """How many tokens an account has, in the smallest units; the client's own by default."""
        with translated():
            return await self._native.balance(account)

    def receipts(self) -> List[Receipt]:
        """The newest receipts of this client's answers, the oldest of them first."""
        return self._native.receipts()

    async def channel_open(self, path: str, deposit: int, days: int = 30) -> ChannelInfo:
        """Opens a channel with the gateway and keeps it in a file, which must not exist yet."""
        with translated():
            return await self._native.channel_open(str(path), _amount("deposit", deposit) or 0, days)

    async def channel_show(self, path: Optional[str] = None) -> ChannelInfo:
        """What a channel comes to: the client's own, or the one in a file."""
        with translated():
            return await self._native.channel_show(path)

    async def channel_topup(self, amount: int, days: int = 30, path: Optional[str] = None) -> ChannelInfo:
        """Adds to a channel's deposit, and puts its end off to so many days from now, unless it is later already."""
        with translated():
            return await self._native.channel_topup(_amount("amount", amount) or 0, days, path)

    async def channel_close(self, path: Optional[str] = None) -> int:
        """Has what is left of a channel back, with the gateway's agreement. Returns how much that is."""
        with translated():
            return await self._native.channel_close(path)


class Client:
    """A way to the network whose calls block: see `connect`. Ctrl-C ends a call, and cancels it at the compute node."""

    def __init__(self, client: AsyncClient) -> None:
        self._async = client

    @property
    def address(self) -> str:
        """The address of the client's key."""
        return self._async.address

    def models(self) -> List[ModelInfo]:
        """What the gateway offers now."""
        return _LOOP.run(self._async.models())

    def estimate(self, model: str, inputs: Optional[Mapping[str, Any]] = None, *, parameters: Optional[Mapping[str, Any]] = None, **named: Any) -> Estimate:
        """What an order may cost. Nothing is signed or paid."""
        return _LOOP.run(self._async.estimate(model, inputs, parameters=parameters, **named))

    def infer(
        self,
        model: str,
        inputs: Optional[Mapping[str, Any]] = None,
        *,
        parameters: Optional[Mapping[str, Any]] = None,
        max_price: Optional[int] = None,
        timeout: Optional[int] = None,
        **named: Any,
    ) -> Answer:
        """Orders, pays and waits for the verified answer. Inputs are given by name, in a mapping or as further arguments: a str, bytes, a numpy array or a
        PIL image."""
        return _LOOP.run(self._async.infer(model, inputs, parameters=parameters, max_price=max_price, timeout=timeout, **named))

    def stream(
        self,
        model: str,
        inputs: Optional[Mapping[str, Any]] = None,
        *,
        parameters: Optional[Mapping[str, Any]] = None,
        max_price: Optional[int] = None,
        timeout: Optional[int] = None,
        **named: Any,
    ) -> Stream:
        """Orders and pays; the parts of the output come as they are made, each as values by name."""
        return Stream(self._async.stream(model, inputs, parameters=parameters, max_price=max_price, timeout=timeout, **named))

    def chat(
        self,
        model: str,
        messages: Union[str, Sequence[Mapping[str, str]]],
        parameters: Optional[Mapping[str, Any]] = None,
        *,
        max_price: Optional[int] = None,
        timeout: Optional[int] = None,
    ) -> Stream:
        """Has a model go on with a conversation: a text, or messages with `role` and `content`. The parts are texts."""
        return Stream(self._async.chat(model, messages, parameters, max_price=max_price, timeout=timeout))

    def embed(self, model: str, text: str) -> List[float]:
        """The embedding of a text."""
        return _LOOP.run(self._async.embed(model, text))

    def balance(self, account: Optional[str] = None) -> int:
        """How many tokens an account has, in the smallest units; the client's own by default."""
        return _LOOP.run(self._async.balance(account))

    def receipts(self) -> List[Receipt]:
        """The newest receipts of this client's answers, the oldest of them first."""
        return self._async.receipts()

    def channel_open(self, path: str, deposit: int, days: int = 30) -> ChannelInfo:
        """Opens a channel with the gateway and keeps it in a file, which must not exist yet."""
        return _LOOP.run(self._async.channel_open(path, deposit, days))

    def channel_show(self, path: Optional[str] = None) -> ChannelInfo:
        """What a channel comes to: the client's own, or the one in a file."""
        return _LOOP.run(self._async.channel_show(path))

    def channel_topup(self, amount: int, days: int = 30, path: Optional[str] = None) -> ChannelInfo:
        """Adds to a channel's deposit, and puts its end off to so many days from now, unless it is later already."""
        return _LOOP.run(self._async.channel_topup(amount, days, path))

    def channel_close(self, path: Optional[str] = None) -> int:
        """Has what is left of a channel back, with the gateway's agreement. Returns how much that is."""
        return _LOOP.run(self._async.channel_close(path))


async def aconnect(
    network: Network = DEVNET,
    key: Optional[Key] = None,
    payment: Payment = OnChain(),
    *,
    max_price: Optional[int] = None,
    timeout: Optional[int] = None,
    policy: Optional[SpendPolicy] = None,
) -> AsyncClient:
    """Connects to a network, for asyncio: see `connect`."""
    connection = _connection(network, key, payment, max_price, timeout, policy)
    with translated():
        return AsyncClient(await _native.Client.connect(connection))


def connect(
    network: Network = DEVNET,
    key: Optional[Key] = None,
    payment: Payment = OnChain(),
    *,
    max_price: Optional[int] = None,
    timeout: Optional[int] = None,
    policy: Optional[SpendPolicy] = None,
) -> Client:
    """Connects to a network, and makes sure that it is the one to trust.

    `key` is a secret key's hexadecimal digits, a `Signer`, `devnet_key(n)` or `key_file(path)`; in a devnet, one that everybody knows by default.
    `max_price` is the most that a request may cost which states no limit of its own, in the smallest units; a token in a devnet. `timeout` is how long to
    wait for an answer, in seconds. `policy` is asked before each payment.
    """
    return Client(_LOOP.run(aconnect(network, key, payment, max_price=max_price, timeout=timeout, policy=policy)))
