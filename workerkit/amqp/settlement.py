"""Carry out what was decided about a message: the theory of operation.

A message is in one of three states:

* *unsettled*, from its delivery until `basic.ack`, `basic.reject` or `basic.nack` is sent for it on
  the channel that delivered it;
* *settled* after that;
* *lost*, if that channel is closed before. Then nothing can be sent for it any more, because a
  delivery tag is valid on its own channel only (AMQP 0-9-1), and the broker redelivers it.

The rules, and why the protocol requires them:

1. A message is acknowledged after its copy was confirmed, never before: AMQP cannot move a message
   to another queue in one step. If the process ends in between, there are two messages, never none.
2. If a copy was not confirmed, the original is requeued after a pause: the next attempt would
   probably fail as well.
3. If a requeue could lose the message, it stays unsettled instead, and its dead letter is published
   again until it is confirmed or the process stops. A quorum queue drops a message that was
   requeued more often than its delivery limit, and a stream takes no message back.
4. A retry is made in place, without a copy, if a copy could not return or would reach others. All
   consumers of a stream would get the copy. The queue of one process is deleted with its
   connection; so there is nothing that its dead letters could be replayed to either.
5. A reply is confirmed before its request is settled; see `amqp.answers`.
6. A message that exceeds the size limit has no body here, so it cannot be copied. The broker can
   move it to the dead-letter exchange of its queue, and a stream keeps it anyway.

`TABLE` has the first step for each action and kind of queue, `COPY_FAILED` the step after a copy
that was not confirmed, and `OVERSIZED` the step instead of a dead letter without a body. No other
module decides about that. `amqp.acks` sends the acknowledgement, `amqp.copies` publishes copies,
and `amqp.requeue` requeues. `amqp.redelivery` decides before the handler is called whether a
redelivered message may be handled at all.
"""

import logging
from collections.abc import Awaitable, Mapping
from enum import IntEnum, StrEnum
from typing import Any

from workerkit.amqp.answers import Answers
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.copies import Copies, CopyPublisher, acknowledge_original, log_failure
from workerkit.amqp.incoming import Oversized
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.queue import Queue
from workerkit.amqp.queue_types import QueueTypes
from workerkit.amqp.requeue import Requeue
from workerkit.delivery import Action, Outcome
from workerkit.errors import MessageTooLarge
from workerkit.health import Part
from workerkit.safe_text import Redact
from workerkit.tasks import Backoff, sleep_unless_stopping

log = logging.getLogger(__name__)


class Step(StrEnum):
    """What is done about a message.

    Attributes:
        ACK: basic.ack.
        REJECT: basic.reject: to the queue's dead-letter exchange, or dropped if it has none.
        REQUEUE: Back into the queue, after a pause if it keeps failing.
        IN_PLACE: The handler is called again; the message stays unsettled.
        RETRY: A copy to a retry queue, then basic.ack.
        DEAD_LETTER: A copy to the dead-letter queue, then basic.ack.
        HOLD: The message stays unsettled.
    """

    ACK = "ack"
    REJECT = "reject"
    REQUEUE = "requeue"
    IN_PLACE = "in_place"
    RETRY = "retry"
    DEAD_LETTER = "dead_letter"
    HOLD = "hold"


class QueueKind(IntEnum):
    """The kinds of queues, which are the columns of the tables.

    Attributes:
        QUEUE: It takes the message back.
        AT_LIMIT: A quorum queue that could drop the message if it is requeued.
        STREAM: It keeps all messages, and takes none back.
        PER_PROCESS: A queue that is deleted with its connection.
    """

    QUEUE = 0
    AT_LIMIT = 1
    STREAM = 2
    PER_PROCESS = 3


Steps = tuple[Step, Step, Step, Step]

# fmt: off
TABLE: Mapping[Action, Steps] = {
    #                    QUEUE             AT_LIMIT          STREAM            PER_PROCESS
    Action.ACK:         (Step.ACK,         Step.ACK,         Step.ACK,         Step.ACK),
    Action.REJECT:      (Step.REJECT,      Step.REJECT,      Step.REJECT,      Step.REJECT),
    Action.REQUEUE:     (Step.REQUEUE,     Step.DEAD_LETTER, Step.DEAD_LETTER, Step.REQUEUE),
    Action.RETRY:       (Step.RETRY,       Step.RETRY,       Step.IN_PLACE,    Step.IN_PLACE),
    Action.DEAD_LETTER: (Step.DEAD_LETTER, Step.DEAD_LETTER, Step.DEAD_LETTER, Step.REJECT),
}
"""The first step for each action. A retry without a delay is made in place on every queue."""

COPY_FAILED: Mapping[Step, Steps] = {
    Step.RETRY:         (Step.REQUEUE,     Step.DEAD_LETTER, Step.IN_PLACE,    Step.IN_PLACE),
    Step.DEAD_LETTER:   (Step.REQUEUE,     Step.HOLD,        Step.HOLD,        Step.REJECT),
}
"""The step after a copy that was not confirmed.

A retry whose headers are too large is dead-lettered: a dead letter may leave headers out.
"""

OVERSIZED: Mapping[bool, Steps] = {
    True:               (Step.REJECT,      Step.REJECT,      Step.ACK,         Step.REJECT),
    False:              (Step.HOLD,        Step.HOLD,        Step.ACK,         Step.REJECT),
}
"""The step instead of a dead letter without a body; True: the queue has a dead-letter exchange."""
# fmt: on

_DEAD_LETTER_EXCHANGE = "x-dead-letter-exchange"
_HELD_OVERSIZED = (
    "queue {0.queue!r} has a message of {0.size} bytes, more than {0.setting} allows, and no "
    "dead_letter_exchange to reject it to"
)
_OVERSIZED_RESULTS = {
    Step.ACK: "skipped; it stays in the stream",
    Step.REJECT: "rejected to the queue's dead_letter_exchange",
    Step.HOLD: "left unacknowledged: the queue has no dead_letter_exchange",
}
_ANSWERED = (Step.ACK, Step.REJECT)
_ACTIONS = {
    **{Step(action.value): action for action in Action},
    Step.IN_PLACE: Action.RETRY,
    Step.HOLD: Action.DEAD_LETTER,
}


class AMQPSettlement:
    """Settles the messages of one consumer.

    Args:
        answers: Replies to requests; None if the consumer does not reply.

    Attributes:
        requeue: Requeues messages.
        parts: Health by queue, which shows that a message cannot be settled at all.
    """

    def __init__(
        self,
        options: AMQPOptions,
        publisher: CopyPublisher,
        types: QueueTypes,
        redact: Redact | None = None,
        answers: Answers | None = None,
    ) -> None:
        self._answers = answers
        self._name = options.name
        self._queues = {queue.name: queue for queue in options.queues}
        self._kinds = {queue.name: _kind(queue) for queue in options.queues}
        self._copies = Copies(options, publisher, redact)
        self.requeue = Requeue(options, publisher, types)
        self.parts: Mapping[str, Part] = {}

    def is_in_place(self, message: AMQPMessage[Any], outcome: Outcome) -> bool:
        """Return whether the next attempt is made while the message stays unsettled."""
        if outcome.action is not Action.RETRY or message.acks.lost:
            return False
        return not outcome.delay or self._step(TABLE[Action.RETRY], message) is Step.IN_PLACE

    async def settle(self, message: AMQPMessage[Any], outcome: Outcome) -> tuple[Action, bool]:
        """Carry out any outcome, except for a retry in place.

        Returns:
            What was done, which differs from the decision where that was not possible; and False
            if the message is not settled: its channel is lost, or it is held.
        """
        step = self._step(TABLE[outcome.action], message)
        if message.acks.lost:
            if step is Step.ACK:
                await self._answer(message, outcome)
            return _ACTIONS[step], False
        if isinstance(message, Oversized) and step is Step.DEAD_LETTER:
            return await self._settle_oversized(message, outcome)
        if step is Step.RETRY:
            error = await self._failure(message, self._copies.retry(message, outcome))
            if error is None:
                return Action.RETRY, self._acknowledge_original(message)
            step = self._step(COPY_FAILED[step], message)
            if isinstance(error, MessageTooLarge):
                step = Step.DEAD_LETTER  # It may leave headers out.
        if step is Step.DEAD_LETTER:
            if await self._dead_letter(message, outcome):
                settled = await self._answer(message, outcome)
                return Action.DEAD_LETTER, settled and self._acknowledge_original(message)
            step = self._step(COPY_FAILED[step], message)
        return await self._settle_original(message, outcome, step)

    async def _settle_original(
        self, message: AMQPMessage[Any], outcome: Outcome, step: Step
    ) -> tuple[Action, bool]:
        """Carry out a step without a copy."""
        if step in _ANSWERED and not await self._answer(message, outcome):
            return _ACTIONS[step], False
        if step is Step.ACK:
            self._note_success(message)
            return Action.ACK, message.acks.ack(message.tag, message)
        if step is Step.REJECT:
            return Action.REJECT, message.acks.reject(message.tag, requeue=False)
        if step is Step.REQUEUE:
            copy_failed = outcome.action is not Action.REQUEUE
            requeued = await self.requeue.after_pause(message, pause_first=copy_failed)
            return Action.REQUEUE, requeued
        return _ACTIONS[step], False

    async def _answer(self, message: AMQPMessage[Any], outcome: Outcome) -> bool:
        """Reply to a request that is settled next; return False if it has to stay unsettled."""
        if self._answers is None:
            return True
        return await self._answers.send(message, outcome, self.requeue.stopping)

    def _step(self, row: Steps, message: AMQPMessage[Any]) -> Step:
        """Return the step of a row for a message."""
        step = row[self._kinds[message.queue]]
        if step is Step.REQUEUE and self.requeue.is_at_limit(message):
            return row[QueueKind.AT_LIMIT]
        return step

    def _acknowledge_original(self, message: AMQPMessage[Any]) -> bool:
        """Acknowledge a message whose copy was confirmed; return False if its channel is lost."""
        self._note_success(message)
        return acknowledge_original(message)

    def _note_success(self, message: AMQPMessage[Any]) -> None:
        if self.requeue.failing:
            self.requeue.succeeded(message)

    async def _settle_oversized(self, message: Oversized, outcome: Outcome) -> tuple[Action, bool]:
        """Settle a dead letter that cannot be copied, because its body was discarded.

        A message that is held is not lost, and other messages are handled.
        """
        has_exchange = _DEAD_LETTER_EXCHANGE in self._queues[message.queue].declared_arguments
        step = self._step(OVERSIZED[has_exchange], message)
        settled = False
        if step in _ANSWERED and not await self._answer(message, outcome):
            return _ACTIONS[step], False
        if step is Step.ACK:
            settled = message.acks.ack(message.tag)
        elif step is Step.REJECT:
            settled = message.acks.reject(message.tag, requeue=False)
        elif message.queue in self.parts:
            self.parts[message.queue].waiting(_HELD_OVERSIZED.format(message))
        log.error(
            "message is too large to be read",
            exc_info=outcome.error,
            extra={
                "consumer": self._name,
                "delivery": str(message),
                "size": message.size,
                "limited_by": message.setting,
                "done": _OVERSIZED_RESULTS[step],
            },
        )
        return _ACTIONS[step], settled

    async def _dead_letter(self, message: AMQPMessage[Any], outcome: Outcome) -> bool:
        """Publish a dead letter; return whether it was confirmed.

        If the message would be held otherwise, this is tried until the process stops.
        """
        backoff = None
        while await self._failure(message, self._copies.dead_letter(message, outcome), last=True):
            follows = self._step(COPY_FAILED[Step.DEAD_LETTER], message)
            if follows is not Step.HOLD or message.acks.lost:
                return False
            backoff = backoff or Backoff(first=1.0)
            if not await sleep_unless_stopping(backoff.next(), self.requeue.stopping):
                return False
        return True

    async def _failure(
        self, message: AMQPMessage[Any], publishing: Awaitable[None], *, last: bool = False
    ) -> Exception | None:
        """Await the publishing of a copy; log and return the reason if it failed.

        Args:
            last: No dead letter follows, which would be an ERROR by itself.
        """
        try:
            await publishing
        except Exception as error:
            # No error may lose the original, or end its worker.
            harmless = isinstance(error, MessageTooLarge) and not last
            log_failure(self._name, message, error, harmless=harmless)
            return error
        return None


def _kind(queue: Queue) -> QueueKind:
    if queue.is_stream:
        return QueueKind.STREAM
    return QueueKind.PER_PROCESS if queue.per_process else QueueKind.QUEUE
