"""The in-process broker, from the command line."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from dependency_injector import containers, providers
from pydantic import SecretStr

from workerkit.cli.application import read_settings
from workerkit.connections import AMQPSettings
from workerkit.embedded import EmbeddedBroker
from workerkit.settings import DEFAULT_CONNECTION


@contextmanager
def on_a_broker_of_its_own(container: containers.Container) -> Iterator[None]:
    """Let the default connection of *container* lead to a broker that runs inside the block.

    Raises:
        ConfigurationError: The settings are wrong.
    """
    settings = read_settings(container)
    with EmbeddedBroker.in_thread() as broker:
        print(f"embedded broker at {broker.url}", flush=True)
        connection = AMQPSettings(url=SecretStr(broker.url))
        pointed = settings.with_amqp({**settings.amqp, DEFAULT_CONNECTION: connection})
        with container.providers["settings"].override(providers.Object(pointed)):
            yield


def serve(port: int, behaves_as: str) -> None:
    """Run a broker until SIGTERM or SIGINT; print its address first.

    Raises:
        ConfigurationError: The port is in use, or *behaves_as* is an unknown version.
    """
    asyncio.run(_serve(port, behaves_as))


async def _serve(port: int, behaves_as: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with EmbeddedBroker(port, behaves_as=behaves_as) as broker:
        print(broker.url, flush=True)
        await stop.wait()
