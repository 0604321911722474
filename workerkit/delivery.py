"""What a transport hands over (Delivery) and what becomes of it (Action, Outcome)."""

import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

from workerkit.errors import InvalidBody, Retry

log = logging.getLogger(__name__)


class Action(StrEnum):
    """What a transport does with a delivery once it has been handled.

    On AMQP: `ACK` removes the message from the queue; `REQUEUE` requeues it, with a pause if it
    keeps failing; `REJECT` sends it to the queue's dead-letter exchange, or drops it if
    there is none; `DEAD_LETTER` moves it, with evidence of the failure in its headers,
    to `<queue>.dlq`. On an event stream: `ACK` and `REJECT` move the cursor past the event,
    `REQUEUE` handles it again, with growing pauses; `DEAD_LETTER` is `REJECT`.

    `RETRY` repeats the call later; a handler requests it with `raise Retry` or `retry()` of the
    delivery, a class with `retry`, so it cannot be set for `on_success` and similar options.
    """

    ACK = "ack"
    REQUEUE = "requeue"
    REJECT = "reject"
    DEAD_LETTER = "dead_letter"
    RETRY = "retry"

    @property
    def without_broker(self) -> "Action":
        """What is done where no broker keeps copies: a dead letter has no queue to go to."""
        return Action.REJECT if self is Action.DEAD_LETTER else self


class FailedCall:
    """One call of `handle` that failed for a whole batch, so that it is logged once.

    Attributes:
        size: Deliveries of the call.
    """

    __slots__ = ("_levels", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._levels: set[int] = set()

    def first(self, level: int) -> bool:
        """Return whether this is the first log record of the call at *level*."""
        before = len(self._levels)
        self._levels.add(level)
        return len(self._levels) > before


class Outcome(NamedTuple):
    """The decision about one delivery, still to be carried out by its transport.

    There is one for each delivery, and creating a frozen dataclass takes four times as long.

    Attributes:
        action: What to do.
        error: The exception of the handler, or the reason why the body is invalid.
        value: The return value of the handler.
        delay: Seconds until the next attempt of a `RETRY`; 0 is an immediate retry.
        exact: The handler gave the delay, so jitter must not shorten it.
        call: The failed call, if it was for several deliveries.
    """

    action: Action
    error: Exception | None = None
    value: object = None
    delay: float = 0.0
    exact: bool = False
    call: FailedCall | None = None


class TraceDetails(NamedTuple):
    """What a span says about a message, event or run.

    Attributes:
        source: Where it comes from or goes to, with few different values: the name of a queue,
            a route. Empty if every message has its own, such as a queue for replies.
        exchange: The exchange that it was published to.
        routing_key: The routing key that it was published with.
        message_id: Its id.
        conversation_id: Its correlation id.
        size: Bytes of its body.
        scheduled: When a run was due, in ISO 8601.
        connection: The name of the connection in the settings.
    """

    source: str = ""
    exchange: str = ""
    routing_key: str = ""
    message_id: str | None = None
    conversation_id: str | None = None
    size: int | None = None
    scheduled: str | None = None
    connection: str = ""


class Delivery:
    """A message or event, and the action that its handler chose for it.

    Attributes:
        raw: The undecoded payload: bytes, or text if the transport has no bytes.
        attempt: The number of this attempt, from 1.
        fate: The chosen action; None until the handler has chosen one or has returned.
        after: Seconds until the next attempt, if the handler requested one with a delay.
        trace: The fields `trace_id` and `span_id` of its call; absent unless it was traced.
        trace_operation: The first word of the name of its spans; empty if its transport traces it.
        trace_system: The messaging system in its spans; by default the kind of its transport.
        log_success: The message of its log record after success.
        moved: It is acknowledged because a copy of it was confirmed.
    """

    __slots__ = ("__weakref__", "after", "attempt", "fate", "raw", "trace")

    log_success: ClassVar[str] = "handled"
    trace_operation: ClassVar[str] = "process"
    trace_system: ClassVar[str] = ""
    moved: bool = False

    raw: Any  # bytes or str, depending on the transport.
    trace: Mapping[str, str]

    def __init__(self, raw: bytes | str, attempt: int = 1) -> None:
        self.raw = raw
        self.attempt = attempt
        self.fate: Action | None = None
        self.after: float | None = None

    def content(self, *, text: bool) -> Any:
        """Return the payload for `handle`, decoded by the properties of its transport.

        Args:
            text: The payload is read as text or JSON, not as bytes.

        Raises:
            InvalidBody: The payload does not match its properties.
        """
        return self.raw

    @property
    def unknown_content(self) -> str:
        """The encoding or charset that is not known, for errors; empty for most deliveries."""
        return ""

    def decoded(self, reader: Any) -> Any:
        """Return the payload as the type of *reader*, by the properties of its transport.

        Args:
            reader: A `workerkit.codec.BodyReader`.

        Raises:
            InvalidBody: The payload does not match its properties, or the type.
        """
        try:
            return reader.default(self.content(text=reader.text))
        except InvalidBody as error:
            raise error.after(self.unknown_content) from None

    def cloud_event(self, reader: Any) -> Any:
        """Return the payload as a CloudEvent.

        Args:
            reader: A `workerkit.codec.CloudEventReader`.

        Raises:
            InvalidBody: It is none, or its data does not match the type.
        """
        return reader.structured(self.content(text=True))

    def log_failure(self, action: Action, error: Exception | None) -> tuple[int, str]:
        """Return level and message of the log record when it was not handled.

        WARNING: it is tried again. ERROR: it is not, so an operator has to act.
        """
        again = action is Action.RETRY or action is Action.REQUEUE
        return logging.WARNING if again else logging.ERROR, "not handled"

    def log_fields(self, source: str, action: str) -> dict[str, object]:
        """Return the fields of its log record, in the terms of its transport."""
        return {
            "source": source,
            "delivery": str(self),
            "attempt": self.attempt,
            "action": action,
        }

    def log_context(self) -> dict[str, object]:
        """Return the fields of each log record of its call, in the terms of its transport."""
        return {}

    def handed_on_id(self) -> str | None:
        """Return the correlation id of messages that its handler publishes; None for none."""
        return None

    def trace_carrier(self) -> Mapping[str, Any]:
        """Return the headers in which its sender may have written a trace context.

        The names are in lower case. Values of any type and size are allowed.
        """
        return {}

    def trace_source(self) -> str:
        """Return the second word of the name of its spans; by default the consumer's source.

        It must not have a new value for each delivery.
        """
        return ""

    def trace_details(self) -> TraceDetails:
        """Return what its span says about it; called only if that is recorded."""
        return TraceDetails(self.trace_source())

    def trace_links(self) -> Sequence[Mapping[str, Any]]:
        """Return the headers with the trace contexts that its span links to, beside its parent."""
        return ()

    def decide(self, action: Action) -> None:
        """Choose the action for this delivery; it applies even if the handler raises afterwards.

        Only the first choice counts. A later one, or one made after the delivery was settled, is
        logged and ignored: it never reaches the transport.
        """
        if self.fate is None:
            self.fate = action
            return
        log.warning(
            "second settlement ignored",
            extra={"delivery": str(self), "first": self.fate, "second": action},
        )

    def retry(self, after: float | None = None) -> None:
        """Request another attempt later, even if the handler raises afterwards.

        Args:
            after: Seconds, rounded as those of `Retry`.

        Raises:
            ValueError: *after* is negative, no number, or longer than `Retry` allows.
        """
        asked = Retry(after=after).after
        if self.fate is None:
            self.after = asked
        self.decide(Action.RETRY)

    def again(self) -> None:
        """Begin the next attempt: nothing is decided."""
        self.attempt += 1
        self.fate = self.after = None
