"""The in-process broker, from the command line."""

import asyncio
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from dependency_injector import containers, providers
from pydantic import SecretStr

from workerkit.amqp.consumer import AMQPOptions
from workerkit.cli.application import read_settings
from workerkit.cli.example import example
from workerkit.config.connections import AMQPSettings
from workerkit.config.settings import DEFAULT_CONNECTION
from workerkit.embedded import EmbeddedBroker
from workerkit.errors import ConfigurationError
from workerkit.runner import Runner

DEFAULT_PORT = 5673
"""Not that of RabbitMQ, which may run on the same machine; any other port while it is in use."""


@contextmanager
def on_a_broker_of_its_own(
    container: containers.Container, package: str, only: Sequence[str]
) -> Iterator[None]:
    """Let the default connection of *container* lead to a broker that runs inside the block.

    Its address is printed first, then a command that publishes to a queue of *package*.

    Raises:
        StartError: The settings are wrong, or the package.
    """
    settings = read_settings(container)
    with ExitStack() as stack:
        try:
            broker = stack.enter_context(EmbeddedBroker.in_thread(DEFAULT_PORT))
        except ConfigurationError:
            broker = stack.enter_context(EmbeddedBroker.in_thread())
        connection = AMQPSettings(url=SecretStr(broker.url))
        pointed = settings.with_amqp({**settings.amqp, DEFAULT_CONNECTION: connection})
        stack.enter_context(container.providers["settings"].override(providers.Object(pointed)))
        declared = Runner(container, packages=[package], only=only).assemble().declared
        queues = [
            (each.options.vhost or "/", queue.name, each.signature.body)
            for each in declared
            if isinstance(each.options, AMQPOptions)
            and each.options.connection.casefold() == DEFAULT_CONNECTION
            for queue in each.options.queues
        ]
        for vhost in {vhost for vhost, _, _ in queues} - {"/"}:
            broker.add_vhost(vhost)
        print(f"embedded broker at {broker.url}", flush=True)
        print("it is for demos and tests only, and forgets everything when it stops")
        if queues:
            vhost, name, body = queues[0]
            url = broker.url if vhost == "/" else broker.url_of(vhost)
            print(f"to publish: {publish_command(url, name, example(body))}", flush=True)
        yield


def publish_command(url: str, queue: str, body: str) -> str:
    """A command line that publishes a message to a queue."""
    return shlex.join(("workerkit", "publish", url, queue, body))


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
