"""Publish a message from the command line."""

from collections.abc import Mapping

from workerkit.amqp import table
from workerkit.amqp.properties import PERSISTENT, Properties
from workerkit.amqp.publisher import Destination, Publisher
from workerkit.cli.options import quiet
from workerkit.settings import WorkerSettings


async def publish_once(
    settings: WorkerSettings, raw: bytes, headers: Mapping[str, str], to: Destination
) -> str:
    """Publish *raw* and return the message id once the broker has taken it over.

    Raises:
        PublishError: It has not.
        ConfigurationError: The settings have no such connection.
    """
    quiet()
    publisher = Publisher()
    publisher.open(settings)
    properties = Properties(delivery_mode=PERSISTENT, table=table.encode(headers) or None)
    try:
        return await publisher.send(raw, properties, to)
    finally:
        await publisher.close()
