"""Wait for the broker's replies. A late reply closes its channel, or the connection.

A busy broker may reply late to one request and in time to others. Then the connection and its
consumers still work. A connection on which nothing arrives at all is lost.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from aiormq.exceptions import (
    AMQPChannelError,
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from workerkit.amqp.frames import (
    NO_PERMISSION,
    NOT_FOUND,
    PRECONDITION_FAILED,
    RESOURCE_LOCKED,
)
from workerkit.errors import BrokerRefused, ConnectionLost, QueueInUse
from workerkit.tasks import with_deadline

T = TypeVar("T")

RPC_DEADLINE = 10.0
_UNANSWERED_FACTOR = 2.0
_IN_USE = "in exclusive use"
_CODES: dict[type[AMQPChannelError], int] = {
    ChannelAccessRefused: NO_PERMISSION,
    ChannelNotFoundEntity: NOT_FOUND,
    ChannelLockedResource: RESOURCE_LOCKED,
    ChannelPreconditionFailed: PRECONDITION_FAILED,
}


class Socket(Protocol):
    """The socket of the connection.

    Attributes:
        last_read: When the last bytes arrived, in seconds of the loop's clock.
    """

    last_read: float


class Replies:
    """The requests on one connection that wait for a reply.

    Args:
        abort: Drops the connection; its argument is the reason.
    """

    def __init__(self, socket: Socket, abort: Callable[[str], None]) -> None:
        self._socket = socket
        self._abort = abort
        self._clock = asyncio.get_running_loop().time
        self._unanswered = math.inf

    async def wait(self, what: str, call: Awaitable[T], seconds: float | None = None) -> T:
        """Send a request and wait for its reply.

        Args:
            what: The request, for errors and logs.
            call: Sends the request and returns the reply. It is cancelled when the reply is late.
            seconds: How long to wait for the reply; ten by default.

        Raises:
            BrokerRefused: The broker closed the channel because of the request.
            ConnectionLost: The reply is late, or its channel was closed. The connection is closed
                as well if nothing has arrived since the request was sent, or if no request at all
                was answered for twice as long.
        """
        seconds = RPC_DEADLINE if seconds is None else seconds
        sent = self._clock()
        self._unanswered = min(self._unanswered, sent)
        late = ConnectionLost(
            f"no answer to {what} within {seconds:g} s, or the channel was closed"
        )
        try:
            reply = await translate_errors(what, with_deadline(seconds, call, late))
        except ConnectionLost as error:
            if isinstance(error, BrokerRefused | QueueInUse):
                self._unanswered = math.inf
            elif error is late and self._clock() - sent >= seconds:
                self._handle_late_reply(what, sent, seconds)
            raise
        self._unanswered = math.inf
        return reply

    def _handle_late_reply(self, what: str, sent: float, seconds: float) -> None:
        if self._socket.last_read <= sent:
            self._abort(f"no answer to {what} within {seconds:g} s, and no other bytes arrived")
        elif self._clock() - self._unanswered >= seconds * _UNANSWERED_FACTOR:
            self._abort(f"no answer to {what}, and none to any other request in the last seconds")


class DiscardingSink:
    """Discards frames that arrive on a channel that workerkit has closed.

    The broker continues to send until it has read channel.close. aiormq would keep the first frames
    and then stop reading from the whole connection.
    """

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Discard it: it is not settled, so the broker redelivers it."""

    def oversized(self, method: bytes, properties: bytes, size: int) -> None:
        """Discard it, as above."""

    def empty(self) -> None:
        """Discard it: no basic.get waits for it."""

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Discard it: the publish has failed already."""

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Discard it: the publish has failed already."""

    def closed(self) -> None:
        """Do nothing: the channel is closed already."""


async def translate_errors(what: str, call: Awaitable[T]) -> T:
    """Await an aiormq call, and replace its errors with ours."""
    try:
        return await call
    except AMQPChannelError as error:
        raise refusal(what, error) from error
    except (ValueError, TypeError) as error:
        # pamqp refuses values that it cannot encode, before anything is sent.
        raise BrokerRefused(f"{what}: {error}", 0) from error
    except ConnectionLost:
        raise
    except Exception as error:
        # aiormq raises many classes, also `KeyError` or `RecursionError` for bytes from a broker.
        raise ConnectionLost(f"{what}: {str(error) or type(error).__name__}") from error


def refusal(what: str, error: AMQPChannelError) -> ConnectionLost:
    """Return our error for a channel that the broker closed."""
    if _IN_USE in str(error):
        # The code is that of a missing permission, but no permission would help.
        return QueueInUse(f"{what}: {error}: another client consumes it exclusively")
    return BrokerRefused(f"{what}: {error}", _CODES.get(type(error), 0))
