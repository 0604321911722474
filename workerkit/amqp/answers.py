"""Reply to requests: messages that have a `reply_to`.

A reply is published and confirmed before its request is acknowledged. So a request whose process
ends in between is redelivered and handled again, and its sender gets a reply then.

* The reply cannot arrive, because its queue is gone, or the broker refuses it: the request is done.
  That is logged, and the request is settled; to handle it again would not help.
* The broker cannot be reached, or does not confirm: the request stays unsettled, and the reply is
  published again. If the connection of the request is lost as well, the reply is kept until the
  request is redelivered, and is published then, without a second call of the handler.
* A reply that was sent three times without a confirm is given up: a sender chooses where it goes,
  and must not be able to occupy a worker for ever.

A reply has no `reply_to` itself, so two consumers never reply to each other in a loop.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from time import time
from typing import Any
from uuid import uuid4

from workerkit.amqp import table
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.copies import CopyPublisher
from workerkit.amqp.incoming import Oversized
from workerkit.amqp.message import DEADLINE, AMQPMessage
from workerkit.amqp.outgoing import DIRECT_REPLY_TO, encode_body
from workerkit.amqp.properties import PERSISTENT, Properties, readable
from workerkit.amqp.redelivery import HANDLED_BEFORE
from workerkit.codec import Codecs
from workerkit.delivery import Action, Outcome
from workerkit.endpoint import Endpoint
from workerkit.errors import (
    BrokerBlocked,
    HandlerTimeout,
    InvalidBody,
    MessageTooLarge,
    PublishError,
    PublishOutcomeUnknown,
    PublishTimeout,
    Reject,
    RequestExpired,
    Retry,
    Unroutable,
)
from workerkit.problem_details import PROBLEM, problem_details
from workerkit.tasks import Backoff, sleep_unless_stopping

log = logging.getLogger(__name__)

REPLY_DEADLINE = 10.0
"""Seconds to wait for the confirm of a reply, before it is published again."""

_MAX_SENT = 3
_MAX_KEPT = 1_000
_MAX_KEPT_BYTES = 16 * 1024 * 1024
_MAX_MILLISECONDS = 2**53
_REPEATED = (PublishTimeout, PublishOutcomeUnknown)
_NOT_SENT = "reply cannot be sent: the request is settled without it"


@dataclass(frozen=True, slots=True)
class _Reply:
    """A reply before it is published.

    Attributes:
        headers: Encoded; those of a CloudEvent.
        message_id: The same, however often it is published.
    """

    body: bytes
    content_type: str | None
    headers: bytes | None = None
    message_id: str = field(default_factory=lambda: uuid4().hex)


class _UnsentReplies:
    """Replies to requests that will be redelivered: the last ones, of a limited size together."""

    def __init__(self) -> None:
        self._replies: OrderedDict[tuple[str, bytes], _Reply] = OrderedDict()
        self._size = 0

    def keep(self, message: AMQPMessage[Any], reply: _Reply) -> None:
        """Keep a reply. Without a message id, the request is handled again when it returns."""
        if not message.message_id or len(reply.body) > _MAX_KEPT_BYTES:
            return
        self.take(message)
        self._replies[message.fingerprint] = reply
        self._size += len(reply.body)
        while len(self._replies) > _MAX_KEPT or self._size > _MAX_KEPT_BYTES:
            _, dropped = self._replies.popitem(last=False)
            self._size -= len(dropped.body)

    def take(self, message: AMQPMessage[Any]) -> _Reply | None:
        """Remove and return the reply to a redelivered request."""
        if not self._replies:
            return None
        reply = self._replies.pop(message.fingerprint, None)
        self._size -= len(reply.body) if reply is not None else 0
        return reply


class Answers:
    """Replies to the requests of one consumer.

    Args:
        always: Whether `handle` is annotated with a value. Then None and failures are replied to.
        codecs: Encode the data of a CloudEvent; all other values have no content type of their own.

    Attributes:
        always: As above.
    """

    def __init__(
        self,
        options: AMQPOptions,
        publisher: CopyPublisher,
        codecs: Codecs,
        *,
        always: bool,
    ) -> None:
        self._name = options.name
        self._only_direct = options.replies == "direct"
        self._publisher = publisher
        self._codecs = codecs
        self.always = always
        self._unsent = _UnsentReplies()
        self._reported = False

    async def send(
        self, message: AMQPMessage[Any], outcome: Outcome, stopping: asyncio.Event
    ) -> bool:
        """Reply to a message that is settled next, if it is a request.

        Args:
            outcome: Of the last attempt: no other one follows.
            stopping: Set when the process stops.

        Returns:
            False if the message must not be settled, so that it is redelivered.
        """
        reply = self._reply(message, outcome)
        if reply is None or not self._may_send(message):
            return True
        backoff, sent = Backoff(first=1.0), 0
        while (error := await self._failure(message, reply)) is not None:
            sent += isinstance(error, PublishOutcomeUnknown)
            if isinstance(error, BrokerBlocked):
                sent = 0  # Nothing is confirmed to anybody.
            if not isinstance(error, _REPEATED) or sent >= _MAX_SENT or is_expired(message):
                self._log(message, _NOT_SENT, error)
                return True
            if message.acks.lost:
                self._unsent.keep(message, reply)
                return True
            self._log(message, "reply is not confirmed: it is sent again", error)
            if not await sleep_unless_stopping(backoff.next(), stopping):
                return False
        return True

    def _reply(self, message: AMQPMessage[Any], outcome: Outcome) -> _Reply | None:
        """Return the reply to a message; None if there is none."""
        error, value = outcome.error, outcome.value
        if outcome is HANDLED_BEFORE:
            return self._unsent.take(message)
        if isinstance(error, RequestExpired):
            return None
        if error is None and (value is not None or self.always) and _is_success(outcome):
            return self._encoded(message, value)
        if not self.always or not message.properties.reply_to:
            return None
        return _Reply(_problem(message, error), PROBLEM)

    def _encoded(self, message: AMQPMessage[Any], value: object) -> _Reply | None:
        if not message.properties.reply_to:
            if value is not None:
                self._report_value(message, value)
            return None
        try:
            raw, content_type, headers = encode_body(value, None, None, self._codecs)
            return _Reply(raw, content_type, table.encode(headers) if headers else None)
        except Exception as error:
            # The value's own code may raise anything: serializers, computed fields.
            log.error(
                "reply cannot be encoded: the sender gets a failure",
                exc_info=error,
                extra={"consumer": self._name, "delivery": str(message)},
            )
            return _Reply(problem_details(500), PROBLEM)

    def _report_value(self, message: AMQPMessage[Any], value: object) -> None:
        """Log that a value was returned for a message that is no request: once as an ERROR."""
        level = logging.DEBUG if self._reported else logging.ERROR
        self._reported = True
        log.log(
            level,
            "value returned by handle is lost: the message has no reply_to",
            extra={
                "consumer": self._name,
                "delivery": str(message),
                "type": type(value).__qualname__,
            },
        )

    def _may_send(self, message: AMQPMessage[Any]) -> bool:
        """Return whether the address of a reply is allowed and valid; log it if not."""
        address = message.properties.reply_to or ""
        if self._only_direct and not address.startswith(f"{DIRECT_REPLY_TO}."):
            reason = "replies = 'direct', and reply_to is a queue"
        elif address.encode(errors="replace") != address.encode(errors="surrogateescape"):
            reason = "reply_to is not UTF-8"
        else:
            return True
        log.warning(
            _NOT_SENT,
            extra={"consumer": self._name, "delivery": str(message), "reason": reason},
        )
        return False

    async def _failure(self, message: AMQPMessage[Any], reply: _Reply) -> Exception | None:
        """Publish a reply; return the error if it was not confirmed."""
        request = message.properties
        properties = Properties(
            content_type=reply.content_type,
            table=reply.headers,
            delivery_mode=PERSISTENT,
            correlation_id=request.correlation_id or request.message_id,
            message_id=reply.message_id,
            timestamp=int(time()),
        )
        try:
            await self._publisher.reply(message, reply.body, properties, REPLY_DEADLINE)
        except MessageTooLarge as error:
            if reply.content_type == PROBLEM:
                return error
            self._log(message, "reply is too large: the sender gets a failure", error)
            text = "the reply is too large"
            return await self._failure(message, _Reply(problem_details(500, text), PROBLEM))
        except Exception as error:
            # No error may end the worker.
            return error
        return None

    def _log(self, message: AMQPMessage[Any], text: str, error: Exception) -> None:
        """Log that a reply was not confirmed: a WARNING if its queue is gone, or it is repeated."""
        level = logging.ERROR
        if isinstance(error, Unroutable) or text != _NOT_SENT:
            level = logging.WARNING
        log.log(
            level,
            text,
            exc_info=None if isinstance(error, PublishError) else error,
            extra={
                "consumer": self._name,
                "delivery": str(message),
                "reply_to": readable(message.properties.reply_to),
                "error": str(error),
            },
        )


def refuse_expired(endpoint: Endpoint) -> None:
    """Make an endpoint begin no request whose sender does not wait for a reply any more."""
    process, name = endpoint.process, endpoint.name

    def unless_expired(
        message: AMQPMessage[Any], task: "asyncio.Task[Any] | None" = None
    ) -> Awaitable[Outcome]:
        if message.has_deadline and is_expired(message):
            return _expired(name)
        return process(message, task)

    endpoint.wrap(unless_expired)


def is_expired(message: AMQPMessage[Any]) -> bool:
    """Return whether the deadline in the headers of a request has passed."""
    deadline = message.sent.get(DEADLINE)
    if type(deadline) is not int or not 0 <= deadline < _MAX_MILLISECONDS:
        return False
    return time() * 1000 >= deadline


async def _expired(consumer: str) -> Outcome:
    text = f"{consumer}: the deadline of the request has passed"
    return Outcome(Action.ACK, RequestExpired(text))


def _is_success(outcome: Outcome) -> bool:
    """Return whether `handle` returned, and did not refuse the message itself."""
    return outcome.action is Action.ACK or outcome.value is not None


def _problem(message: AMQPMessage[Any], error: Exception | None) -> bytes:
    """Return the problem for a failure. It has no text of an exception that was not meant for it.

    | failure | status |
    |---|---|
    | the body is no JSON, or no text | 400 |
    | the body is too large to be read | 413 |
    | the body does not match the type | 422, with the places |
    | `Reject`, or the handler refused the message | 422, with the reason |
    | `Retry` on the last attempt | 503, with the reason |
    | `handle` took too long | 504 |
    | anything else | 500 |
    """
    if isinstance(message, Oversized):
        return problem_details(413, "the body is too large")
    if isinstance(error, InvalidBody):
        parts = [{"in": "body", "name": name, "detail": text} for name, text in error.findings]
        return problem_details(422 if parts else 400, str(error), parts=parts)
    if error is None:
        return problem_details(422)
    if isinstance(error, Reject | Retry):
        reason: Any = error.reason  # A subclass may set anything.
        status = 422 if isinstance(error, Reject) else 503
        return problem_details(status, reason if isinstance(reason, str) else "")
    return problem_details(504 if isinstance(error, HandlerTimeout) else 500)
