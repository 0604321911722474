"""An AMQP client whose channels record what they receive, in order."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Confirm, Connection, Exchange, Queue
from pamqp.commands import Channel as ChannelClass
from pamqp.frame import FrameTypes
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from tests.contract.raw_client import DEADLINE, GONE, Login, RawClient, Refused, connect, content
from tests.waiting import eventually


@dataclass(slots=True)
class Message:
    """A message that was received: delivered, got or returned.

    Attributes:
        method: The method of its frames.
        raw: The properties as received, with their flags.
    """

    method: Any
    properties: Basic.Properties
    raw: bytes
    size: int
    body: bytes = b""
    frames: int = 0

    @property
    def headers(self) -> dict[str, Any]:
        """Its headers; empty if it has none."""
        return dict(self.properties.headers or {})

    @property
    def tag(self) -> int:
        """Its delivery tag."""
        return int(self.method.delivery_tag)


Event = Message | Frame
Reply = Event | Refused


@dataclass(slots=True)
class Inbox:
    """The events received on one channel."""

    replies: asyncio.Queue[Reply] = field(default_factory=asyncio.Queue)
    events: asyncio.Queue[Reply] = field(default_factory=asyncio.Queue)
    pending: Message | None = None

    def fail(self, refused: Refused) -> None:
        """Raise *refused* for everything that waits, now or later."""
        self.replies.put_nowait(refused)
        self.events.put_nowait(refused)


class Client:
    """A connection; `opened` opens one."""

    def __init__(self, raw: RawClient, login: Login) -> None:
        self.raw = raw
        self.login = login
        self.heartbeats = 0
        self.zero = Inbox()
        self._inboxes: dict[int, Inbox] = {}
        self._reader = asyncio.create_task(self._read())

    async def channel(self, number: int | None = None, confirms: bool = False) -> "Channel":
        """Open a channel."""
        number = number or max(self._inboxes, default=0) + 1
        inbox = self._inboxes[number] = Inbox()
        channel = Channel(self, number, inbox)
        await channel.call(ChannelClass.Open())
        if confirms:
            await channel.call(Confirm.Select())
        return channel

    async def event(self, deadline: float = DEADLINE) -> Frame:
        """Wait for a frame of the broker on channel 0."""
        event = await _take(self.zero.events, deadline)
        assert isinstance(event, Frame)
        return event

    async def close(self) -> None:
        """Send connection.close and close the socket, unless the broker has closed it."""
        if not self._reader.done():
            self.raw.send(0, Connection.Close(200, "", 0, 0))
            await asyncio.wait([self._reader], timeout=DEADLINE)
        self.drop()

    def drop(self) -> None:
        """Close the socket without connection.close."""
        self._reader.cancel()
        self.raw.abort()

    async def ended(self) -> str:
        """Wait until the broker closes the connection; returns how."""
        try:
            while True:
                await self.event()
        except Refused as refused:
            return refused.seen

    async def _read(self) -> None:
        refused = GONE
        try:
            while True:
                number, frame = await self.raw.read()
                if isinstance(frame, Heartbeat):
                    self.heartbeats += 1
                elif isinstance(frame, Connection.Close):
                    refused = self._refusal("connection", frame)
                    self.raw.send(0, Connection.CloseOk())
                elif isinstance(frame, Connection.CloseOk):
                    return
                elif number in self._inboxes or not number:
                    self._sort(number, self._inboxes.get(number, self.zero), frame)
        except Refused:
            pass
        finally:
            for inbox in (self.zero, *self._inboxes.values()):
                inbox.fail(refused)

    def _sort(self, number: int, inbox: Inbox, frame: FrameTypes) -> None:
        if isinstance(frame, ContentHeader):
            assert isinstance(inbox.pending, Message)
            inbox.pending.properties = frame.properties
            inbox.pending.size = frame.body_size
            inbox.pending.raw = self.raw.raw[12:]
        elif isinstance(frame, ContentBody):
            assert isinstance(inbox.pending, Message)
            inbox.pending.body += frame.value
            inbox.pending.frames += 1
        elif isinstance(frame, Basic.Deliver | Basic.GetOk | Basic.Return):
            inbox.pending = Message(frame, Basic.Properties(), b"", -1)
        elif isinstance(frame, ChannelClass.Close):
            refused = self._refusal("channel", frame)
            self.raw.send(number, ChannelClass.CloseOk())
            self._inboxes.pop(number).fail(refused)
        elif isinstance(frame, Basic.Ack | Basic.Nack | Basic.Cancel) or not number:
            assert isinstance(frame, Frame)
            inbox.events.put_nowait(frame)
        else:
            assert isinstance(frame, Frame)
            inbox.replies.put_nowait(frame)
        message = inbox.pending
        if message is not None and len(message.body) == message.size:
            inbox.pending = None
            got = isinstance(message.method, Basic.GetOk)
            (inbox.replies if got else inbox.events).put_nowait(message)

    def _refusal(self, scope: str, close: ChannelClass.Close | Connection.Close) -> Refused:
        """Return how it was closed; V replaces the name of the virtual host."""
        text = close.reply_text.replace(f"'{self.login.vhost}'", "'V'")
        return Refused(scope, close.reply_code or 0, text)

    def forget(self, number: int) -> None:
        """Skip frames that arrive on a closed channel."""
        self._inboxes.pop(number, None)


class Channel:
    """One channel of a client."""

    def __init__(self, client: Client, number: int, inbox: Inbox) -> None:
        self.client = client
        self.number = number
        self._inbox = inbox

    # Talk

    def send(self, *frames: FrameTypes) -> None:
        """Send frames; no answer is waited for."""
        self.client.raw.send(self.number, *frames)

    async def call(self, method: Frame, deadline: float = DEADLINE) -> Any:
        """Send a method and wait for its answer.

        Raises:
            Refused: The broker closed the channel or the connection instead.
        """
        self.send(method)
        reply = await _take(self._inbox.replies, deadline)
        name = reply.method.name if isinstance(reply, Message) else reply.name
        assert name in method.valid_responses, f"{name} for {method.name}"
        return reply

    async def event(self, deadline: float = DEADLINE) -> Event:
        """Wait for the next delivery, return, confirm or cancel."""
        return await _take(self._inbox.events, deadline)

    async def message(self, deadline: float = DEADLINE) -> Message:
        """Wait for the next event, which must be a message."""
        event = await self.event(deadline)
        assert isinstance(event, Message), f"a message was due, not {event.name}"
        return event

    async def confirms(self, count: int) -> list[tuple[str, int]]:
        """Wait until this number of publishes is confirmed; return each confirm separately."""
        confirmed: list[tuple[str, int]] = []
        while len(confirmed) < count:
            event = await self.event()
            assert isinstance(event, Basic.Ack | Basic.Nack)
            tag = event.delivery_tag or 0
            seen = {tag for _, tag in confirmed}
            first = min(set(range(1, tag + 1)) - seen) if event.multiple else tag
            confirmed += [(event.name, n) for n in range(first, tag + 1) if n not in seen]
        return confirmed

    async def bodies(self, count: int) -> list[bytes]:
        """Wait for this number of messages, and return their bodies."""
        return [(await self.message()).body for _ in range(count)]

    def delivered(self) -> list[Message]:
        """Return the messages that came in and were not looked at; see `settled`."""
        messages = []
        while not self._inbox.events.empty():
            event = self._inbox.events.get_nowait()
            if isinstance(event, Message):
                messages.append(event)
        return messages

    def waiting(self) -> list[bytes]:
        """Their bodies."""
        return [message.body for message in self.delivered()]

    async def settled(self, queue: str) -> Queue.DeclareOk:
        """Wait until the queue has sent everything that it has for this channel now.

        The queue answers in order, so a delivery that was due comes before the second answer. Not
        so with RabbitMQ if messages are still on their way into the queue: those are overtaken.
        """
        await self.declare(queue, passive=True)
        return await self.declare(queue, passive=True)

    async def close(self) -> None:
        """Close the channel."""
        await self.call(ChannelClass.Close(200, "", 0, 0))
        self.client.forget(self.number)

    # Set up; underscores in the names of arguments become hyphens

    async def declare(
        self,
        queue: str = "",
        *,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        **arguments: Any,
    ) -> Queue.DeclareOk:
        """Declare a queue."""
        flags = (passive, durable, exclusive, auto_delete)
        reply = await self.call(_Declare(0, queue, *flags, False, table(arguments)))
        assert isinstance(reply, Queue.DeclareOk)
        return reply

    async def exchange(
        self,
        name: str,
        kind: str = "direct",
        *,
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        **arguments: Any,
    ) -> None:
        """Declare an exchange."""
        flags = (passive, durable, auto_delete, internal)
        await self.call(Exchange.Declare(0, name, kind, *flags, False, table(arguments)))

    async def bind(self, queue: str, exchange: str, key: str = "", **arguments: Any) -> None:
        """Bind a queue to an exchange."""
        await self.call(Queue.Bind(0, queue, exchange, key, False, table(arguments)))

    async def unbind(self, queue: str, exchange: str, key: str = "", **arguments: Any) -> None:
        """Remove the binding of a queue."""
        await self.call(Queue.Unbind(0, queue, exchange, key, table(arguments)))

    async def chain(self, destination: str, source: str, key: str = "") -> None:
        """Bind an exchange to another."""
        await self.call(Exchange.Bind(0, destination, source, key))

    # Messages

    def publish(
        self,
        queue: str,
        *bodies: bytes,
        exchange: str = "",
        mandatory: bool = False,
        **properties: Any,
    ) -> None:
        """Publish; *queue* is the routing key."""
        method = Basic.Publish(0, exchange, queue, mandatory, False)
        for body in bodies:
            frames = content(body, Basic.Properties(**properties), self.client.login.frame_max)
            self.send(method, *frames)

    async def get(self, queue: str, no_ack: bool = False) -> Message | None:
        """Take the first message, or None where there is none."""
        reply = await self.call(_Get(0, queue, no_ack))
        return reply if isinstance(reply, Message) else None

    async def take(self, queue: str, no_ack: bool = True) -> Message:
        """Take the first message of a queue; wait for it where there is none."""
        message = await eventually(lambda: self.get(queue, no_ack), DEADLINE, what=queue)
        assert message is not None
        return message

    async def drain(self, queue: str) -> list[bytes]:
        """Take all that is in a queue; the bodies."""
        bodies = []
        while message := await self.get(queue, no_ack=True):
            bodies.append(message.body)
        return bodies

    async def consume(
        self,
        queue: str,
        tag: str = "",
        *,
        no_ack: bool = False,
        exclusive: bool = False,
        **arguments: Any,
    ) -> str:
        """Start a consumer; its tag."""
        method = _Consume(0, queue, tag, False, no_ack, exclusive, False, table(arguments))
        return str((await self.call(method)).consumer_tag)

    async def cancel(self, tag: str) -> None:
        """End a consumer."""
        await self.call(Basic.Cancel(tag))

    async def qos(self, count: int, *, shared: bool = False) -> None:
        """Set the prefetch count, of each later consumer or of the whole channel."""
        await self.call(Basic.Qos(0, count, shared))

    def ack(self, tag: int, multiple: bool = False) -> None:
        """Acknowledge."""
        self.send(Basic.Ack(tag, multiple))

    def nack(self, tag: int, multiple: bool = False, requeue: bool = True) -> None:
        """Refuse one or many."""
        self.send(Basic.Nack(tag, multiple, requeue))

    def reject(self, tag: int, requeue: bool) -> None:
        """Refuse one."""
        self.send(Basic.Reject(tag, requeue))

    async def refused(self) -> str:
        """Wait until the broker closes the channel; returns how, and passes over all else."""
        try:
            while True:
                await self.event()
        except Refused as refused:
            return refused.seen


class _Declare(Queue.Declare):
    """A declaration whose name is checked by the broker only."""

    def validate(self) -> None:
        """Do not check the name."""


class _Consume(Basic.Consume):
    """The same for a consumer."""

    def validate(self) -> None:
        """Do not check the name."""


class _Get(Basic.Get):
    """The same for a single message."""

    def validate(self) -> None:
        """Do not check the name."""


async def opened(host: str, port: int, login: Login) -> Client:
    """Connect and log in."""
    raw = await connect(host, port)
    try:
        await raw.log_in(login)
    except BaseException:
        raw.abort()
        raise
    return Client(raw, login)


def short(seen: str | None) -> str:
    """Return scope and code only, if the text varies."""
    return str(seen).split(":")[0]


async def refused(call: Awaitable[Any]) -> str | None:
    """Return how the broker refused a call; None if it did not."""
    try:
        await call
    except Refused as error:
        return error.seen
    return None


async def _take(inbox: asyncio.Queue[Reply], deadline: float) -> Event:
    async with asyncio.timeout(deadline):
        item = await inbox.get()
    if isinstance(item, Refused):
        inbox.put_nowait(item)  # for later calls
        raise Refused(*item.args) from None
    return item


def table(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a table of arguments or headers; underscores in the names become hyphens."""
    return {name.replace("_", "-"): value for name, value in arguments.items()}
