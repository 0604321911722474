"""Everything workerkit raises, and the signals a handler may raise.

* WorkerkitError
  - StartError             the process cannot start; holds one line per fault
    - DeclarationError       the author of a class: it is written wrongly (before any socket opens)
    - ConfigurationError     the operator: an environment variable, a broker's refusal
    - RunError               started, and then could not go on or stop cleanly
  - InvalidBody            the sender: a body does not fit what `handle` declares
    - InvalidRequest         the client: some part of an HTTP request does not fit
  - HandlerTimeout         a call of `handle` took longer than the consumer's `timeout`
  - HandlerCancelled       a call of `handle` was cancelled from inside, by nobody of ours
  - HandlerExit            a handler wants the process to end; its delivery will come again
  - ConnectionLost         the world: a connection or channel was lost, or could not be opened
    - BrokerRefused          the broker will not do it: a right, a queue or a login is missing
    - QueueInUse             another connection uses the queue exclusively
    - NoChannelLeft          the broker's limit of channels on one connection is reached
    - StreamRefused          the server answered, but not with an event stream
  - PublishError           a message was not, or may not have been, published
    - Unroutable             no exchange of that name, or no queue bound for the routing key
    - PublishRefused         the broker answered with a negative confirm
    - MessageTooLarge        the broker takes no message, or no headers, of that size
    - PublishTimeout         not sent within the deadline
    - PublishOutcomeUnknown  sent, but no confirm came: it may be published or not
      - BrokerBlocked          because the broker is out of memory or disk
* Signal                   raised by a handler on purpose; not an error
  - Reject                   never again
  - Retry                    again later
"""

from collections.abc import Iterable, Mapping

from workerkit.safe_text import mask_passwords, without_credentials

LONGEST_DELAY = 4_294_800.0
"""Seconds until another try; queues count whole milliseconds, at most 2**32 of them, and this is
whole hours."""


class WorkerkitError(Exception):
    """Base of every error that workerkit itself raises."""


class StartError(WorkerkitError):
    """The process cannot start as it is declared and configured.

    Args:
        *faults: One sentence each, every one on its own line of `str(error)`. What may be a
            password in an address is left out.
    """

    exit_code = 2
    _redact = staticmethod(without_credentials)

    def __init__(self, *faults: str) -> None:
        faults = tuple(map(self._redact, faults))
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(self.faults)


class DeclarationError(StartError):
    """A consumer class is incomplete or contradicts itself."""


class ConfigurationError(StartError):
    """A setting is wrong, or what it points to refuses us."""


class RunError(StartError):
    """The process started, and then could not go on or could not stop cleanly."""

    exit_code = 1
    # Its addresses are those that the log has, with the user who was refused.
    _redact = staticmethod(mask_passwords)


class InvalidBody(WorkerkitError):
    """A body does not fit the type that `handle` declares.

    The text names the place and what would be right, never the value itself.

    Attributes:
        findings: The first places in the body and what is wrong there; none where the body cannot
            be read at all, because it is no JSON or no text.
        more: The number of other places where something is wrong.
    """

    def __init__(self, text: str, findings: Iterable[tuple[str, str]] = (), more: int = 0) -> None:
        super().__init__(text)
        self.findings = tuple(findings)
        self.more = more


class InvalidRequest(InvalidBody):
    """An HTTP request does not fit the view that it is for.

    Attributes:
        status: What it is answered with, 400 to 422.
        parts: One mapping for each part that does not fit: `in` (`path`, `query`, `header`,
            `cookie`, `body`), `name`, and `detail`, which says what would be right.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        text: str,
        parts: Iterable[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.parts = tuple(parts)
        self.headers = headers


class HandlerTimeout(WorkerkitError, TimeoutError):
    """A call of `handle` took longer than the consumer's `timeout`.

    A policy with `only=(TimeoutError,)` covers it.
    """


class HandlerCancelled(WorkerkitError):
    """A call of `handle` ended in `CancelledError` though nobody had asked it to stop.

    This happens when a handler awaits a task that something else cancelled.
    """


class HandlerExit(WorkerkitError):
    """A handler raised `SystemExit`, `KeyboardInterrupt` or `MemoryError`: the process stops.

    Nothing is settled, so the delivery will come again, and others finish first.
    """


class ConnectionLost(WorkerkitError):
    """A connection or a channel was lost, or could not be opened."""


class BrokerRefused(ConnectionLost):
    """The broker answered, and will not do what was asked. Trying again alone does not help.

    Attributes:
        code: AMQP's reply code: 403 no permission, 404 not there, 405 locked, 406 declared
            otherwise, 530 no such virtual host; 0 where TLS failed.
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class QueueInUse(ConnectionLost):
    """Another connection uses a queue exclusively: with an exclusive consumer, or as its owner.

    A new attempt can succeed after that connection has ended.
    """


class NoChannelLeft(ConnectionLost):
    """The broker allows no further channel on a connection.

    Attributes:
        limit: The name and the value of the broker's limit.
        max_consumers: How many consumers of a connection may have a channel.
    """

    def __init__(self, limit: str, max_consumers: int) -> None:
        super().__init__(f"no channel is left: {limit}")
        self.limit = limit
        self.max_consumers = max_consumers


class StreamRefused(ConnectionLost):
    """The server answered, but not with an event stream.

    Attributes:
        status: Of HTTP; 200 where the content type was wrong, 0 where TLS failed.
        retry_after: Seconds that the server asks to stay away for; None where it does not.
    """

    def __init__(self, text: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after

    @property
    def for_now(self) -> bool:
        """Whether the server may answer otherwise without anybody changing anything."""
        return self.status >= 500 or self.status in (408, 425, 429)


class PublishError(WorkerkitError):
    """A message was not published, or nobody knows whether it was."""


class Unroutable(PublishError):
    """No exchange of that name, or no queue bound for the routing key."""


class PublishRefused(PublishError):
    """The broker answered with a negative confirm: a queue is full, or failed."""


class MessageTooLarge(PublishError):
    """Larger than the broker takes: the body by its own limit, the headers by that of a frame."""


class PublishTimeout(PublishError):
    """The message could not be sent within the deadline. It was not published."""


class PublishOutcomeUnknown(PublishError):
    """Sent, but the confirm did not come: publish again with the same message id.

    Attributes:
        message_id: The id that the message carried.
    """

    def __init__(self, text: str, message_id: str) -> None:
        super().__init__(text)
        self.message_id = message_id


class BrokerBlocked(PublishOutcomeUnknown):
    """Not confirmed within the deadline: the broker is out of memory or disk.

    What was sent before it said so may still be published when the alarm is over.
    """


class Signal(Exception):
    """Base of what a handler raises on purpose to choose an outcome.

    A dead letter has the class and the traceback of what it was raised `from`.

    Attributes:
        reason: Why; where it is empty, the text of what it was raised `from` is the reason.
    """

    reason: str = ""


class Reject(Signal):
    """Never deliver this again: raise it in `handle` to dead-letter a message with a reason.

    Args:
        reason: Why; it goes into the header `x-workerkit-reason` of the dead letter.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Retry(Signal):
    """Try this delivery again later: raise it in `handle`. It counts as an attempt.

    Args:
        reason: Why, for logs and for the dead letter after the last try.
        after: Seconds, rounded up to the next delay of the consumer's `RetryPolicy`, and where it
            has none that long to 1, 5, 15, 60, 300, 900, 3600 s or whole hours. None takes the
            delay that is next anyway. Without a policy there is no last try.

    Raises:
        ValueError: *after* is negative, no number, or more than 49 days: 4294800 seconds.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        if not isinstance(reason, str):
            raise TypeError(f"Retry({reason!r}): write Retry(after={reason!r})")
        number = isinstance(after, int | float) and not isinstance(after, bool)
        if after is not None and not (number and 0 <= after <= LONGEST_DELAY):
            raise ValueError(f"after is {after!r}: it must be 0 to {LONGEST_DELAY:.0f} seconds")
        super().__init__(reason)
        self.reason = reason
        self.after = after

    def __str__(self) -> str:
        return self.reason or "the handler asked for another try"
