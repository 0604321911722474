"""Carry out what was decided about a message, on the channel that delivered it."""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Any

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.copies import Moves, Retries, acknowledge_original
from workerkit.amqp.dead_letters import DeadLetters
from workerkit.amqp.incoming import Oversized
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.queue_types import QueueTypes
from workerkit.amqp.requeue import Requeue
from workerkit.amqp.safe_requeue import SafeRequeue
from workerkit.delivery import Action, Outcome
from workerkit.errors import MessageTooLarge, Reject
from workerkit.health import Part
from workerkit.safe_text import Redact
from workerkit.tasks import Backoff, sleep_unless_stopping

log = logging.getLogger(__name__)

DEAD_LETTER_EXCHANGE = "x-dead-letter-exchange"
_HELD_OVERSIZED = (
    "queue {0.queue!r} has a message of {0.size} bytes, more than {0.setting} allows, and no "
    "dead_letter_exchange to reject it to"
)
_OVERSIZED_RESULTS = {
    Action.ACK: "skipped; it stays in the stream",
    Action.REJECT: "rejected to the queue's dead_letter_exchange",
    Action.DEAD_LETTER: "left unacknowledged: the queue has no dead_letter_exchange",
}


class Settling:
    """Everything but the acknowledgement of a message that went well.

    A message is settled on the channel that delivered it or not at all: when that is lost, the
    broker delivers the message again.

    Attributes:
        failing: Whether messages have failed in a row, so that a success has to be told as well.
        safe_requeue: Requeues messages.
        parts: Health by queue, notified when a message cannot be settled at all.
    """

    def __init__(
        self, options: AMQPOptions, moves: Moves, types: QueueTypes, redact: Redact | None = None
    ) -> None:
        self._name = options.name
        self._dead_letters = DeadLetters(moves, options, redact)
        self._retries = Retries(moves, options.queues, options.retry)
        self._queues = {queue.name: queue for queue in options.queues}
        self.safe_requeue = SafeRequeue(options, moves, types)
        self.failing = False
        self.parts: Mapping[str, Part] = {}
        self._stopping = asyncio.Event()
        self._streams = {queue.name for queue in options.queues if queue.is_stream}
        self._per_process = {queue.name for queue in options.queues if queue.per_process}
        self._in_place = self._streams | self._per_process
        most = options.prefetch_count // 2
        self._requeues = {
            queue.name: Requeue(most, self.safe_requeue.requeue) for queue in options.queues
        }

    async def settle(self, message: AMQPMessage[Any], outcome: Outcome) -> tuple[Action, bool]:
        """Carry out any outcome.

        Returns:
            What was done, which differs from the decision where that was not possible; and False
            if the channel is lost.
        """
        action = outcome.action
        if action is Action.REQUEUE and self._no_way_back(message):
            action = Action.DEAD_LETTER
        if action is Action.DEAD_LETTER and message.queue in self._per_process:
            action = Action.REJECT
        if message.acks.lost:
            return action, False
        if action is Action.ACK:
            self._progressed(message)
            return action, message.acks.ack(message.tag, message)
        if isinstance(message, Oversized) and action is Action.DEAD_LETTER:
            return self._settle_oversized(message, outcome.error)
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
        # A copy in a stream is delivered to all its consumers, and a copy in a retry queue cannot
        # return to a queue that is deleted with its connection.
        return not outcome.delay or message.queue in self._in_place

    def given_up(self, message: AMQPMessage[Any]) -> Outcome | None:
        """What becomes of a redelivered message that seems to end processes; None for all others.

        Only a quorum queue counts how often it comes back.
        """
        if not (count := self.safe_requeue.excessive_redeliveries(message)):
            return None
        return Outcome(
            Action.DEAD_LETTER, Reject(f"came back {count} times, and was never settled")
        )

    def hurry(self) -> None:
        """The process stops: put back at once what waits to go back, now and from now on."""
        self._stopping.set()
        self.safe_requeue.stop()
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
        return acknowledge_original(message)

    def _progressed(self, message: AMQPMessage[Any]) -> None:
        """A message leaves its queue: those that come again begin with short pauses."""
        self._requeues[message.queue].succeeded(message)
        self.failing = any(each.failing for each in self._requeues.values())

    def _no_way_back(self, message: AMQPMessage[Any]) -> bool:
        """Whether the queue would not take the message, or drop it."""
        return message.queue in self._streams or self.safe_requeue.failed_too_often(message)

    def _settle_oversized(self, message: Oversized, error: Exception | None) -> tuple[Action, bool]:
        """Settle a dead letter that cannot be copied, because its body was discarded.

        If the queue has no dead-letter exchange, the message stays unsettled, so that it is not
        lost; other messages are handled. A stream keeps it anyway.
        """
        if message.queue in self._streams:
            action, settled = Action.ACK, message.acks.ack(message.tag)
        elif DEAD_LETTER_EXCHANGE in self._queues[message.queue].declared_arguments:
            action, settled = Action.REJECT, message.acks.reject(message.tag, requeue=False)
        else:
            action, settled = Action.DEAD_LETTER, False
            if message.queue in self.parts:
                self.parts[message.queue].waiting(_HELD_OVERSIZED.format(message))
        log.error(
            "message is too large to be read",
            exc_info=error,
            extra={
                "consumer": self._name,
                "delivery": str(message),
                "size": message.size,
                "limited_by": message.setting,
                "done": _OVERSIZED_RESULTS[action],
            },
        )
        return action, settled

    async def _buried(self, message: AMQPMessage[Any], outcome: Outcome) -> bool:
        """Move to the dead letters; False where that failed, and the original has to stay."""
        backoff = Backoff(first=1.0)
        while await self._failure(message, self._dead_letters.bury(message, outcome), last=True):
            if not self._no_way_back(message) or message.acks.lost:
                return False
            if not await sleep_unless_stopping(backoff.next(), self._stopping):
                return False
        return True

    async def _failure(
        self, message: AMQPMessage[Any], moving: Awaitable[None], *, last: bool = False
    ) -> Exception | None:
        """Await a move, and tell why it failed.

        It is a WARNING where nobody has to do anything: the connection is lost, so the broker
        delivers the message again, or a dead letter follows, which is an ERROR by itself.

        Args:
            last: No dead letter follows.
        """
        try:
            await moving
        except Exception as error:
            # Whatever it is, the original must neither be lost nor take its worker along.
            harmless = message.acks.lost or (isinstance(error, MessageTooLarge) and not last)
            log.log(
                logging.WARNING if harmless else logging.ERROR,
                "message could not be moved and stays",
                exc_info=error,
                extra={"consumer": self._name, "delivery": str(message)},
            )
            return error
        return None
