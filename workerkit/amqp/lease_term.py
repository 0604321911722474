"""One channel that consumes the queue of a lease: get run numbers until the channel is lost."""

import asyncio
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from workerkit.amqp.channel import Channel
from workerkit.amqp.confirms import DEFAULT_EXCHANGE, Confirms, MessageRefused, MessageReturned
from workerkit.amqp.frames import NO_PERMISSION
from workerkit.amqp.incoming import Inlet
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.outgoing import OutgoingMessage
from workerkit.amqp.properties import PERSISTENT, Properties, encode
from workerkit.amqp.session import Session
from workerkit.errors import BrokerRefused, ConnectionLost, WorkerkitError

_MAX_NUMBER = 2**62
_PREFETCH = 100


@dataclass(frozen=True, slots=True)
class Token:
    """One message in the queue of a lease.

    Attributes:
        number: The number of a run, or of a renewal of the lease; 0 in a placeholder, which keeps
            the queue from being empty.
        id: A unique id; empty with number 0.
        scheduled: When the last run was due, in seconds since 1970; 0 if there was none.
    """

    number: int = 0
    id: str = ""
    scheduled: float = 0.0

    def encode(self) -> bytes:
        """Return the body of the message."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> "Token":
        """Decode the body of a message; return a placeholder if it is not a token."""
        try:
            found = json.loads(raw)
            number, scheduled = found["number"], float(found["scheduled"])
            valid = (
                type(number) is int and 0 <= number < _MAX_NUMBER and 0 <= scheduled < _MAX_NUMBER
            )
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            return cls()
        return cls(number, str(found.get("id", "")), scheduled) if valid else cls()


class Tokens:
    """The tokens that were delivered to one consumer and are not settled.

    Attributes:
        highest: The highest number of all that were delivered.
        scheduled: When the last run was due, from the token with that number.
    """

    def __init__(self) -> None:
        self.highest = 0
        self.scheduled = 0.0
        self._tokens: dict[int, Token] = {}

    def add(self, tag: int, token: Token) -> bool:
        """Add a token by its delivery tag; return whether its number is the highest so far."""
        is_highest = token.number > self.highest or not self._tokens
        if is_highest:
            self.highest, self.scheduled = token.number, token.scheduled
        self._tokens[tag] = token
        return is_highest

    def pop(self, tag: int) -> None:
        """Remove a token that is acknowledged."""
        del self._tokens[tag]

    def pop_all_but(self, token_id: str) -> list[int]:
        """Remove all tokens except one; return their delivery tags, in order."""
        tags = [tag for tag, token in self._tokens.items() if token.id != token_id]
        for tag in tags:
            del self._tokens[tag]
        return tags


class NotHeld(WorkerkitError):
    """This process does not have the lease, or the broker did not confirm it in time."""


class LeaseTerm:
    """One channel that consumes the queue of a lease, until it is lost.

    Attributes:
        active: Done once a message is delivered: this is now the active consumer of the queue.
        ended: Done once the channel is lost or the consumer cancelled, with the reason.
        tokens: The tokens that were delivered.
    """

    def __init__(self, session: Session, queue: str) -> None:
        loop = asyncio.get_running_loop()
        self.active: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[ConnectionLost] = loop.create_future()
        self.tokens = Tokens()
        self._session = session
        self._queue = queue
        self._channel: Channel | None = None
        self._confirms: Confirms | None = None
        self._expected: dict[str, asyncio.Future[bool]] = {}
        self._never_closed: asyncio.Future[None] = loop.create_future()

    @property
    def is_blocked(self) -> bool:
        """Return whether the broker blocks publishers, so that it does not accept a token."""
        return self._confirms is not None and self._confirms.blocked

    async def start(self) -> None:
        """Start the consumer.

        Raises:
            BrokerRefused: The user may not read the queue.
            ConnectionLost: The channel was lost, or the whole session.
        """
        self._confirms = Confirms(self._session, await self._session.channel(confirms=True))
        self._confirms.channel.lost.add_done_callback(self._on_lost)
        channel = self._channel = await self._session.consumer_channel()
        channel.lost.add_done_callback(self._on_lost)
        tag = f"singleton@{socket.gethostname()[:63]}:{os.getpid()}"
        reason = f"the broker cancelled the consumer of queue {self._queue!r}"
        channel.on_cancel = lambda _: self.end(ConnectionLost(reason))
        channel.deliver_to(Inlet(self._receive, channel.acks, self._queue, tag))
        await channel.prefetch(_PREFETCH)
        await channel.consume(self._queue, tag, {})

    async def publish_placeholder(self) -> None:
        """Publish a token with number 0, in case the queue is empty.

        Raises:
            BrokerRefused, ConnectionLost: As for `take`.
        """
        await self._publish(Token())

    async def take(self, scheduled: float | None = None, after: float = 0.0) -> int:
        """Get a number that is higher than all earlier ones of any process.

        Args:
            scheduled: When the run with this number is due; None for a renewal.
            after: When the run before it was due.

        Raises:
            NotHeld: Another run has begun since the one that was due at *after*.
            BrokerRefused: The user may not publish to the queue.
            ConnectionLost: The channel or the session was lost, and the lease with it.
        """
        tokens, is_highest = self.tokens, False
        while not is_highest:
            if scheduled is not None and tokens.scheduled != after:
                raise NotHeld("another process has begun a run")
            # The first number is a time, so that numbers grow even if the queue was deleted.
            number = tokens.highest + 1 if tokens.highest else int(time.time() * 1000)
            due = tokens.scheduled if scheduled is None else scheduled
            token = Token(number, uuid4().hex, due)
            expected = self._expected[token.id] = asyncio.get_running_loop().create_future()
            try:
                await self._publish(token)
                is_highest = bool(await self._unless_ended(expected))
            finally:
                del self._expected[token.id]
        assert self._channel is not None
        for tag in tokens.pop_all_but(token.id):
            self._channel.acks.ack(tag)
        return number

    def end(self, reason: ConnectionLost) -> None:
        """End the term: nothing more is delivered."""
        if not self.ended.done():
            self.ended.set_result(reason)

    async def close(self) -> None:
        """Close the channels. The broker requeues the token, for the next process."""
        self.end(ConnectionLost("released"))
        if self._channel is not None:
            await self._channel.close()
        if self._confirms is not None:
            await self._confirms.channel.close()

    def _receive(self, message: AMQPMessage[Any]) -> None:
        token = Token.decode(message.raw)
        if not self.active.done():
            self.active.set_result(None)
        is_highest = self.tokens.add(message.tag, token)
        if not is_highest:
            self.tokens.pop(message.tag)
            message.acks.ack(message.tag)
        expected = self._expected.get(token.id)
        if expected is not None and not expected.done():
            expected.set_result(is_highest)

    async def _publish(self, token: Token) -> None:
        confirms = self._confirms
        assert confirms is not None
        message_id = token.id or uuid4().hex
        properties = Properties(
            message_id=message_id, delivery_mode=PERSISTENT, content_type="application/json"
        )
        try:
            await confirms.writable(self._never_closed)
            confirm = confirms.publish(
                OutgoingMessage(
                    message_id, "", self._queue, True, encode(properties), token.encode()
                )
            )
            confirm.add_done_callback(lambda done: done.cancelled() or done.exception())
            await self._unless_ended(confirm)
        except MessageReturned as error:
            raise ConnectionLost(f"queue {self._queue!r} was deleted: {error}") from error
        except MessageRefused as error:
            text = f"a token cannot be published to queue {self._queue!r}: {error}"
            if error.code == NO_PERMISSION:
                text += f"; grant write on {DEFAULT_EXCHANGE!r}"
            raise BrokerRefused(text, error.code) from error
        except OSError as error:
            raise ConnectionLost(f"the connection is lost: {error}") from error

    async def _unless_ended(self, waiting: "asyncio.Future[Any]") -> object:
        either: list[asyncio.Future[Any]] = [waiting, self.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise self.ended.result()

    def _on_lost(self, lost: "asyncio.Future[ConnectionLost]") -> None:
        self.end(lost.result())
