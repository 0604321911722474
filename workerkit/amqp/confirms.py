"""Publish on a channel in confirm mode, and match confirms and returns to the publishes."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from workerkit.amqp.channel import Channel
from workerkit.amqp.frames import (
    FRAME_OVERHEAD,
    PRECONDITION_FAILED,
    MalformedFrame,
    content_header,
    message_frames,
)
from workerkit.amqp.outgoing import OutgoingMessage
from workerkit.amqp.properties import decode
from workerkit.amqp.session import Session
from workerkit.errors import BrokerRefused, ConnectionLost, MessageTooLarge

_DRAIN_ABOVE = 256 * 1024
DEFAULT_EXCHANGE = "amq.default"  # Its name in the broker's errors.
TOO_LARGE = "larger than"


class MessageReturned(Exception):
    """The broker returned a mandatory message."""


class MessageRefused(Exception):
    """The broker refused a message.

    Attributes:
        code: AMQP's reply code if the broker closed the channel because of the message; 0 for a
            basic.nack.
    """

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class InDoubt(ConnectionLost):
    """The broker closed the channel because of another message; it may have accepted this one."""


class NotProcessed(ConnectionLost):
    """The broker closed the channel because of a message that was sent before this one."""


class Inbox(Protocol):
    """Receives the replies to the requests that are published on a channel."""

    def sent(self, correlation_id: str, confirms: "Confirms") -> None:
        """Note that a request was published on a channel."""

    def delivered(self, properties: bytes, body: bytes | None, size: int) -> None:
        """Handle a reply; its body is None if it was too large, and was discarded."""

    def lost(self, confirms: "Confirms", reason: ConnectionLost) -> None:
        """Handle the loss of a channel, after the publishes without a confirm have failed."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A publish that waits for its confirm.

    Attributes:
        since: When it was sent, in seconds of the event loop's clock.
    """

    confirm: "asyncio.Future[None]"
    message_id: str
    exchange: str
    routing_key: str
    size: int
    user_id: str | None
    since: float


class Confirms:
    """A channel in confirm mode, and its publishes that wait for a confirm.

    All messages of one iteration of the event loop are sent with one `send`.

    Args:
        inbox: Receives the replies, if the channel consumes them.

    Attributes:
        last_confirm: When the broker last confirmed anything, in seconds of the loop's clock.
    """

    def __init__(self, session: Session, channel: Channel, inbox: Inbox | None = None) -> None:
        self.session = session
        self.channel = channel
        self._inbox = inbox
        self._published = 0
        self._pending: dict[int, _Pending] = {}
        self._returned: dict[int, str] = {}
        self._unsent: list[bytes] = []
        self._largest = session.frame_max - FRAME_OVERHEAD
        self._loop = asyncio.get_running_loop()
        self.last_confirm = 0.0
        channel.deliver_to(self)
        channel.lost.add_done_callback(self._on_lost)

    @property
    def lost(self) -> bool:
        """Return whether the channel is closed."""
        return self.channel.lost.done()

    @property
    def blocked(self) -> bool:
        """Return whether the broker blocks publishers of this connection."""
        return not self.session.protocol.unblocked.is_set()

    @property
    def is_writable(self) -> bool:
        """Return whether a publish can be sent without waiting."""
        protocol = self.session.protocol
        return protocol.unblocked.is_set() and (
            protocol.socket.get_write_buffer_size() <= _DRAIN_ABOVE
        )

    async def writable(self, closed: "asyncio.Future[None]") -> None:
        """Wait while the broker blocks publishers, or while the write buffer of the socket is full.

        Args:
            closed: Done when the publisher is closed.

        Raises:
            OSError: The socket was closed.
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

    def publish(self, message: OutgoingMessage) -> "asyncio.Future[None]":
        """Send a message; return a future that is done when the broker has confirmed it.

        Raises:
            MessageTooLarge: The properties do not fit into a frame: the broker would close the
                connection.
            ConnectionLost: Nothing was sent.
        """
        body = message.body
        header = content_header(message.properties, body)
        if len(header) > self._largest:
            raise MessageTooLarge(
                f"its headers and properties have {len(header)} bytes; at most {self._largest} fit"
            )
        if self.lost or self.session.gone:
            raise ConnectionLost("the connection is lost")
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent += message_frames(
            self.channel.number, message.method, header, body, self._largest
        )
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
        if self._inbox is not None and message.request_id is not None:
            self._inbox.sent(message.request_id, self)
        return confirm

    @property
    def waiting_since(self) -> float:
        """Return when the oldest publish without a confirm was sent, in seconds of the loop."""
        oldest = next(iter(self._pending.values()), None)
        return math.inf if oldest is None else oldest.since

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Pass on a reply. Other channels that publish have no consumer."""
        if self._inbox is not None:
            self._inbox.delivered(properties, body, len(body))

    def oversized(self, method: bytes, properties: bytes, size: int) -> None:
        """Pass on a reply whose body was discarded."""
        if self._inbox is not None:
            self._inbox.delivered(properties, None, size)

    def empty(self) -> None:
        """Do nothing: no basic.get is sent on this channel."""

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Note which message was returned. The confirm that follows is positive nevertheless."""
        text, exchange, routing_key = _texts(method[2:])
        returned = decode(properties).message_id, exchange, routing_key
        for tag, pending in self._pending.items():
            sent = pending.message_id, pending.exchange, pending.routing_key
            if sent == returned and tag not in self._returned:
                self._returned[tag] = text
                return

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Set the results of the publishes that this confirm is for.

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
                pending.confirm.set_exception(
                    MessageRefused("the broker refused it with basic.nack")
                )
            elif returned is not None:
                pending.confirm.set_exception(MessageReturned(returned))
            else:
                pending.confirm.set_result(None)

    def closed(self) -> None:
        """Do nothing: `lost` is done next."""

    def _send(self) -> None:
        # One write: no other frame of this channel may be between the frames of a message.
        frames, self._unsent = self._unsent, []
        if not self.lost:
            self.session.protocol.write(b"".join(frames))

    def _on_lost(self, lost: "asyncio.Future[ConnectionLost]") -> None:
        """Fail the publishes that wait for a confirm.

        The message that made the broker close the channel was refused. The broker processes
        messages in order: it has not processed those after the cause, and the outcome of those
        before it is unknown.
        """
        reason, waiting = lost.result(), list(self._pending.values())
        self._pending.clear()
        _fail_all(waiting, reason)
        if self._inbox is not None:
            self._inbox.lost(self, reason)


def _fail_all(waiting: list[_Pending], reason: ConnectionLost) -> None:
    if not isinstance(reason, BrokerRefused):
        _fail(waiting, lambda: ConnectionLost(f"lost before the confirm: {reason}"))
        return
    causes = [place for place, each in enumerate(waiting) if _is_cause(reason, each)]
    if len(waiting) == 1:
        causes = [0]
    after = causes[-1] + 1 if causes else len(waiting)
    _fail([waiting[each] for each in causes], lambda: MessageRefused(str(reason), reason.code))
    _fail(waiting[:after], lambda: InDoubt(f"lost before the confirm: {reason}"))
    _fail(waiting[after:], lambda: NotProcessed(f"not processed by the broker: {reason}"))


def _fail(waiting: list[_Pending], error: Callable[[], Exception]) -> None:
    for pending in waiting:
        if not pending.confirm.done():
            pending.confirm.set_exception(error())


def _is_cause(error: BrokerRefused, pending: _Pending) -> bool:
    """Return whether the broker's reply text names this publish as the reason for the close."""
    text = str(error)
    if error.code == PRECONDITION_FAILED:
        if pending.user_id is not None and f"user_id property set to '{pending.user_id}'" in text:
            return True
        return f"message size {pending.size} is {TOO_LARGE}" in text
    return f"'{pending.exchange or DEFAULT_EXCHANGE}'" in text


def _texts(raw: bytes) -> list[str]:
    """Return the short strings that *raw* consists of."""
    texts = []
    while raw:
        end = 1 + raw[0]
        texts.append(raw[1:end].decode(errors="surrogateescape"))
        raw = raw[end:]
    return texts
