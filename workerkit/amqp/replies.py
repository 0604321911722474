"""Wait for the broker's replies, and decide what a late one costs: its channel or the connection.

A broker that is busy answers one request late and others in time. Its connection is good, and so
are the consumers on it. A connection on which nothing comes at all is lost.
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

from workerkit.errors import BrokerRefused, ConnectionLost, QueueInUse
from workerkit.supervisor import within

T = TypeVar("T")

RPC_DEADLINE = 10.0
_UNANSWERED_FACTOR = 2.0
_IN_USE = "in exclusive use"
_CODES: dict[type[AMQPChannelError], int] = {
    ChannelAccessRefused: 403,
    ChannelNotFoundEntity: 404,
    ChannelLockedResource: 405,
    ChannelPreconditionFailed: 406,
}


class Socket(Protocol):
    """What is known of the connection's socket.

    Attributes:
        last_read: The loop's time at which the last bytes came.
    """

    last_read: float


class Replies:
    """The requests on one connection that wait for a reply.

    Args:
        abort: Drops the connection, for a reason.
    """

    def __init__(self, socket: Socket, abort: Callable[[str], None]) -> None:
        self._socket = socket
        self._abort = abort
        self._clock = asyncio.get_running_loop().time
        self._unanswered = math.inf

    async def wait(self, what: str, call: Awaitable[T], seconds: float | None = None) -> T:
        """Send a request and wait for its reply.

        Args:
            what: The request, for people.
            call: Sends it, and returns the reply. It is cancelled when the reply is late.
            seconds: To wait for the reply; ten by default.

        Raises:
            BrokerRefused: The broker closed the channel over it.
            ConnectionLost: The reply is late, or its channel was closed meanwhile. The connection
                is dropped as well where nothing came on it since the request was sent, and where
                no request at all was answered for twice as long.
        """
        seconds = RPC_DEADLINE if seconds is None else seconds
        sent = self._clock()
        self._unanswered = min(self._unanswered, sent)
        late = ConnectionLost(
            f"no answer to {what} within {seconds:g} s, or the channel was closed"
        )
        try:
            reply = await translate_errors(what, within(seconds, call, late))
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
    """Ignores what still comes on a channel that was given up.

    The broker goes on sending until it has read that the channel is closed. aiormq would keep the
    first frames and then read nothing more, on the whole connection.
    """

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """The broker delivers it again: it was not settled."""

    def oversized(self, method: bytes, properties: bytes, size: int) -> None:
        """The same."""

    def empty(self) -> None:
        """Nobody asks any more."""

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Its publish has failed already."""

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Its publish has failed already."""

    def closed(self) -> None:
        """It is closed."""


async def translate_errors(what: str, call: Awaitable[T]) -> T:
    """Await an aiormq call and raise our errors for its own."""
    try:
        return await call
    except AMQPChannelError as error:
        raise refusal(what, error) from error
    except (ValueError, TypeError) as error:
        # pamqp refuses what it cannot write, before the broker could.
        raise BrokerRefused(f"{what}: {error}", 0) from error
    except ConnectionLost:
        raise
    except Exception as error:
        # aiormq raises many: `KeyError` or `RecursionError` over what a broker has sent, too.
        raise ConnectionLost(f"{what}: {str(error) or type(error).__name__}") from error


def refusal(what: str, error: AMQPChannelError) -> ConnectionLost:
    """Our error for a channel that the broker closed."""
    if _IN_USE in str(error):
        # It has the code of a missing permission, and no permission would help.
        return QueueInUse(f"{what}: {error}: another client consumes it exclusively")
    return BrokerRefused(f"{what}: {error}", _CODES.get(type(error), 0))
