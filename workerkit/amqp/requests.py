"""Requests: messages whose publisher waits for a reply.

The replies of one connection arrive on the channel that publishes the requests, because RabbitMQ's
direct reply-to requires that: the consumer of `amq.rabbitmq.reply-to` gives the channel an address,
and the broker writes it into each request. No queue is created, and no reply survives its channel.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from time import time
from typing import Any, NamedTuple, TypedDict
from uuid import uuid4

from workerkit.amqp import outgoing
from workerkit.amqp.acks import Acks
from workerkit.amqp.confirms import Confirms
from workerkit.amqp.content import content
from workerkit.amqp.destination import Destination
from workerkit.amqp.message import CONVERSATION, DEADLINE, AMQPMessage
from workerkit.amqp.properties import Properties, decode, readable
from workerkit.amqp.queue import Exchange
from workerkit.codec import BUILT_IN, Codecs, UnknownType, decoder
from workerkit.current_call import current_correlation_id
from workerkit.errors import (
    ConnectionLost,
    InvalidBody,
    InvalidReply,
    ReplyLost,
    RequestFailed,
    RequestTimeout,
)
from workerkit.problem_details import PROBLEM
from workerkit.reading import body_reader
from workerkit.safe_text import excerpt, one_line
from workerkit.tasks import Deadline

log = logging.getLogger(__name__)

_LONGEST_TEXT = 1_000
_SET_BY_REQUEST = {
    "correlation_id": "it is a new one for each request, by which its reply is recognized",
    "reply_to": "replies are sent to the channel that published the request",
}


class RequestOptions(TypedDict, total=False):
    """The parameters that `Publisher.request` has in common with `publish`."""

    exchange: Exchange | str
    headers: Mapping[str, Any] | None
    message_id: str | None
    content_type: str | None
    content_encoding: str | None
    type: str | None
    app_id: str | None
    user_id: str | None
    timestamp: datetime | float | None
    priority: int | None
    expiration: float | None
    connection: str
    vhost: str | None
    mandatory: bool


_OF_DESTINATION = ("exchange", "connection", "vhost", "mandatory")


class Reply(NamedTuple):
    """A reply as it arrived.

    Attributes:
        properties: The property flags and values.
        body: None if it was too large, and was discarded.
        size: Of the body, in bytes.
    """

    properties: bytes
    body: bytes | None
    size: int


class Waiter:
    """One request that waits for its reply.

    Attributes:
        reply: The first reply; None until it arrives.
        ended: Done when nobody waits any more.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sent_on: Confirms | None = None
        self._lost: ConnectionLost | None = None
        self._done: asyncio.Future[None] = self._loop.create_future()
        self.reply: Reply | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()

    async def wait(self, where: str, timeout: float, left: float) -> Reply:
        """Return the reply to a request that was confirmed.

        Args:
            where: The request, for errors.
            timeout: Seconds for the whole request.
            left: Seconds that are left.

        Raises:
            RequestTimeout: There was none in time.
            ReplyLost: The channel was closed.
        """
        try:
            async with Deadline(max(left, 0.0)):
                await self._done
        except TimeoutError:
            if self.reply is None:
                text = f"{where}: no reply within {round(timeout, 2):g} s"
                raise RequestTimeout(text) from None
        if self.reply is None:
            raise ReplyLost(f"{where}: no reply, the connection was lost: {self._lost}")
        return self.reply

    def is_on(self, confirms: Confirms) -> bool:
        """Return whether the request was sent on this channel."""
        return self._sent_on is confirms

    def sent(self, confirms: Confirms) -> None:
        """Expect the reply on this channel. The request may have been sent on another one before,
        which was closed before the broker processed it.
        """
        self._sent_on, self._lost = confirms, None
        if self._done.done() and self.reply is None:
            self._done = self._loop.create_future()

    def set_reply(self, reply: Reply) -> bool:
        """Store the reply; return False if there was one before."""
        if self.reply is not None:
            return False
        self.reply = reply
        self._wake()
        return True

    def set_lost(self, reason: ConnectionLost) -> None:
        """Note that no reply can arrive any more."""
        self._lost = reason
        self._wake()

    def _wake(self) -> None:
        if not self._done.done():
            self._done.set_result(None)


class Requests:
    """The requests of one connection that wait for their replies."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiter] = {}

    @contextmanager
    def waiting(self, correlation_id: str) -> Iterator[Waiter]:
        """Expect a reply inside the block. A later one is ignored."""
        waiter = self._waiting[correlation_id] = Waiter()
        try:
            yield waiter
        finally:
            del self._waiting[correlation_id]
            waiter.ended.set_result(None)

    def sent(self, correlation_id: str, confirms: Confirms) -> None:
        """Note on which channel a request was published."""
        if (waiter := self._waiting.get(correlation_id)) is not None:
            waiter.sent(confirms)

    def delivered(self, properties: bytes, body: bytes | None, size: int) -> None:
        """Hand a reply to the request that waits for it.

        Args:
            body: None if it was too large, and was discarded.
        """
        correlation_id = decode(properties).correlation_id or ""
        waiter = self._waiting.get(correlation_id)
        if waiter is None or not waiter.set_reply(Reply(properties, body, size)):
            log.debug(
                "reply ignored: no request waits for it",
                extra={"correlation_id": readable(correlation_id), "size": size},
            )

    def lost(self, confirms: Confirms, reason: ConnectionLost) -> None:
        """Fail the requests whose replies would have arrived on a channel that is closed."""
        for waiter in self._waiting.values():
            if waiter.is_on(confirms):
                waiter.set_lost(reason)

    async def idle(self, confirms: Confirms) -> None:
        """Wait until no request waits for a reply on a channel."""
        while waiting := [each.ended for each in self._waiting.values() if each.is_on(confirms)]:
            await asyncio.wait(waiting)


def encode_request(
    body: object,
    routing_key: str,
    timeout: float,
    more: Mapping[str, Any],
    codecs: Codecs = BUILT_IN,
) -> tuple[bytes, Properties, Destination]:
    """Encode a request: a message with a deadline, and an own correlation id.

    Args:
        more: `RequestOptions`.

    Raises:
        TypeError, ValueError: As for `Publisher.request`.
    """
    for name in more:
        if name in _SET_BY_REQUEST:
            raise TypeError(f"a request has no {name}: {_SET_BY_REQUEST[name]}")
        if name not in RequestOptions.__annotations__:
            raise TypeError(f"request() got an unexpected keyword argument {name!r}")
    outgoing.check_types({**more, "routing_key": routing_key, "timeout": timeout})
    found: Any = timeout
    if found is None:
        raise TypeError("timeout is None: write seconds, such as 2.5")
    longest = outgoing.LONGEST_EXPIRATION
    if not 0 < timeout <= longest:
        raise ValueError(f"timeout is {timeout}: it must be above 0, to {longest:.0f} s")
    of_message = {name: value for name, value in more.items() if name not in _OF_DESTINATION}
    headers = of_message.pop("headers", None) or {}
    ours: dict[str, Any] = {DEADLINE: int((time() + timeout) * 1000)}
    if (current := readable(current_correlation_id())) is not None:
        ours[CONVERSATION] = current
    expiration = of_message.pop("expiration", None)
    raw, properties = outgoing.encode_message(
        body,
        {**headers, **ours},
        expiration=timeout if expiration is None else min(expiration, timeout),
        **of_message,
        codecs=codecs,
    )
    properties.correlation_id = uuid4().hex
    properties.message_id = properties.message_id or properties.correlation_id
    properties.reply_to = outgoing.DIRECT_REPLY_TO
    if properties.expiration == "0" and expiration is None:
        properties.expiration = "1"  # A queue drops messages with 0 unless a consumer is free.
    to = Destination(routing_key, **{name: more[name] for name in _OF_DESTINATION if name in more})
    return raw, properties, to


def reply_reader(type_: Any, codecs: Codecs = BUILT_IN) -> Callable[[Reply, str], Any]:
    """Create the function that reads replies as *type_*; it takes the request for errors, too.

    The function raises `RequestFailed` if the reply is a problem, and `InvalidReply` if it does not
    match the type. Neither text contains what the other side sent, except for the problem's own
    title and detail.

    Raises:
        UnknownType: No codec can read a body as this type.
    """
    try:
        return _cached_reader(type_, codecs)
    except TypeError:
        return _reader(type_, codecs)  # It is not hashable, or unknown.


def _reader(type_: Any, codecs: Codecs) -> Callable[[Reply, str], Any]:
    try:
        read_body = body_reader(type_, AMQPMessage, codecs)
    except UnknownType as error:
        shown = type_.__qualname__ if isinstance(type_, type) else repr(type_)
        text = (
            f"returns is {shown}, which is no type of a reply: write bytes, str, a pydantic model"
        )
        raise UnknownType(f"{text}, a dataclass, a TypedDict, a msgspec.Struct or Any") from error

    def read(reply: Reply, where: str) -> Any:
        if reply.body is None:
            raise InvalidReply(f"{where}: the reply has {reply.size} bytes, which is too large")
        message: AMQPMessage[Any] = AMQPMessage(
            reply.body, queue="", tag=0, envelope=b"", properties=reply.properties, acks=_NO_ACKS
        )
        try:
            if content(reply.properties).label != PROBLEM:
                return read_body(message)
            problem = _problem_decoder(message.content(text=True))
        except InvalidBody as error:
            raise InvalidReply(f"{where}: the reply is invalid: {error}") from None
        raise _failed(where, problem)

    return read


_cached_reader = lru_cache(maxsize=256)(_reader)
_problem_decoder = decoder(dict[str, Any])
# The consumer of replies has no_ack.
_NO_ACKS = Acks(1, lambda frames: True, lambda flush: None)


def _failed(where: str, problem: Mapping[str, Any]) -> RequestFailed:
    """Return the error for a problem. Its text is safe to log, whatever the other side sent."""
    failed = RequestFailed("", problem)
    words = (str(failed.status or ""), failed.title)
    summary = " ".join(each for each in words if each) or "a problem"
    detail = f": {failed.detail}" if failed.detail else ""
    # Truncated before, too: to escape megabytes takes seconds, and doubles what is left.
    text = one_line(excerpt(summary + detail, _LONGEST_TEXT))
    text = f"{where}: {excerpt(text, _LONGEST_TEXT)}"
    return RequestFailed(text, problem)
