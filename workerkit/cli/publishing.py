"""Publish a message from the command line."""

import asyncio

from workerkit.amqp.connection import connect
from workerkit.amqp.properties import Properties
from workerkit.amqp.publisher import Destination, Publisher
from workerkit.cli.options import quiet
from workerkit.errors import BrokerRefused, ConnectionLost, PublishRefused
from workerkit.observe import Connection, Settled
from workerkit.settings import WorkerSettings


async def publish_once(
    settings: WorkerSettings, raw: bytes, properties: Properties, to: Destination
) -> str:
    """Publish *raw* and return the message id once the broker has taken it over.

    Raises:
        PublishError: It has not; at once where the broker refused the connection.
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
            raise PublishRefused(f"message to {to}: {error}") from error
        return await sending
    finally:
        sending.cancel()
        asking.cancel()
        await asyncio.wait([sending, asking])
        await publisher.close()


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
) -> BrokerRefused | None:
    """Why no further attempt would do, once one has failed; None where one may."""
    await attempts.failed.wait()
    try:
        session = await connect(
            settings.connection(to.connection.casefold()), to.vhost, "publisher"
        )
    except BrokerRefused as error:
        return error
    except ConnectionLost:
        return None
    await session.close()
    return None
