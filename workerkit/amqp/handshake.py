"""Open one connection to one server and log in, by aio-pika; say in our words why not."""

import logging
import ssl
from typing import Any

import aio_pika
from aiormq.exceptions import AMQPError, AuthenticationError

from workerkit.amqp.addresses import Attempt
from workerkit.amqp.codes import NO_PERMISSION
from workerkit.amqp.tap import TapProtocol, TapTransportFactory
from workerkit.connections import AMQPSettings
from workerkit.errors import BrokerRefused, ConnectionLost, StartError
from workerkit.supervisor import within

log = logging.getLogger(__name__)

_REFUSALS = (NO_PERMISSION, 530)


class TapConnection(aio_pika.Connection):
    """aio-pika drops a `transport_factory` on its way to aiormq, so it is put in behind it."""

    def __init__(self, factory: TapTransportFactory, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kwargs["transport_factory"] = factory


async def log_in(
    settings: AMQPSettings, vhost: str | None, role: str, attempt: Attempt
) -> tuple[TapConnection, TapProtocol]:
    """Open a connection to the server of *attempt*.

    Raises:
        BrokerRefused: The broker refused the login, or TLS cannot be agreed on.
        ConnectionLost: The server cannot be reached, or did not answer in time.
        StartError: aio-pika has changed so much that the tap does not work with it.
    """
    where = _Where(settings, vhost, attempt)
    url = settings.address(vhost, attempt.server)
    factory = TapTransportFactory(attempt, settings.tls.server_name)
    connection = TapConnection(
        factory,
        url.update_query(heartbeat=settings.heartbeat, auth=settings.auth),
        ssl_context=_tls(settings, where),
        client_properties={"connection_name": f"workerkit {role}"},
    )
    late = ConnectionLost(f"no answer within {settings.connect_timeout:g} s")
    try:
        await within(settings.connect_timeout, connection.connect(), late)
    except (AMQPError, OSError, ConnectionLost) as error:
        raise _explained(where, error, factory.protocol) from error
    except UnicodeError as error:
        raise BrokerRefused(f"{where}: this cannot be a host name: {error}", 0) from error
    finally:
        if factory.protocol is not None and not connection.connected.is_set():
            factory.protocol.discard()
    if factory.protocol is None:
        raise StartError(
            f"aio-pika {aio_pika.__version__} does not open its sockets through aiormq's "
            "transport_factory any more; install the versions that setup.cfg names"
        )
    return connection, factory.protocol


class _Where:
    """What an error calls the server: with the addresses that were tried until then."""

    def __init__(self, settings: AMQPSettings, vhost: str | None, attempt: Attempt) -> None:
        self._url = settings.display(vhost, attempt.server)
        self._vhost = settings.vhost_name(vhost)
        self._attempt = attempt

    def __str__(self) -> str:
        addresses = self._attempt.addresses
        at = f" at {addresses}" if addresses else ""
        return f"{self._url} (virtual host {self._vhost!r}){at}"


def _tls(settings: AMQPSettings, where: _Where) -> ssl.SSLContext | None:
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


def _explained(where: _Where, error: Exception, protocol: TapProtocol | None) -> ConnectionLost:
    """Our error for a failed attempt, by its cause: aio-pika has the same one for many."""
    if protocol is not None and protocol.tap.refusal is not None:
        code, text = protocol.tap.refusal
        kind = BrokerRefused(f"{where}: {text}", code)
        return kind if code in _REFUSALS else ConnectionLost(str(kind))
    if isinstance(error, ssl.SSLError):
        return BrokerRefused(f"{where}: TLS failed: {error}", 0)
    if isinstance(error, AuthenticationError):
        return BrokerRefused(f"{where}: the broker does not offer this way to log in: {error}", 0)
    late = isinstance(error.__cause__, TimeoutError)
    if protocol is not None and protocol.lost.done() and not late:
        # Whoever was late had its socket closed for that.
        return ConnectionLost(f"{where}: {protocol.reason}")
    return ConnectionLost(f"{where}: {str(error) or type(error).__name__}")
