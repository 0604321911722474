"""Publish a message from the command line."""

import asyncio

from workerkit.amqp.connection import connect
from workerkit.amqp.properties import Properties
from workerkit.amqp.publisher import Destination, Publisher
from workerkit.cli.application import is_url
from workerkit.cli.options import quiet
from workerkit.config.settings import WorkerSettings
from workerkit.config.variables import Variables
from workerkit.errors import BrokerRefused, ConnectionLost, PublishRefused, PublishTimeout
from workerkit.observe import Connection, Settled


async def publish_once(
    settings: WorkerSettings, raw: bytes, properties: Properties, to: Destination, advice: str
) -> str:
    """Publish *raw* and return the message id once the broker has taken it over.

    Args:
        advice: For whoever reads that no broker can be reached.

    Raises:
        PublishError: It has not; soon where no server accepts the connection, or the login.
        ConfigurationError: The settings have no such connection.
    """
    quiet()
    publisher = Publisher()
    attempts = _Attempts()
    publisher.observers = [attempts]
    publisher.open(settings)
    sending = asyncio.create_task(publisher.send(raw, properties, to))
    asking = asyncio.create_task(_refusal(settings, to, attempts))
    try:
        await asyncio.wait([sending, asking], return_when=asyncio.FIRST_COMPLETED)
        if not sending.done() and (error := asking.result()) is not None:
            text = f"message to {to}: {error}"
            if isinstance(error, BrokerRefused):
                raise PublishRefused(text) from error
            raise PublishTimeout(f"{text}; {advice}") from error
        return await sending
    finally:
        sending.cancel()
        asking.cancel()
        await asyncio.wait([sending, asking])
        await publisher.close()


def unreachable_advice(target: str, settings: WorkerSettings, connection: str) -> str:
    """What to do where no broker can be reached.

    Args:
        target: The package or the URL of the command.
    """
    running = "`workerkit run PACKAGE --embedded-broker` prints the URL of a broker to try"
    if is_url(target):
        return f"write the URL of a broker that runs; {running}"
    variable = Variables(type(settings)).name(("amqp", connection, "url"))
    return f"set {variable}, or write an amqp:// URL in place of {target!r}; {running}"


class _Attempts:
    """An observer that knows when an attempt to connect has failed."""

    def __init__(self) -> None:
        self.failed = asyncio.Event()

    def __call__(self, record: Settled) -> None:
        """Nothing is consumed here."""

    def connection_failed(self, record: Connection) -> None:
        self.failed.set()


async def _refusal(
    settings: WorkerSettings, to: Destination, attempts: _Attempts
) -> ConnectionLost | None:
    """Why each server failed, once one attempt has failed and all are tried again; else None.

    Somebody at a terminal rather corrects an address than waits for a broker to come up.
    """
    await attempts.failed.wait()
    try:
        session = await connect(
            settings.connection(to.connection.casefold()), to.vhost, "publisher"
        )
    except ConnectionLost as error:
        return error
    await session.close()
    return None
