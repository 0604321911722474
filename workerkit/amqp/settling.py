"""Carry out what was decided about a message, on the channel that delivered it."""

import asyncio
import logging
from typing import Any

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.dead_letters import DeadLetters
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.pacing import near_limit
from workerkit.amqp.requeue import Requeue
from workerkit.delivery import Action, Outcome

log = logging.getLogger(__name__)

_STREAM_PAUSE = 1.0


class Settling:
    """Everything but the acknowledgement of a message that went well.

    A message is settled on the channel that delivered it or not at all: when that is lost, the
    broker delivers the message again.

    Attributes:
        failing: Whether messages have failed in a row, so that a success has to be told as well.
    """

    def __init__(self, options: AMQPOptions, dead_letters: DeadLetters) -> None:
        self._name = options.name
        self._dead_letters = dead_letters
        self._limits = {queue.name: queue.known_delivery_limit for queue in options.queues}
        self.failing = False
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
        stream = message.queue in self._streams
        if action is Action.REQUEUE and (stream or self._near_limit(message)):
            action = Action.DEAD_LETTER
        if message.acks.lost:
            return action, False
        if action is Action.ACK:
            self._requeues[message.queue].succeeded(message)
            self.failing = any(each.failing for each in self._requeues.values())
            return action, message.acks.ack(message.tag)
        if action is Action.REJECT:
            return action, message.acks.reject(message.tag, requeue=False)
        if action is Action.DEAD_LETTER:
            buried = await self._buried(message, outcome)
            while stream and not buried and not message.acks.lost:
                # There is no way back into a stream: to reject would be to acknowledge.
                await asyncio.sleep(_STREAM_PAUSE)
                buried = await self._buried(message, outcome)
            if buried:
                return action, message.acks.ack(message.tag)
        stubborn = action is Action.DEAD_LETTER
        requeue = self._requeues[message.queue]
        self.failing = True
        return Action.REQUEUE, await requeue.put(message, stubborn=stubborn)

    def hurry(self) -> None:
        """The process stops: put back at once what waits to go back, now and from now on."""
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

    def _near_limit(self, message: AMQPMessage[Any]) -> bool:
        limit = self._limits[message.queue]
        return near_limit(message.delivery_count, limit, redelivered=message.redelivered)

    async def _buried(self, message: AMQPMessage[Any], outcome: Outcome) -> bool:
        """Move to the dead letters; False where that failed, and the original has to stay."""
        try:
            await self._dead_letters.move(message, outcome)
        except Exception:
            # Whatever it is, the original must neither be lost nor take its worker along.
            log.exception(
                "dead letter could not be moved: the message goes back",
                extra={"consumer": self._name, "delivery": repr(message)},
            )
            return False
        return True
