"""Carry out what was decided about a message, on the channel that delivered it."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.dead_letters import DeadLetters
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.moving import Moves
from workerkit.amqp.pacing import at_limit, near_limit
from workerkit.amqp.requeue import Requeue
from workerkit.amqp.retries import Retries
from workerkit.delivery import Action, Outcome
from workerkit.errors import MessageTooLarge, Reject
from workerkit.supervisor import Backoff, paused

log = logging.getLogger(__name__)


class Settling:
    """Everything but the acknowledgement of a message that went well.

    A message is settled on the channel that delivered it or not at all: when that is lost, the
    broker delivers the message again.

    Attributes:
        failing: Whether messages have failed in a row, so that a success has to be told as well.
    """

    def __init__(self, options: AMQPOptions, moves: Moves) -> None:
        self._name = options.name
        self._dead_letters = DeadLetters(moves, options.queues, options.name)
        self._retries = Retries(moves, options.queues, options.retry)
        self._limits = {queue.name: queue.known_delivery_limit for queue in options.queues}
        self.failing = False
        self._stopping = asyncio.Event()
        self._streams = {queue.name for queue in options.queues if queue.is_stream}
        most = options.prefetch_count // 2
        self._requeues = {queue.name: Requeue(most) for queue in options.queues}

    async def settle(self, message: AMQPMessage[Any], outcome: Outcome) -> tuple[Action, bool]:
        """Carry out any outcome.

        Returns:
            What was done, which differs from the decision where that was not possible; and False
            if the channel is lost.
        """
        action = outcome.action
        if action is Action.REQUEUE and self._no_way_back(message):
            action = Action.DEAD_LETTER
        if message.acks.lost:
            return action, False
        if action is Action.ACK:
            self._progressed(message)
            return action, message.acks.ack(message.tag, message)
        if action is Action.REJECT:
            return action, message.acks.reject(message.tag, requeue=False)
        if action is Action.RETRY:
            failure = await self._failure(message, self._retries.postpone(message, outcome))
            if failure is None:
                return action, self._moved(message)
            if isinstance(failure, MessageTooLarge) or self._no_way_back(message):
                # As a dead letter it may leave headers behind; and it must not go back.
                action = Action.DEAD_LETTER
        if action is Action.DEAD_LETTER and await self._buried(message, outcome):
            return action, self._moved(message)
        if self._no_way_back(message):
            # To reject it would be to lose it: it stays as it is, and the process stops.
            return action, False
        stubborn = outcome.action is not Action.REQUEUE
        requeue = self._requeues[message.queue]
        self.failing = True
        return Action.REQUEUE, await requeue.put(message, stubborn=stubborn)

    def in_place(self, message: AMQPMessage[Any], outcome: Outcome) -> bool:
        """Whether the next try is made without letting go of the message."""
        if outcome.action is not Action.RETRY or message.acks.lost:
            return False
        # What comes back to a stream comes to everybody who reads it.
        return not outcome.delay or message.queue in self._streams

    def given_up(self, message: AMQPMessage[Any]) -> Outcome | None:
        """What becomes of a redelivered message that seems to end processes; None for all others.

        Only a quorum queue counts how often it comes back.
        """
        count = message.delivery_count
        if not count or not at_limit(count, self._limits[message.queue]):
            return None
        return Outcome(
            Action.DEAD_LETTER, Reject(f"came back {count} times, and was never settled")
        )

    def hurry(self) -> None:
        """The process stops: put back at once what waits to go back, now and from now on."""
        self._stopping.set()
        for requeue in self._requeues.values():
            requeue.hurry()

    def release(self) -> None:
        """Put back at once what waits to go back now."""
        for requeue in self._requeues.values():
            requeue.release()

    def forget(self) -> None:
        """A channel is lost: what came on it and waits to go back has gone back by itself."""
        for requeue in self._requeues.values():
            requeue.forget()

    def _moved(self, message: AMQPMessage[Any]) -> bool:
        """Acknowledge an original whose copy has arrived; False if the channel is lost."""
        self._progressed(message)
        return message.acks.ack(message.tag)

    def _progressed(self, message: AMQPMessage[Any]) -> None:
        """A message leaves its queue: those that come again begin with short pauses."""
        self._requeues[message.queue].succeeded(message)
        self.failing = any(each.failing for each in self._requeues.values())

    def _no_way_back(self, message: AMQPMessage[Any]) -> bool:
        """Whether the queue would not take the message, or drop it."""
        if message.queue in self._streams:
            return True
        limit = self._limits[message.queue]
        return near_limit(message.delivery_count, limit, redelivered=message.redelivered)

    async def _buried(self, message: AMQPMessage[Any], outcome: Outcome) -> bool:
        """Move to the dead letters; False where that failed, and the original has to stay."""
        backoff = Backoff(first=1.0)
        while await self._failure(message, self._dead_letters.bury(message, outcome)):
            if not self._no_way_back(message) or message.acks.lost:
                return False
            if not await paused(backoff.next(), self._stopping):
                return False
        return True

    async def _failure(
        self, message: AMQPMessage[Any], moving: Awaitable[None]
    ) -> Exception | None:
        """Await a move, and tell why it failed."""
        try:
            await moving
        except Exception as error:
            # Whatever it is, the original must neither be lost nor take its worker along.
            log.exception(
                "message could not be moved and stays",
                extra={"consumer": self._name, "delivery": repr(message)},
            )
            return error
        return None
