"""Requeue messages: after a pause if they keep failing, and so that RabbitMQ drops none of them.

The pause. A message that fails for the first time is requeued at once: another process may succeed.
A message that was delivered before and fails again is held first, and longer with each such failure
in a row, so that it does not circulate as fast as the broker delivers it.

The count. A quorum queue counts how often a message is requeued, and drops it when the count
exceeds its delivery limit. The limit may come from a policy or another declaration, and a client
cannot read it. If the class does not state it, workerkit does not rely on that count:

* From RabbitMQ 4.3 on, basic.nack does not count.
* Before that, every requeue counts. So a copy is published to the end of the same queue, and the
  original is acknowledged after the confirm. The copy is a new message, which a header counts.

RabbitMQ counts a message that it requeues because a connection or a process ended. Such a message
is replaced with a copy before it is handled, so that its count starts at 0.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.copies import CopyPublisher, acknowledge_original, copied, log_failure
from workerkit.amqp.dead_letters import FIRST_FAILED_AT, history, now
from workerkit.amqp.message import ATTEMPT, QUEUE, RETURNS, AMQPMessage, sent_attempt
from workerkit.amqp.properties import Properties
from workerkit.amqp.queue_types import QueueTypes
from workerkit.errors import PublishRefused
from workerkit.retry import growing_pause
from workerkit.tasks import sleep_unless_stopping

log = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_SAME_FAILURE = 0.05  # Seconds between failures that count as one.
_SHORTEST_HOLD = 1.0
_UNCOUNTED = ("classic", "stream")
_TOO_MANY_FAILURES = 15
_COPY_FAILED_PAUSE = 1.0


class Requeue:
    """Requeues the messages of one consumer.

    Args:
        publisher: Publishes the copies.
        types: The types that the queues have at the broker.

    Attributes:
        failing: Whether messages have failed in a row, so that `succeeded` has to be called.
        stopping: Set when the process stops.
        handle_again: Called with a message that could not be requeued.
    """

    handle_again: Callable[[AMQPMessage[Any]], None]

    def __init__(self, options: AMQPOptions, publisher: CopyPublisher, types: QueueTypes) -> None:
        self._name = options.name
        self._queues = {queue.name: queue for queue in options.queues}
        self._limits = {queue.name: queue.known_delivery_limit for queue in options.queues}
        self._publisher = publisher
        self._types = types
        self._copying: set[asyncio.Task[None]] = set()
        self.failing = self._keeps = False
        self.stopping = asyncio.Event()
        most = _most_held(options.prefetch_count)
        self._pauses = {name: _Pauses(most, self.at_once, self.stopping) for name in self._queues}

    def adapt(self, prefetch: int) -> None:
        """Hold fewer or more failed messages at the same time, after a change of the prefetch."""
        for pauses in self._pauses.values():
            pauses.most = _most_held(prefetch)

    def keep_failed(self) -> None:
        """From now on, keep a message that fails again until `stop`: for bursts.

        If it were requeued, it would be delivered and fail again, and the burst would never end.
        """
        self._keeps = True
        for pauses in self._pauses.values():
            pauses.keeps = True

    @property
    def copying(self) -> int:
        """The number of messages whose copies are not confirmed yet."""
        return len(self._copying)

    async def after_pause(self, message: AMQPMessage[Any], *, pause_first: bool = False) -> bool:
        """Requeue *message*, now or later; return when it needs no worker any more.

        Args:
            pause_first: Hold it even if it was never delivered before: a copy of it could not be
                published, and the next attempt would fail as well.

        Returns:
            False if its channel is lost: the broker has requeued it already.
        """
        self.failing = True
        return await self._pauses[message.queue].put(message, message.redelivered or pause_first)

    def succeeded(self, message: AMQPMessage[Any]) -> None:
        """Note that a message leaves its queue: if it was redelivered, pauses are short again."""
        if message.redelivered:
            self._pauses[message.queue].failures = 0
        self.failing = any(each.failures for each in self._pauses.values())

    def at_once(self, message: AMQPMessage[Any], *, failed: bool = True) -> bool:
        """Requeue *message*, at once or after its copy was confirmed.

        Args:
            failed: A handler has started with it. Else it was only prefetched.

        Returns:
            False if its channel is lost: the broker has requeued it already.
        """
        if message.acks.lost:
            return False
        limit = self._limits[message.queue]
        if self._types.of(message.queue) in _UNCOUNTED or self._queues[message.queue].is_stream:
            return message.acks.reject(message.tag, requeue=True)
        if not self._types.nack_counts and (limit is None or not failed):
            return message.acks.nack(message.tag)
        if limit is None:
            safe = self._types.of(message.queue) is None and self._is_classic(message)
        else:
            safe = failed or limit < 0 or self._types.delivery_count(message) < limit
        if safe:
            return message.acks.reject(message.tag, requeue=True)
        task = asyncio.create_task(self._copy(message, failed))
        self._copying.add(task)
        task.add_done_callback(self._copying.discard)
        return True

    def without_counting(self, messages: list[AMQPMessage[Any]]) -> None:
        """Requeue messages that RabbitMQ would count if the channel were closed now.

        It does nothing where basic.nack counts as well.

        Args:
            messages: Prefetched; no handler has started with them.
        """
        if self._types.nack_counts:
            return
        for message in messages:
            if self._types.of(message.queue) in (None, "quorum"):
                message.acks.nack(message.tag)

    async def replace_with_copy(self, message: AMQPMessage[Any]) -> bool:
        """Replace a redelivered message with a copy that the broker has not counted.

        Returns:
            False if that is not necessary, or if the copy was not confirmed: handle the message.
            True also if the channel of the message is lost: the broker redelivers it.
        """
        limit = self._limits[message.queue]
        if limit is not None or not self._types.delivery_count(message):
            return False
        try:
            await self._move(message, failed=True)
        except Exception:
            if message.acks.lost:
                return True
            log.warning(
                "redelivered message could not be copied",
                exc_info=True,
                extra={"consumer": self._name, "delivery": str(message)},
            )
            return False
        return True

    def is_at_limit(self, message: AMQPMessage[Any]) -> bool:
        """Return whether a message must not be requeued, because its queue could drop it."""
        limit, count = self._limits[message.queue], self._types.delivery_count(message)
        if limit is None:
            if not self._types.nack_counts:
                count = message.acquired_count
            is_quorum = self._types.of(message.queue) == "quorum"
            return is_quorum and message.returns + count >= _TOO_MANY_FAILURES
        return limit >= 0 and count >= min(limit, max(limit - 1, 1))

    def release(self) -> None:
        """Requeue all messages that are held now."""
        for pauses in self._pauses.values():
            pauses.release()

    def forget_lost(self) -> None:
        """Release the messages of a lost channel: the broker has requeued them."""
        for pauses in self._pauses.values():
            pauses.forget_lost()

    def stop(self) -> None:
        """Requeue all messages at once, now and from now on.

        A message that cannot be copied is not tried again: it stays until its channel is closed.
        """
        self.stopping.set()
        for pauses in self._pauses.values():
            pauses.release()
            pauses.room.set()

    async def wait(self) -> None:
        """Wait until all copies are confirmed or have failed."""
        while self._copying:
            await asyncio.wait(self._copying)

    async def _copy(self, message: AMQPMessage[Any], failed: bool) -> None:
        """Copy, then acknowledge. A message that cannot be copied is handled again.

        A full queue refuses the copy. It stays full as long as the messages that wait here take
        the whole prefetch.
        """
        try:
            await self._move(message, failed=failed)
        except Exception as error:
            if isinstance(error, PublishRefused) and self._types.of(message.queue) is None:
                # The user may neither declare nor publish, so the type is unknown: assume classic.
                message.acks.nack(message.tag)
                return
            log_failure(self._name, message, error)
            if self._keeps:
                self._pauses[message.queue].keep(message)
            elif (
                await sleep_unless_stopping(_COPY_FAILED_PAUSE, self.stopping)
                and not message.acks.lost
            ):
                message.count_failure_in_place()
                self.handle_again(message)

    async def _move(self, message: AMQPMessage[Any], *, failed: bool) -> None:
        """Copy, then acknowledge."""
        tries = same_queue_copies(message, failed=failed)
        await self._publisher.publish(message, self._queues[message.queue], tries)
        if next(tries, None) is None:
            # The copy looks like the original.
            message.acks.ack(message.tag)
        else:
            acknowledge_original(message)

    def _is_classic(self, message: AMQPMessage[Any]) -> bool:
        """Return whether a redelivery shows it: a quorum queue adds its delivery count to each."""
        return message.redelivered_flag and "x-delivery-count" not in message.sent


class _Held(NamedTuple):
    """A message that is held before it is requeued.

    Attributes:
        since: The loop's time.
        timer: Requeues it; None if it is kept until the process stops.
    """

    since: float
    timer: asyncio.TimerHandle | None


class _Pauses:
    """The messages of one queue that are held, and how long the next one is.

    A held message is unacknowledged, so it counts against the prefetch, but it needs no worker.

    Args:
        most: Messages that may be held at the same time. One more keeps its worker until the oldest
            was held for a second and is requeued. To requeue that at once would have it redelivered
            at once, and a hundred messages that fail would circulate without a pause.
        requeue: Requeues a message; returns False if its channel is lost.

    Attributes:
        most: See above.
        failures: Failures in a row of messages that were delivered before.
        keeps: Messages are held until the process stops, any number of them.
        room: Set when a message is released.
    """

    def __init__(
        self, most: int, requeue: Callable[[AMQPMessage[Any]], bool], stopping: asyncio.Event
    ) -> None:
        self.most = most
        self._requeue = requeue
        self._stopping = stopping
        self._held: dict[AMQPMessage[Any], _Held] = {}
        self._last = 0.0
        self.failures = 0
        self.keeps = False
        self.room = asyncio.Event()

    async def put(self, message: AMQPMessage[Any], failed_again: bool) -> bool:
        """Requeue a message that failed, or hold it; False if its channel is lost."""
        loop = asyncio.get_running_loop()
        if failed_again and self.keeps:
            self.keep(message)
            return not message.acks.lost
        if failed_again:
            pause = self._next(loop.time())
            await self._wait_for_room()
        if not failed_again or self._stopping.is_set() or message.acks.lost:
            return self._requeue(message)
        timer = loop.call_later(pause, self._release, message)
        self._held[message] = _Held(loop.time(), timer)
        return True

    def keep(self, message: AMQPMessage[Any]) -> None:
        """Hold a message until the process stops, or at once if it is stopping or lost."""
        if self._stopping.is_set() or message.acks.lost:
            self._requeue(message)
        else:
            self._held[message] = _Held(asyncio.get_running_loop().time(), None)

    def forget_lost(self) -> None:
        """Release the messages of lost channels."""
        for message in [each for each in self._held if each.acks.lost]:
            self._release(message)

    def release(self) -> None:
        """Requeue all messages that are held now."""
        for message in list(self._held):
            self._release(message)

    def _next(self, now: float) -> float:
        """Count a failure, and return the seconds to hold the message.

        The messages of a batch fail at the same time, and that is one failure.
        """
        if not self.failures or now - self._last > _SAME_FAILURE:
            self.failures += 1
        self._last = now
        return growing_pause(self.failures, _FIRST_PAUSE, _LONGEST_PAUSE)

    async def _wait_for_room(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self._held) >= self.most and not self._stopping.is_set():
            oldest, held = next(iter(self._held.items()))
            self.room.clear()
            try:
                async with asyncio.timeout_at(held.since + _SHORTEST_HOLD):
                    await self.room.wait()
            except TimeoutError:
                if oldest in self._held and loop.time() >= held.since + _SHORTEST_HOLD:
                    self._release(oldest)

    def _release(self, message: AMQPMessage[Any]) -> None:
        timer = self._held.pop(message).timer
        if timer is not None:
            timer.cancel()
        self.room.set()
        self._requeue(message)


def _most_held(prefetch: int) -> int:
    return max(prefetch // 2, 1)


def same_queue_copies(message: AMQPMessage[Any], *, failed: bool) -> Iterator[Properties]:
    """Yield the properties of a copy for the same queue.

    The second ones have no headers of ours, in case the headers do not fit into a frame.
    """
    ours: dict[str, Any] = {
        QUEUE: message.queue,
        RETURNS: message.returns + failed,
        **history(message, now()),
    }
    if not failed and message.past(FIRST_FAILED_AT) is None:
        del ours[FIRST_FAILED_AT]
    if ATTEMPT in message.sent:
        ours[ATTEMPT] = sent_attempt(message)
    for headers in (ours, {}):
        properties = copied(message, headers)
        yield dataclasses.replace(properties, expiration=message.properties.expiration)
