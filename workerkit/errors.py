"""Exceptions that workerkit raises, and signals that a handler may raise.

* WorkerkitError
  - StartError             the process cannot start; holds one line per fault
    - DeclarationError       for the author of a class: its declaration is invalid
    - ConfigurationError     for the operator: an environment variable, a refusal of the broker
    - RunError               the process started, then failed or did not stop cleanly
  - InvalidBody            for the sender: a body does not match the type in `handle`
    - InvalidRequest         for the client: a part of an HTTP request does not match
    - UnknownMessageType     for the sender: `types` of the class does not have its type
  - HandlerTimeout         a call of `handle` took longer than the consumer's `timeout`
  - HandlerCancelled       a call of `handle` was cancelled, but not by workerkit
  - HandlerExit            a handler ends the process; its delivery will be redelivered
  - ConnectionLost         a connection or channel was lost, or could not be opened
    - BrokerRefused          the broker refused: a permission, a queue or a login is missing
    - QueueInUse             another connection uses the queue exclusively
    - NoChannelLeft          the broker's limit of channels on one connection is reached
    - StreamRefused          the server responded, but not with an event stream
  - PublishError           a message was not, or may not have been, published
    - Unroutable             no exchange of that name, or no queue bound for the routing key
    - PublishRefused         the broker answered with a negative confirm
    - MessageTooLarge        the message or its headers exceed a limit of the broker
    - PublishTimeout         not sent within the timeout
    - PublishOutcomeUnknown  sent, but not confirmed: it may be published or not
      - BrokerBlocked          because the broker is out of memory or disk space
  - RequestError           a request has no valid reply
    - RequestTimeout         no reply within the timeout
    - RequestFailed          the reply is a problem: the other side failed, or refused the request
    - ReplyLost              the connection was lost, and the reply with it
    - InvalidReply           the reply does not match the type that the caller expects
  - RequestExpired         nobody waits for the reply any more; the handler was not called
* Signal                   raised by a handler on purpose; not an error
  - Reject                   do not deliver it again
  - Retry                    deliver it again later
"""

from collections.abc import Iterable, Mapping
from typing import Any

from workerkit.safe_text import mask_passwords, without_credentials

LONGEST_DELAY = 4_294_800.0
"""The longest delay of a retry in seconds: whole hours, and below 2**32 milliseconds, which is the
limit of a queue."""


class WorkerkitError(Exception):
    """Base of every error that workerkit itself raises."""


class StartError(WorkerkitError):
    """The process cannot start with its declarations and its configuration.

    Args:
        *faults: One sentence each, on its own line of `str(error)`. Possible passwords in URLs are
            removed.
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
    """A setting is invalid, or the server that it names refused the connection."""


class RunError(StartError):
    """The process started, and then failed or did not stop cleanly."""

    exit_code = 1
    # The user stays in URLs, as in the log: it may be the user that was refused.
    _redact = staticmethod(mask_passwords)


class InvalidBody(WorkerkitError):
    """A body does not match the type that `handle` declares.

    The text contains the location and the expected value, never the value itself.

    Attributes:
        findings: The first invalid locations in the body, each with a text; none if the body cannot
            be parsed at all, because it is no JSON or no text.
        more: The number of further invalid locations.
    """

    def __init__(self, text: str, findings: Iterable[tuple[str, str]] = (), more: int = 0) -> None:
        super().__init__(text)
        self.findings = tuple(findings)
        self.more = more

    def after(self, text: str) -> "InvalidBody":
        """Return this error with another text before its own; itself if that is empty."""
        return InvalidBody(f"{text}; {self}", self.findings, self.more) if text else self


class InvalidRequest(InvalidBody):
    """An HTTP request does not match the view.

    Attributes:
        status: Status of the response, 400 to 422.
        parts: One mapping for each invalid part: `in` (`path`, `query`, `header`, `cookie`,
            `body`), `name`, and `detail` with the expected value.
        headers: Headers of the response.
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


class UnknownMessageType(InvalidBody):
    """A message has a type that `types` of its consumer does not have, or has none.

    Attributes:
        skipped: The class skips such messages: its `on_unknown` is `Action.ACK`.
    """

    def __init__(self, text: str, *, skipped: bool = False) -> None:
        super().__init__(text)
        self.skipped = skipped


class HandlerTimeout(WorkerkitError, TimeoutError):
    """A call of `handle` took longer than the consumer's `timeout`.

    A policy with `only=(TimeoutError,)` covers it.
    """


class HandlerCancelled(WorkerkitError):
    """A call of `handle` raised `CancelledError`, but workerkit did not cancel it.

    This happens if a handler awaits a task that other code cancelled.
    """


class HandlerExit(WorkerkitError):
    """A handler raised `SystemExit`, `KeyboardInterrupt` or `MemoryError`: the process stops.

    So it does where `receive` or `settle` of a `SimpleTransport` raised one of the first two.

    The delivery is not settled, so it is redelivered. Other handlers finish first.
    """


class ConnectionLost(WorkerkitError):
    """A connection or a channel was lost, or could not be opened."""


class BrokerRefused(ConnectionLost):
    """The broker refused a request. Trying again does not help until its cause is fixed.

    Attributes:
        code: AMQP's reply code: 403 no permission, 404 not found, 405 locked, 406 declared with
            other arguments, 530 no such virtual host; 0 if TLS failed.
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class QueueInUse(ConnectionLost):
    """Another connection uses a queue exclusively: with an exclusive consumer, or as its owner.

    A new attempt can succeed after that connection is closed.
    """


class NoChannelLeft(ConnectionLost):
    """The broker allows no further channel on a connection.

    Attributes:
        limit: The name and the value of the broker's limit.
        max_consumers: The largest number of consumers of a connection that can have a channel.
    """

    def __init__(self, limit: str, max_consumers: int) -> None:
        super().__init__(f"no channel is left: {limit}")
        self.limit = limit
        self.max_consumers = max_consumers


class StreamRefused(ConnectionLost):
    """The server responded, but not with an event stream.

    Attributes:
        status: HTTP status; 200 if the content type was wrong, 0 if TLS failed.
        retry_after: Seconds from the header `Retry-After`; None if there is none.
    """

    def __init__(self, text: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after

    @property
    def for_now(self) -> bool:
        """Whether the cause may be temporary."""
        return self.status >= 500 or self.status in (408, 425, 429)


class PublishError(WorkerkitError):
    """A message was not published, or it is unknown whether it was."""


class Unroutable(PublishError):
    """No exchange of that name, or no queue bound for the routing key."""


class PublishRefused(PublishError):
    """The broker answered with a negative confirm: a queue is full, or failed."""


class MessageTooLarge(PublishError):
    """The body exceeds the broker's limit of a message, or the headers that of a frame."""


class PublishTimeout(PublishError):
    """The message could not be sent within the timeout. It was not published."""


class PublishOutcomeUnknown(PublishError):
    """Sent, but not confirmed: publish again with the same message id.

    Attributes:
        message_id: The id of the message.
    """

    def __init__(self, text: str, message_id: str) -> None:
        super().__init__(text)
        self.message_id = message_id


class BrokerBlocked(PublishOutcomeUnknown):
    """Not confirmed within the timeout: the broker is out of memory or disk space.

    A message that was sent before the alarm may still be published after it.
    """


class RequestError(WorkerkitError):
    """A request was published, and there is no valid reply to it."""


class RequestTimeout(RequestError, TimeoutError):
    """There was no reply within the timeout. The request may have been handled, or may still be."""


class RequestFailed(RequestError):
    """The reply is a problem (RFC 9457): the other side failed, or refused the request.

    Attributes:
        problem: The members of the problem, as the other side sent them.
    """

    def __init__(self, text: str, problem: Mapping[str, Any]) -> None:
        super().__init__(text)
        self.problem = problem

    @property
    def status(self) -> int:
        """The status, as in HTTP: 422 if the request was refused, 500 for other failures.

        0 if the problem has no valid status.
        """
        found = self.problem.get("status")
        return found if type(found) is int and 100 <= found <= 599 else 0

    @property
    def title(self) -> str:
        """The name of the status; empty if the problem has none."""
        return self._text("title")

    @property
    def detail(self) -> str:
        """The reason; empty if the problem has none."""
        return self._text("detail")

    def _text(self, member: str) -> str:
        found = self.problem.get(member)
        return found if isinstance(found, str) else ""


class ReplyLost(RequestError):
    """The connection was lost while the request waited for its reply, which is lost as well.

    The request may have been handled or not. The next request uses a new connection.
    """


class InvalidReply(RequestError):
    """The reply does not match the type that the caller expects, or is too large."""


class RequestExpired(WorkerkitError):
    """The deadline of a request had passed before it was handled: `handle` was not called.

    The message is acknowledged. Observers find this as the error of its outcome.
    """


class Signal(Exception):
    """Base of the signals that a handler raises on purpose to choose an outcome.

    A dead letter contains the class and the traceback of the exception that it was raised `from`.

    Attributes:
        reason: The reason; if it is empty, the text of the exception that it was raised `from`.
    """

    reason: str = ""


class Reject(Signal):
    """Do not deliver this again: raise it in `handle` to dead-letter a message with a reason.

    Args:
        reason: The value of the header `x-workerkit-reason` of the dead letter.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Retry(Signal):
    """Try this delivery again later: raise it in `handle`. It counts as an attempt.

    Args:
        reason: The reason, for logs and for the dead letter after the last attempt.
        after: Seconds, rounded up to the next delay of the consumer's `RetryPolicy`; if that has no
            such delay, to 1, 5, 15, 60, 300, 900, 3600 s or whole hours. None uses the next delay
            of the policy. Without a policy there is no last attempt.

    Raises:
        ValueError: *after* is negative, not a number, or more than 4294800 seconds (49 days).
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
        return self.reason or "the handler requested another attempt"
