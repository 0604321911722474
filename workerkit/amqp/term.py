"""One channel that consumes the queue of a lease: take numbers on it, until it is lost."""

import asyncio
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from workerkit.amqp.channel import Channel
from workerkit.amqp.confirms import DEFAULT_EXCHANGE, Confirms, Outgoing, Refused, Returned
from workerkit.amqp.frames import NO_PERMISSION
from workerkit.amqp.incoming import Inlet
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.properties import PERSISTENT, Properties, encode
from workerkit.amqp.session import Session
from workerkit.errors import BrokerRefused, ConnectionLost, WorkerkitError

_HIGHEST = 2**62


@dataclass(frozen=True, slots=True)
class Token:
    """One message in the queue of a lease.

    Attributes:
        number: Of a run, or of a renewal of the lease; 0 in a token that is only there so that the
            queue is not empty.
        id: Of this token alone; empty with number 0.
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
        """Read the body of a message; what is no token counts as one with number 0."""
        try:
            found = json.loads(raw)
            number, scheduled = found["number"], float(found["scheduled"])
            valid = type(number) is int and 0 <= number < _HIGHEST and 0 <= scheduled < _HIGHEST
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            return cls()
        return cls(number, str(found.get("id", "")), scheduled) if valid else cls()


class Tokens:
    """The tokens that were delivered to one consumer and are not settled.

    Attributes:
        highest: The highest number of all that were delivered.
        scheduled: When the last run was due, as the one with that number states.
    """

    def __init__(self) -> None:
        self.highest = 0
        self.scheduled = 0.0
        self._held: dict[int, Token] = {}

    def add(self, tag: int, token: Token) -> bool:
        """Note a token by its delivery tag; whether its number is higher than all before."""
        is_highest = token.number > self.highest or not self._held
        if is_highest:
            self.highest, self.scheduled = token.number, token.scheduled
        self._held[tag] = token
        return is_highest

    def pop(self, tag: int) -> None:
        """Remove a token that is acknowledged."""
        del self._held[tag]

    def pop_all_but(self, token_id: str) -> list[int]:
        """Remove all tokens but one; their delivery tags, in order."""
        tags = [tag for tag, token in self._held.items() if token.id != token_id]
        for tag in tags:
            del self._held[tag]
        return tags


_PREFETCH = 100


class NotHeld(WorkerkitError):
    """This process does not have the lease, or the broker did not confirm in time that it has."""


class Term:
    """One channel that consumes the queue of a lease, until it is lost.

    Attributes:
        active: Done once anything is delivered: all other consumers wait from then on.
        ended: Done once the channel is lost or the consumer cancelled, with the reason.
        tokens: What was delivered.
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
        self._never: asyncio.Future[None] = loop.create_future()

    @property
    def is_blocked(self) -> bool:
        """Whether the broker blocks publishers, and so takes no token."""
        return self._confirms is not None and self._confirms.blocked

    async def begin(self) -> None:
        """Consume.

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
        channel.tap(Inlet(self._receive, channel.acks, self._queue, tag))
        await channel.prefetch(_PREFETCH)
        await channel.consume(self._queue, tag, {})

    async def fill(self) -> None:
        """Publish a token with number 0, in case the queue is empty. Raises as `take` does."""
        await self._publish(Token())

    async def take(self, scheduled: float | None = None, after: float = 0.0) -> int:
        """Take a number that is higher than all before, by any process.

        Args:
            scheduled: When the run with this number is due; None if it is no run.
            after: When the run before it was due.

        Raises:
            NotHeld: Another run has begun since the one that was due at *after*.
            BrokerRefused: The user may not publish to the queue.
            ConnectionLost: The channel or the session was lost, or the lease with them.
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
        """Note that nothing more comes."""
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
            await confirms.writable(self._never)
            confirm = confirms.publish(
                Outgoing(message_id, "", self._queue, True, encode(properties), token.encode())
            )
            confirm.add_done_callback(lambda done: done.cancelled() or done.exception())
            await self._unless_ended(confirm)
        except Returned as error:
            raise ConnectionLost(f"queue {self._queue!r} was deleted: {error}") from error
        except Refused as error:
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
