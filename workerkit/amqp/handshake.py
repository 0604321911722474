"""Open one connection to one server and log in, with aio-pika; explain a failure."""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from typing import Any

import aio_pika
import aiormq
from aio_pika.abc import TimeoutType, UnderlayConnection
from aio_pika.tools import OneShotCallback
from aiormq.abc import AbstractConnection
from aiormq.exceptions import AMQPError, AuthenticationError

from workerkit.amqp.addresses import ConnectionAttempt
from workerkit.amqp.frames import MIN_FRAME_MAX, NO_PERMISSION, NOT_ALLOWED
from workerkit.amqp.tap import CLOSED, TapProtocol, TapTransportFactory
from workerkit.config.connections import AMQPSettings
from workerkit.errors import BrokerRefused, ConnectionLost

log = logging.getLogger(__name__)

_REFUSALS = (NO_PERMISSION, NOT_ALLOWED)
_REQUIRED_CAPABILITIES = ("publisher_confirms", "basic.nack")
_CLEANUP_DEADLINE = 1.0
_MAX_REASON_LENGTH = 500

SELF_EXPLANATORY = (AMQPError, StopAsyncIteration)
"""Errors of aiormq that the broker or the network causes: a traceback would add nothing."""


class TapConnection(aio_pika.Connection):
    """A connection of aio-pika whose socket has `TapProtocol`.

    aio-pika does not pass a `transport_factory` on to aiormq, and a URL for aiormq cannot express
    every virtual host. So aiormq's connection is created here.

    Attributes:
        fault: The error that ended aiormq's reader, if one did. aiormq does not publish it.
    """

    def __init__(self, factory: TapTransportFactory, vhost: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fault: BaseException | None = None
        self._factory = factory
        self._vhost = vhost

    def __del__(self) -> None:
        """Do nothing: aio-pika's method begins to close it, even if no event loop is running."""

    async def connect(self, timeout: TimeoutType = None) -> None:
        """Open the socket and log in."""
        aiormq_connection = aiormq.Connection(
            self.url, transport_factory=self._factory, **self.kwargs
        )
        aiormq_connection.vhost = self._vhost
        await aiormq_connection.connect()
        await aiormq_connection.ready()
        aiormq_connection._reader_task.add_done_callback(self._on_reader_done)
        closed = OneShotCallback(self._on_connection_close)
        aiormq_connection.closing.add_done_callback(closed)
        self.transport = UnderlayConnection(aiormq_connection, closed)
        await self._on_connected()

    def _on_reader_done(self, reader: "asyncio.Task[Any]") -> None:
        self.fault = None if reader.cancelled() else reader.exception()


class _UnsupportedBroker(Exception):
    """The broker lacks a feature that workerkit needs."""


async def log_in(
    settings: AMQPSettings, vhost: str | None, role: str, attempt: ConnectionAttempt
) -> tuple[TapConnection, TapProtocol]:
    """Open a connection to the server of *attempt*.

    Every failure, of the server or in aiormq, becomes one of two errors.

    Raises:
        BrokerRefused: The broker refused the login, TLS failed, or workerkit does not support this
            broker.
        ConnectionLost: The server cannot be reached, did not reply in time, or does not speak
            AMQP 0-9-1.
    """
    where = _ServerLabel(settings, vhost, attempt)
    factory = TapTransportFactory(attempt, settings.tls.server_name)
    connection = TapConnection(
        factory,
        settings.vhost_name(vhost),
        settings.address(vhost, attempt.server).update_query(
            heartbeat=settings.heartbeat, auth=settings.auth
        ),
        ssl_context=_tls(settings, where),
        client_properties={"connection_name": f"workerkit {role}"},
    )
    try:
        await _connect(connection, factory, settings.connect_timeout)
    except Exception as error:
        raise _translate_error(where, error, factory.protocol) from error
    assert factory.protocol is not None
    return connection, factory.protocol


async def _connect(connection: TapConnection, factory: TapTransportFactory, seconds: float) -> None:
    """Connect within a deadline, in a task, because aiormq cancels the task that it fails in.

    Raises:
        TimeoutError: The deadline has passed. The socket is closed before anything is cancelled, so
            nothing waits for the server to close it.
    """
    connecting = asyncio.create_task(connection.connect())
    usable = False
    try:
        await asyncio.wait([connecting], timeout=seconds)
        if not connecting.done():
            raise TimeoutError(f"no answer within {seconds:g} s")
        if connecting.cancelled():
            raise ConnectionLost("the connection was lost during the login")
        connecting.result()
        assert connection.transport is not None
        _check(connection.transport.connection)
        usable = True
    finally:
        if not usable:
            connecting.add_done_callback(_retrieve_exception)
            connecting.cancel()
            if factory.protocol is not None:
                factory.protocol.discard()
            closing = asyncio.create_task(connection.close())
            closing.add_done_callback(_retrieve_exception)
            await asyncio.wait([connecting, closing], timeout=_CLEANUP_DEADLINE)


def _retrieve_exception(task: "asyncio.Task[None]") -> None:
    """Retrieve the exception, which asyncio would otherwise log as never retrieved."""
    if not task.cancelled():
        task.exception()


def _check(aiormq_connection: AbstractConnection) -> None:
    """Check the capabilities and the frame size of the broker, which aiormq does not check.

    Raises:
        _UnsupportedBroker: The broker lacks a capability, or proposes an invalid frame size.
    """
    capabilities = aiormq_connection.server_properties.get("capabilities")
    stated = capabilities if isinstance(capabilities, Mapping) else {}
    if missing := [each for each in _REQUIRED_CAPABILITIES if not stated.get(each)]:
        text = f"the broker does not offer {' and '.join(missing)}, which workerkit needs"
        raise _UnsupportedBroker(text)
    if 0 < (size := aiormq_connection.connection_tune.frame_max or 0) < MIN_FRAME_MAX:
        text = f"the broker's frame_max is {size}, and AMQP requires at least {MIN_FRAME_MAX}"
        raise _UnsupportedBroker(text)


class _ServerLabel:
    """The server for errors, with the addresses that were tried so far."""

    def __init__(
        self, settings: AMQPSettings, vhost: str | None, attempt: ConnectionAttempt
    ) -> None:
        self._url = settings.display(vhost, attempt.server)
        self._vhost = settings.vhost_name(vhost)
        self._attempt = attempt

    def __str__(self) -> str:
        addresses = self._attempt.addresses
        at = f" at {addresses}" if addresses else ""
        return f"{self._url} (virtual host {self._vhost!r}){at}"


def _tls(settings: AMQPSettings, where: _ServerLabel) -> ssl.SSLContext | None:
    if not settings.is_encrypted:
        return None
    if not settings.tls.verify:
        log.warning("the broker's certificate is not verified", extra={"broker": str(where)})
    try:
        return settings.tls.context()
    except OSError as error:
        tls = settings.tls
        files = ", ".join(str(each) for each in (tls.ca, tls.cert, tls.key) if each)
        raise BrokerRefused(f"{where}: TLS cannot be set up with {files}: {error}", 0) from error


def _translate_error(
    where: _ServerLabel, error: Exception, protocol: TapProtocol | None
) -> ConnectionLost:
    """Return our error for a failed attempt, by its cause.

    aio-pika raises the same exception for several causes.
    """
    if protocol is not None and protocol.frame_reader.refusal is not None:
        code, _ = protocol.frame_reader.refusal
        kind = BrokerRefused(f"{where}: {protocol.reason}", code)
        return kind if code in _REFUSALS else ConnectionLost(str(kind))
    if isinstance(error, ssl.SSLError):
        return BrokerRefused(f"{where}: TLS failed: {error}", 0)
    if isinstance(error, AuthenticationError):
        return BrokerRefused(
            f"{where}: the broker does not support this authentication mechanism: {error}", 0
        )
    if isinstance(error, _UnsupportedBroker):
        return BrokerRefused(f"{where}: {error}", 0)
    if isinstance(error, UnicodeError) and protocol is None:
        return BrokerRefused(f"{where}: this is not a valid host name: {error}", 0)
    return ConnectionLost(f"{where}: {_reason(error, protocol)}")


def _reason(error: Exception, protocol: TapProtocol | None) -> str:
    if isinstance(error, TimeoutError):
        # The socket was closed because of the timeout, so its own reason is not the cause.
        return str(error)
    if protocol is not None and protocol.reason != CLOSED:
        return protocol.reason
    return failure_reason(error) or "the server closed the connection during the login"


def failure_reason(error: BaseException) -> str:
    """Return why aiormq closed a connection; empty if the server closed it."""
    closed = isinstance(error.__cause__, asyncio.IncompleteReadError)
    if closed or isinstance(error, StopAsyncIteration | asyncio.CancelledError):
        return ""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, AMQPError | OSError | ConnectionLost):
        text = str(error) or text
    else:
        text = f"what the server sent cannot be read: {text}"
    return text if len(text) <= _MAX_REASON_LENGTH else f"{text[:_MAX_REASON_LENGTH]}…"
