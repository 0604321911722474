"""The channels on which one connection publishes: a shared one, and one for each trial.

RabbitMQ closes a channel because of a single message that is too large, that goes to an exchange
without permission to write to it, or that has the user id of another user. The outcome of all
other messages that wait for a confirm on that channel is then unknown. So the first message with a
new exchange, user id or size is a trial: it is published on a separate channel.
"""

import asyncio
import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from workerkit.amqp.confirms import Confirms, MessageRefused, MessageReturned
from workerkit.amqp.declare import ensure_exchange
from workerkit.amqp.frames import PRECONDITION_FAILED
from workerkit.amqp.outgoing import DIRECT_REPLY_TO, OutgoingMessage
from workerkit.amqp.queue import Exchange
from workerkit.amqp.requests import Requests
from workerkit.amqp.session import Session
from workerkit.errors import ConnectionLost, MessageTooLarge, PublishTimeout

_REPLIES = "replies"
_MAX_TRIALS = 16
_TRIAL_WAIT = 1.0  # Seconds to wait for another trial of the same exchange, user id or size.
_ASSUMED_SIZE = 131_072
# message size 17000000 is larger than configured max size 16777216: RabbitMQ 3.10 to 4.3.
_LIMIT = re.compile(r"message size \d+ is larger than configured max size (\d+)")
CONFIRM_DEADLINE = 9.0
"""Seconds without any confirm after which a connection is closed; `publish` waits 10."""
CLOSED = "the publisher was closed before the message could be sent"


@dataclass(slots=True, eq=False)
class _Trial:
    """A publish that shows whether the broker accepts an exchange, a user id or a size.

    Attributes:
        waiting: Publishes that wait for the result, in order. The result of each key is the future
            of the confirm, or None if the message has to be sent in another way.
    """

    waiting: "dict[asyncio.Future[Any], tuple[OutgoingMessage, Exchange | str]]" = field(
        default_factory=dict
    )


class PublishingChannels:
    """The publishing channels of one session.

    Args:
        closed: Done when the publisher is closed.
        requests: Receives replies: each of the channels consumes them. None if nothing waits for
            replies.

    Attributes:
        session: The session of the channels.
    """

    def __init__(
        self, session: Session, closed: "asyncio.Future[None]", requests: Requests | None = None
    ) -> None:
        self.session = session
        self._requests = requests
        self._closed = closed
        self._shared: Confirms | None = None
        self._open: set[Confirms] = set()
        self._last_confirm = 0.0
        self._opening = asyncio.Lock()
        self._proven_exchanges: set[Exchange | str] = set()
        self._proven_users: set[str | None] = {None}
        self._proven_size = _ASSUMED_SIZE
        self._size_limit: int | None = None
        self._trials: dict[object, _Trial] = {}
        self._free = asyncio.Semaphore(_MAX_TRIALS)
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def blocked(self) -> bool:
        """Return whether the broker blocks publishers of this connection."""
        return not self.session.gone and not self.session.protocol.unblocked.is_set()

    def publish_now(
        self, message: OutgoingMessage, exchange: Exchange | str
    ) -> "asyncio.Future[None] | None":
        """Send a message as `publish` does; return None if it cannot be sent immediately.

        Nearly all messages can be sent immediately, and a coroutine for each would be slower.
        """
        shared = self._shared
        if shared is None or shared.lost or self._closed.done() or not shared.is_writable:
            return None
        return shared.publish(message) if self._needs_trial(message, exchange) is None else None

    async def publish(
        self, message: OutgoingMessage, exchange: Exchange | str
    ) -> "asyncio.Future[None]":
        """Send a message; the future is done when the broker has confirmed it.

        Raises:
            BrokerRefused: There is no such exchange.
            MessageTooLarge: The body exceeds the broker's limit, or the properties do not fit into
                a frame.
            PublishTimeout: The publisher was closed.
            ConnectionLost, OSError: Nothing was sent; the connection is lost.
        """
        size = len(message.body)
        if self._size_limit is not None and size > self._size_limit:
            raise MessageTooLarge(
                f"it has {size} bytes, and the broker accepts at most {self._size_limit}"
            )
        if self._shared is not None and self._shared.lost:
            self._reset()
        while (new := self._needs_trial(message, exchange)) is not None:
            if (confirm := await self._publish_trial(message, exchange, new)) is not None:
                return confirm
        shared = self._shared
        if shared is None or shared.lost:
            shared = await self._shared_channel()
        return await self._send(shared, message)

    def drop_if_silent(self) -> None:
        """Close the connection if no publish was confirmed for 9 seconds.

        A node that is cut off from its cluster keeps its connections and sends heartbeats, but it
        cannot confirm; another node may be able to. The connection stays open as long as anything
        is confirmed: then only a single queue is unavailable.
        """
        oldest = min((each.waiting_since for each in self._open), default=math.inf)
        latest = max((each.last_confirm for each in self._open), default=0.0)
        late = asyncio.get_running_loop().time() - oldest >= CONFIRM_DEADLINE
        if late and max(latest, self._last_confirm) < oldest:
            self.session.abort(f"no publish was confirmed within {CONFIRM_DEADLINE:g} s")

    async def _open_channel(self) -> Confirms:
        channel = await self.session.channel(confirms=True)
        confirms = Confirms(self.session, channel, self._requests)
        if self._requests is not None:
            channel.on_cancel = lambda _: self._on_consumer_cancelled(confirms)
            await channel.consume(DIRECT_REPLY_TO, _REPLIES, {}, no_ack=True)
        self._open.add(confirms)
        confirms.channel.lost.add_done_callback(lambda _: self._on_channel_closed(confirms))
        return confirms

    def _on_consumer_cancelled(self, confirms: Confirms) -> None:
        """Close a channel on which no reply can arrive any more."""
        assert self._requests is not None
        self._requests.lost(confirms, ConnectionLost("the broker cancelled the consumer"))
        if self._shared is confirms:
            self._reset()
        self._start_to_retire(confirms)

    def _on_channel_closed(self, confirms: Confirms) -> None:
        self._open.discard(confirms)
        self._last_confirm = max(self._last_confirm, confirms.last_confirm)

    def _needs_trial(self, message: OutgoingMessage, exchange: Exchange | str) -> object:
        """Return what of a message needs a trial: exchange, user id or size; None for most."""
        if exchange not in self._proven_exchanges:
            return exchange
        if message.user_id not in self._proven_users:
            return ("user", message.user_id)
        return "size" if len(message.body) > self._proven_size else None

    async def _publish_trial(
        self, message: OutgoingMessage, exchange: Exchange | str, new: object
    ) -> "asyncio.Future[None] | None":
        """Publish on a separate channel, or after the trial of another publish on the shared one.

        Returns:
            The future of the confirm; None if the trial of the other publish failed.
        """
        if (other := self._trials.get(new)) is not None:
            sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            other.waiting[sent] = message, exchange
            try:
                await asyncio.wait([sent], timeout=_TRIAL_WAIT)
            finally:
                other.waiting.pop(sent, None)
            if sent.done():
                confirm: asyncio.Future[None] | None = sent.result()
                return confirm
        trial = self._trials[new] = _Trial()
        confirms = None
        try:
            await self._free.acquire()
        except BaseException:
            self._remove_trial(new, trial)
            raise
        try:
            if exchange and exchange not in self._proven_exchanges:
                await ensure_exchange(self.session, exchange)
            confirms = await self._open_channel()
            confirm = await self._send(confirms, message)
        except BaseException:
            self._end_trial(new, trial, confirms)
            raise
        confirm.add_done_callback(
            partial(self._on_trial_done, message, exchange, new, trial, confirms)
        )
        return confirm

    def _on_trial_done(
        self,
        message: OutgoingMessage,
        exchange: Exchange | str,
        new: object,
        trial: "_Trial",
        confirms: Confirms,
        confirm: "asyncio.Future[None]",
    ) -> None:
        """Store the result of a trial, and end it."""
        error = asyncio.CancelledError() if confirm.cancelled() else confirm.exception()
        works = error is None or isinstance(error, MessageReturned)
        if isinstance(error, MessageRefused):
            works = not error.code  # A full queue does not close the channel.
            if (limit := _LIMIT.search(str(error))) and error.code == PRECONDITION_FAILED:
                self._size_limit = int(limit[1])
        if works:
            self._proven_exchanges.add(exchange)
            self._proven_users.add(message.user_id)
            self._proven_size = max(self._proven_size, len(message.body))
            if self._shared is None:
                self._shared = confirms
        self._end_trial(new, trial, confirms)

    def _end_trial(self, new: object, trial: "_Trial", confirms: Confirms | None) -> None:
        self._free.release()
        self._remove_trial(new, trial)
        if confirms is not None and confirms is not self._shared and not confirms.lost:
            self._start_to_retire(confirms)

    def _start_to_retire(self, confirms: Confirms) -> None:
        task = asyncio.create_task(self._retire(confirms))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _remove_trial(self, new: object, trial: "_Trial") -> None:
        """Send the messages that waited for the result, before any message published later."""
        if self._trials.get(new) is trial:
            del self._trials[new]
        for sent, (message, exchange) in trial.waiting.items():
            try:
                sent.set_result(self.publish_now(message, exchange))
            except (MessageTooLarge, ConnectionLost, ValueError) as error:
                sent.set_exception(error)

    async def _retire(self, confirms: Confirms) -> None:
        """Close a channel once the broker does not block: a late reply would close the session.

        If it consumes replies, wait for those to its requests.
        """
        if self._requests is not None:
            await self._requests.idle(confirms)
        with suppress(OSError):
            await confirms.writable(self._closed)
        if not self._closed.done():
            await confirms.channel.close()

    async def _send(self, confirms: Confirms, message: OutgoingMessage) -> "asyncio.Future[None]":
        await confirms.writable(self._closed)
        if self._closed.done():
            raise PublishTimeout(CLOSED)
        return confirms.publish(message)

    async def _shared_channel(self) -> Confirms:
        async with self._opening:
            if self._shared is None or self._shared.lost:
                self._shared = await self._open_channel()
            return self._shared

    def _reset(self) -> None:
        """Discard the results of all trials, as the shared channel is lost."""
        self._shared = None
        self._proven_exchanges.clear()
        self._proven_users = {None}
        self._proven_size = _ASSUMED_SIZE
