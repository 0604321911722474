"""A channel in confirm mode: messages out as bytes, confirms and returns in from the tap."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from struct import Struct
from typing import Any

from workerkit.amqp.channel import Channel
from workerkit.amqp.frames import PRECONDITION_FAILED, MalformedFrame
from workerkit.amqp.properties import decode
from workerkit.amqp.session import Session
from workerkit.errors import BrokerRefused, ConnectionLost, MessageTooLarge

_HEAD = Struct(">BHI").pack
_PUBLISH = b"\x00\x3c\x00\x28\x00\x00"  # class, method, a reserved short
_CONTENT = Struct(">HHQ").pack
_FRAME_END = b"\xce"
_METHOD, _HEADER, _BODY = 1, 2, 3
_FRAME_OVERHEAD = 8
_DRAIN_ABOVE = 256 * 1024
DEFAULT_EXCHANGE = "amq.default"  # As the broker calls it when it refuses.
TOO_LARGE = "larger than"


class Returned(Exception):
    """The broker gave a mandatory message back."""


class Refused(Exception):
    """The broker did not take a message over.

    Attributes:
        code: AMQP's reply code where it closed the channel over it, 0 for a basic.nack.
    """

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class InDoubt(ConnectionLost):
    """The broker closed the channel because of another message, and may have taken this one."""


class NotProcessed(ConnectionLost):
    """The broker closed the channel because of a message that was sent before this one."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A publish that waits for its confirm.

    Attributes:
        since: When it was sent, in seconds of the loop.
    """

    confirm: "asyncio.Future[None]"
    message_id: str
    exchange: str
    routing_key: str
    size: int
    user_id: str | None
    since: float


class Confirms:
    """A channel in confirm mode and the publishes that wait for theirs.

    What is published in one turn of the event loop goes out with one `send`.

    Attributes:
        last_confirm: When the broker last confirmed anything, in seconds of the loop.
    """

    def __init__(self, session: Session, channel: Channel) -> None:
        self.session = session
        self.channel = channel
        self._published = 0
        self._pending: dict[int, _Pending] = {}
        self._returned: dict[int, str] = {}
        self._unsent: list[bytes] = []
        self._largest = session.frame_max - _FRAME_OVERHEAD
        self._loop = asyncio.get_running_loop()
        self.last_confirm = 0.0
        channel.tap(self)
        channel.lost.add_done_callback(self._on_lost)

    @property
    def lost(self) -> bool:
        """Whether the channel is closed."""
        return self.channel.lost.done()

    @property
    def blocked(self) -> bool:
        """Whether the broker blocks publishers of this connection."""
        return not self.session.protocol.unblocked.is_set()

    @property
    def is_writable(self) -> bool:
        """Whether a publish can be sent without waiting."""
        protocol = self.session.protocol
        return protocol.unblocked.is_set() and (
            protocol.socket.get_write_buffer_size() <= _DRAIN_ABOVE
        )

    async def writable(self, closed: "asyncio.Future[None]") -> None:
        """Wait while the broker blocks publishers, or while the socket takes no more.

        Args:
            closed: Done when nobody wants to publish any more.

        Raises:
            OSError: The socket was closed meanwhile.
        """
        protocol = self.session.protocol
        while self.blocked and not self.lost and not closed.done():
            unblocked: asyncio.Future[Any] = asyncio.ensure_future(protocol.unblocked.wait())
            lost: asyncio.Future[Any] = self.channel.lost
            try:
                await asyncio.wait([unblocked, lost, closed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                unblocked.cancel()
        if protocol.socket.get_write_buffer_size() > _DRAIN_ABOVE:
            await protocol.drained()

    def publish(self, message: "Outgoing") -> "asyncio.Future[None]":
        """Send a message; the future is done when the broker has confirmed it.

        Raises:
            MessageTooLarge: Its properties do not fit into a frame: the broker would close the
                connection over it.
            ConnectionLost: Nothing was sent.
        """
        body = message.body
        header = _CONTENT(60, 0, len(body)) + message.properties
        if len(header) > self._largest:
            raise MessageTooLarge(
                f"its headers and properties have {len(header)} bytes; at most {self._largest} fit"
            )
        if self.lost or self.session.gone:
            raise ConnectionLost("the connection is lost")
        if not self._unsent:
            self._loop.call_soon(self._send)
        number = self.channel.number
        self._unsent.append(_frame(_METHOD, number, message.method))
        self._unsent.append(_frame(_HEADER, number, header))
        self._unsent += [
            _frame(_BODY, number, body[start : start + self._largest])
            for start in range(0, len(body), self._largest)
        ]
        confirm: asyncio.Future[None] = self._loop.create_future()
        pending = _Pending(
            confirm,
            message.message_id,
            message.exchange,
            message.routing_key,
            len(body),
            message.user_id,
            self._loop.time(),
        )
        self._published += 1
        self._pending[self._published] = pending
        return confirm

    @property
    def waiting_since(self) -> float:
        """When the oldest publish without a confirm was sent, in seconds of the loop."""
        oldest = next(iter(self._pending.values()), None)
        return math.inf if oldest is None else oldest.since

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Nothing is consumed on this channel."""

    def oversized(self, method: bytes, properties: bytes, size: int) -> None:
        """Nothing is consumed on this channel."""

    def empty(self) -> None:
        """Nothing is asked for on this channel."""

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Note which publish came back; its confirm, which follows, is positive all the same."""
        text, exchange, routing_key = _texts(method[2:])
        came_back = decode(properties).message_id, exchange, routing_key
        for tag, pending in self._pending.items():
            sent = pending.message_id, pending.exchange, pending.routing_key
            if sent == came_back and tag not in self._returned:
                self._returned[tag] = text
                return

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Wake the publishes that this confirm is for.

        Raises:
            MalformedFrame: It is for no publish, or for one that was confirmed already.
        """
        if tag == 0 and multiple:
            tag = self._published  # In AMQP this means all of them.
        if tag > self._published or not (multiple or tag in self._pending):
            raise MalformedFrame(f"a confirm for tag {tag}, which no publish waits for")
        self.last_confirm = self._loop.time()
        tags = list(takewhile(lambda each: each <= tag, self._pending)) if multiple else [tag]
        for each in tags:
            pending = self._pending.pop(each)
            returned = self._returned.pop(each, None)
            if pending.confirm.done():
                continue
            if not accepted:
                pending.confirm.set_exception(Refused("the broker did not take it over"))
            elif returned is not None:
                pending.confirm.set_exception(Returned(returned))
            else:
                pending.confirm.set_result(None)

    def closed(self) -> None:
        """The broker closes the channel; `lost` follows."""

    def _send(self) -> None:
        # One write: nothing of another sender may come between the frames of a message.
        frames, self._unsent = self._unsent, []
        if not self.lost:
            self.session.protocol.write(b"".join(frames))

    def _on_lost(self, lost: "asyncio.Future[ConnectionLost]") -> None:
        """Fail the publishes that wait: the cause of the close is refused, the rest is in doubt.

        The broker processes messages in order. It has not processed those after the cause.
        """
        reason, waiting = lost.result(), list(self._pending.values())
        self._pending.clear()
        if not isinstance(reason, BrokerRefused):
            _fail(waiting, lambda: ConnectionLost(f"lost before the confirm: {reason}"))
            return
        causes = [place for place, each in enumerate(waiting) if _is_cause(reason, each)]
        if len(waiting) == 1:
            causes = [0]
        after = causes[-1] + 1 if causes else len(waiting)
        _fail([waiting[each] for each in causes], lambda: Refused(str(reason), reason.code))
        _fail(waiting[:after], lambda: InDoubt(f"lost before the confirm: {reason}"))
        _fail(waiting[after:], lambda: NotProcessed(f"not processed by the broker: {reason}"))


def _fail(waiting: list[_Pending], error: Callable[[], Exception]) -> None:
    for pending in waiting:
        if not pending.confirm.done():
            pending.confirm.set_exception(error())


def _is_cause(error: BrokerRefused, pending: _Pending) -> bool:
    """Whether the broker closed the channel over this publish, as far as its words tell."""
    text = str(error)
    if error.code == PRECONDITION_FAILED:
        if pending.user_id is not None and f"user_id property set to '{pending.user_id}'" in text:
            return True
        return f"message size {pending.size} is {TOO_LARGE}" in text
    return f"'{pending.exchange or DEFAULT_EXCHANGE}'" in text


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message as it goes out.

    Attributes:
        properties: Flags and values, see `workerkit.amqp.properties`.
        user_id: That of the properties.
    """

    message_id: str
    exchange: str
    routing_key: str
    mandatory: bool
    properties: bytes
    body: bytes
    user_id: str | None = None

    @property
    def method(self) -> bytes:
        """The basic.publish."""
        return _publish_method(self.exchange, self.routing_key, mandatory=self.mandatory)


def _texts(raw: bytes) -> list[str]:
    """The short strings that *raw* consists of."""
    texts = []
    while raw:
        end = 1 + raw[0]
        texts.append(raw[1:end].decode(errors="surrogateescape"))
        raw = raw[end:]
    return texts


def _publish_method(exchange: str, routing_key: str, *, mandatory: bool) -> bytes:
    parts = [_PUBLISH]
    for what, text in (("exchange", exchange), ("routing key", routing_key)):
        encoded = text.encode()
        if len(encoded) > 255:
            raise ValueError(f"the {what} is {len(encoded)} bytes long, and AMQP allows 255")
        parts += [bytes((len(encoded),)), encoded]
    return b"".join([*parts, b"\x01" if mandatory else b"\x00"])


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return b"".join((_HEAD(kind, channel, len(payload)), payload, _FRAME_END))
