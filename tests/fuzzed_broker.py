"""A broker that replies correctly, except for the changes of a plan; and such plans."""

import asyncio
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from tests.loopback_server import LoopbackServer
from tests.scripted_broker import (
    CAPABILITIES,
    OPEN_OK,
    PROPERTIES,
    Do,
    closing,
    method,
    nested,
    start,
    tune,
)

PATIENCE = 0.15
"""Seconds after which a connection on which nothing happens is closed by the server."""

LAST_ANSWER = 14
"""The approximate number of replies for a consumer of one queue, with its first deliveries."""

HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n"
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"

Change = Callable[[bytes], "list[bytes | Do]"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan for one connection.

    Attributes:
        changes: By the number of the answer, from 0: what is sent instead of it.
        deliveries: What is sent after consume-ok.
        end: How the server ends the connection when nothing happens any more.
    """

    changes: Mapping[int, "tuple[str, list[bytes | Do] | int]"]
    deliveries: tuple[bytes, ...] = ()
    end: Do = Do.CLOSE

    def answer(self, number: int, right: bytes) -> list[bytes | Do]:
        """Return what is sent instead of the correct reply."""
        how, what = self.changes.get(number, ("keep", 0))
        if isinstance(what, list):
            return (
                what if how == "replace" else [right, *what] if how == "after" else [*what, right]
            )
        place = what % max(len(right), 1)
        if how == "cut":
            return [right[:place]]
        if how == "flip":
            changed = bytes([right[place] ^ (1 + what // max(len(right), 1) % 255)])
            return [right[:place] + changed + right[place + 1 :]]
        return [right, right] if how == "twice" else [right]


def raw_frame(kind: int, channel: int, payload: bytes, size: int | None = None) -> bytes:
    """Return a frame of any kind, whose header may have a wrong size."""
    head = struct.pack(">BHI", kind, channel, len(payload) if size is None else size)
    return head + payload + b"\xce"


def delivery(
    channel: int, tag: str, number: int, body: bytes, properties: Any = None, size: int = -1
) -> bytes:
    """Return a whole message, whose header may have a wrong body size."""
    length = len(body) if size < 0 else size
    return (
        method(commands.Basic.Deliver(tag, number, False, "", "bad"), channel)
        + frame.marshal(
            ContentHeader(0, length, properties or commands.Basic.Properties()), channel
        )
        + frame.marshal(ContentBody(body), channel)
    )


def foreign() -> st.SearchStrategy[bytes]:
    """Return unexpected frames, and bytes that are not frames."""
    short, channel = st.integers(0, 65_535), st.integers(0, 3)
    values: st.SearchStrategy[Any] = st.one_of(
        st.booleans(), st.integers(-(2**31), 2**31 - 1), st.text(max_size=8), st.none()
    )
    tables = st.dictionaries(st.sampled_from(["capabilities", "version", "product"]), values)
    capabilities = st.dictionaries(st.sampled_from(list(CAPABILITIES)), values)
    commands_: list[Frame] = [
        commands.Channel.OpenOk(),
        commands.Channel.CloseOk(),
        commands.Channel.Flow(False),
        commands.Queue.DeclareOk("bad", 0, 0),
        commands.Queue.DeclareOk("x" * 200, 2**32 - 1, 2**32 - 1),
        commands.Basic.QosOk(),
        commands.Basic.ConsumeOk("nobody"),
        commands.Basic.Cancel("nobody"),
        commands.Basic.CancelOk("nobody"),
        commands.Basic.Ack(7, True),
        commands.Basic.GetEmpty(),
        commands.Basic.Return(312, "NO_ROUTE", "", "x"),
        commands.Connection.Blocked("memory"),
        commands.Connection.Unblocked(),
        commands.Connection.CloseOk(),
        commands.Connection.Secure("x"),
    ]
    return st.one_of(
        st.binary(max_size=64),
        st.sampled_from(
            [TLS_ALERT, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x03\x01\0\0", OPEN_OK]
        ),
        st.builds(start, tables, st.sampled_from(["", "PLAIN", "EXTERNAL", "\0"])),
        st.builds(start, capabilities.map(lambda each: {**PROPERTIES, "capabilities": each})),
        st.builds(tune, short, st.integers(0, 2**32 - 1), short),
        st.builds(closing, short, st.text(max_size=20)),
        st.builds(nested, st.sampled_from([1, 50, 2000])),
        st.builds(method, st.sampled_from(commands_), channel),
        st.builds(
            lambda code, text, number: method(commands.Channel.Close(code, text, 0, 0), number),
            st.sampled_from([0, 200, 311, 403, 404, 405, 406, 504, 541, 65_535]),
            st.text(max_size=20),
            channel,
        ),
        st.just(Heartbeat().marshal()),
        st.builds(raw_frame, st.integers(0, 255), channel, st.binary(max_size=40)),
        # Heads that announce a wrong size.
        st.builds(
            raw_frame,
            st.sampled_from([1, 2, 3, 8]),
            channel,
            st.binary(max_size=40),
            st.sampled_from([0, 5, 131_072, 1_000_000, 2**31, 2**32 - 1]),
        ),
        st.builds(raw_frame, st.just(1), channel, st.binary(min_size=4, max_size=40)),
        st.builds(
            delivery,
            channel,
            st.sampled_from(["", "nobody"]),
            st.sampled_from([0, 1, 2, 2**63 - 1]),
            st.binary(max_size=20),
            st.none(),
            st.sampled_from([-1, 0, 1, 100, 2**40, 2**63 - 1]),
        ),
    )


def plans() -> st.SearchStrategy[Plan]:
    """Return plans with one or two changes, most of them after the login."""
    bytes_: st.SearchStrategy[Any] = foreign()
    ends = st.sampled_from([Do.CLOSE, Do.RESET, Do.CLOSE, Do.RESET, Do.HANG])
    sent = st.lists(bytes_, min_size=1, max_size=3)
    change: st.SearchStrategy[Any] = st.one_of(
        st.tuples(st.sampled_from(["replace", "before", "after", "after"]), sent),
        st.tuples(st.just("replace"), ends.map(lambda each: [each])),
        st.tuples(st.sampled_from(["cut", "flip", "flip", "twice"]), st.integers(0, 100_000)),
    )
    return st.builds(
        Plan,
        st.dictionaries(st.integers(0, LAST_ANSWER), change, min_size=1, max_size=2),
        st.lists(st.binary(max_size=30), max_size=2).map(tuple),
        st.sampled_from([Do.CLOSE, Do.RESET]),
    )


class Fuzzed(LoopbackServer):
    """Listens on the loopback, and follows a plan for each connection; use it with `async with`.

    Attributes:
        plans: Each is for one connection, which waits for it.
        accepted: When each connection was accepted, in seconds of the loop.
        ended: How many of them have ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plans: asyncio.Queue[Plan] = asyncio.Queue()
        self.accepted: list[float] = []
        self.ended = 0

    @property
    def url(self) -> str:
        """The URL of the virtual host `/`."""
        return f"amqp://127.0.0.1:{self.port}/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Follow the next plan."""
        self.accepted.append(asyncio.get_running_loop().time())
        try:
            await _Conversation(await self.plans.get(), reader, writer).run()
        except _Ended:
            pass
        finally:
            self.ended += 1


class _Ended(Exception):
    """The plan ends the connection."""


class _Conversation:
    """One connection, as the broker sees it."""

    def __init__(
        self, plan: Plan, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._writer = writer
        self._number = 0

    async def run(self) -> None:
        """Reply until the task is cancelled."""
        await self._reader.readexactly(8)
        await self._answer(start())
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    channel, request = await self._request()
            except TimeoutError:
                await self._do(self._plan.end)
                return
            for answer in self._answers(channel, request):
                await self._answer(answer)

    async def _request(self) -> tuple[int, Any]:
        head = await self._reader.readexactly(7)
        size = int.from_bytes(head[3:7], "big")
        raw = head + await self._reader.readexactly(size + 1)
        _, channel, request = frame.unmarshal(raw)
        return channel, request

    def _answers(self, channel: int, request: Any) -> list[bytes]:
        match request:
            case commands.Connection.StartOk():
                return [tune(heartbeat=5)]
            case commands.Connection.Open():
                return [OPEN_OK]
            case commands.Connection.Close():
                return [method(commands.Connection.CloseOk())]
            case commands.Channel.Open():
                return [method(commands.Channel.OpenOk(), channel)]
            case commands.Channel.Close():
                return [method(commands.Channel.CloseOk(), channel)]
            case commands.Queue.Declare():
                return [method(commands.Queue.DeclareOk(request.queue, 0, 0), channel)]
            case commands.Basic.Qos():
                return [method(commands.Basic.QosOk(), channel)]
            case commands.Basic.Cancel():
                return [method(commands.Basic.CancelOk(request.consumer_tag), channel)]
            case commands.Basic.Consume():
                tag = request.consumer_tag
                bodies = enumerate(self._plan.deliveries, 1)
                return [
                    method(commands.Basic.ConsumeOk(tag), channel),
                    *(delivery(channel, tag, number, body) for number, body in bodies),
                ]
        return []

    async def _answer(self, right: bytes) -> None:
        number, self._number = self._number, self._number + 1
        for each in self._plan.answer(number, right):
            if isinstance(each, Do):
                await self._do(each)
            else:
                self._writer.write(each)
                await self._writer.drain()

    async def _do(self, action: Do) -> None:
        if action is Do.RESET:
            raise _Ended
        if action is Do.CLOSE:
            self._writer.write_eof()
        await self._reader.read(-1)
        raise _Ended
