"""Run a whole application in the process of a test: real sockets and protocol, no RabbitMQ."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

from dependency_injector import containers, providers
from pydantic import SecretStr
from yarl import URL

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.lease import QUEUE_PREFIX
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX, RETRY_INFIX
from workerkit.app.assembly import Assembly
from workerkit.config.connections import AMQPSettings, SSESettings
from workerkit.config.sections import HTTPSettings
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.describe import describe_error
from workerkit.embedded import LATEST, EmbeddedBroker, MessageSnapshot, QueueSnapshot
from workerkit.errors import RunError
from workerkit.observe import Settled
from workerkit.options import folded
from workerkit.periodic.singleton import SingletonOptions
from workerkit.runner import Runner
from workerkit.tasks import cancel_and_wait
from workerkit.testing.http_client import HTTPClient
from workerkit.testing.records import Record
from workerkit.testing.requeues import Requeues
from workerkit.testing.used_transports import UsedTransports

_LOOPBACK = "127.0.0.1"
_HERE = {_LOOPBACK, "localhost", "::1", "0.0.0.0", "::"}
_POLL_INTERVAL = 0.005
_TURNS = 40
_START_DEADLINE = 10.0
_IDLE_DEADLINE = 10.0
_MAX_REQUEUES = 10


class Application:
    """A running application, as a test uses it. Get one from `running`.

    Attributes:
        http: A client of its views; `http.url` is where they are served, for other clients.
    """

    def __init__(
        self,
        runner: Runner,
        broker: EmbeddedBroker,
        transports: UsedTransports,
        vhosts: set[str],
        assembly: Assembly,
    ) -> None:
        self.runner = runner
        self.broker = broker
        self.http = HTTPClient()
        self._vhosts = vhosts
        self._read = _queues_read(assembly)
        self._requeues = Requeues(assembly)
        self._transports = transports
        self._settled: list[Record] = []
        self._publisher = Publisher()
        self._publisher.codecs = assembly.codecs

    async def publish(self, body: object, routing_key: str, **more: Any) -> str:
        """Publish a message from outside the application; as `Publisher.publish`."""
        return await self._publisher.publish(body, routing_key, **more)

    async def request(
        self, body: object, routing_key: str, *, returns: Any = bytes, **more: Any
    ) -> Any:
        """Send a request from outside the application; as `Publisher.request`."""
        return await self._publisher.request(body, routing_key, returns=returns, **more)

    async def idle(
        self, deadline: float = _IDLE_DEADLINE, *, max_requeues: int | None = _MAX_REQUEUES
    ) -> None:
        """Return when everything that messages and events have caused is settled.

        It does not wait for time to pass: partly filled batches are handled, messages that wait to
        be requeued are requeued, pauses before other attempts end, and the broker's clock advances
        to the next retry. A queue that a consumer reads counts while the consumer is
        reconnecting, too. An event that a server of this process has sent counts
        from then on.

        Args:
            deadline: Seconds to wait at most.
            max_requeues: A message or event that is requeued more often fails the test at once: a
                handler that always raises would never be done. A `Retry` counts as well where no
                policy limits the number. None allows any number, for tests that expect failures.

        Raises:
            AssertionError: It is not idle after *deadline* seconds, and the text says what is
                pending; or something was requeued too often. The cause is what the handler raised.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline
        while pending := await self._pending():
            self._requeues.check(max_requeues)
            if loop.time() > until:
                raise self._not_idle(deadline, pending)
            self._transports.skip_waits()
            waiting = self._waiting()
            if pending == list(waiting):
                self.broker.advance(min(waiting.values()))
            await asyncio.sleep(_POLL_INTERVAL)

    async def tick(self, name: str, *, max_requeues: int | None = _MAX_REQUEUES) -> None:
        """Let a periodic task run once, and wait for it; by itself none runs in a test.

        What it raises is in its record: see `settled`.

        Args:
            max_requeues: As for `idle`, for a task that raises `Retry` without a policy.

        Raises:
            KeyError: There is no periodic task of that name.
            AssertionError: It was tried again more often.
        """
        call = asyncio.create_task(self._transports.periodic.tick(name))
        try:
            while not call.done():
                await asyncio.wait([call], timeout=_POLL_INTERVAL)
                self._requeues.check(max_requeues)
            await call
        finally:
            await cancel_and_wait([call])

    def settled(self, name: str) -> list[Record]:
        """Return the records of the deliveries of one consumer, in order.

        Raises:
            KeyError: No consumer of that name runs.
        """
        key = folded(name)
        names = [each.consumer for each in self.runner.health]
        if key not in map(folded, names):
            raise KeyError(f"no consumer {name!r} runs{_others(names)}")
        return [each for each in self._settled if folded(each.consumer) == key]

    def queue(self, name: str, vhost: str = "/") -> QueueSnapshot:
        """Return the current state of a queue.

        Raises:
            KeyError: There is no queue of that name.
        """
        names = self._names(vhost)
        if name not in names:
            raise KeyError(f"no queue {name!r} in vhost {vhost!r}{_others(names)}")
        return self.broker.queue(name, vhost)

    def dead_letters(self, queue: str, vhost: str = "/") -> list[MessageSnapshot]:
        """Return the dead letters of a queue, oldest first; none where it has no queue for them.

        Raises:
            KeyError: No consumer reads the queue.
        """
        letters, names = queue + DEAD_LETTER_SUFFIX, self._names(vhost)
        if letters in names:
            return list(self.broker.queue(letters, vhost).messages)
        read = sorted(name for where, name in self._read if where == vhost)
        if queue not in read:
            missing = f"no consumer reads queue {queue!r} in vhost {vhost!r}"
            raise KeyError(missing + _others(read))
        return []

    def _observe(self, settled: Settled) -> None:
        self._settled.append(Record.of(settled))
        self._requeues.note(settled)

    def _not_idle(self, deadline: float, pending: Sequence[str]) -> AssertionError:
        last = self._requeues.last
        text = f"not idle after {deadline:g} s: {'; '.join(pending)}"
        error = last.outcome.error if last is not None else None
        if last is not None and error is not None:
            text += f"; the last failure: {last.consumer} raised {describe_error(error)}"
        failure = AssertionError(text)
        failure.__cause__ = error
        return failure

    async def _pending(self) -> list[str]:
        """Return what is not settled yet, in words."""
        # Data in a socket of the loopback is read within a few turns of the loop.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        found = [
            f"queue {each.name!r} has {each.ready} ready, {each.unacked} unacknowledged"
            for vhost, each in self._queues()
            if each.unacked or (each.ready and self._is_read(vhost, each))
        ]
        found += self._transports.pending()
        return found + list(self._waiting())

    def _waiting(self) -> dict[str, float]:
        """Return the retries that wait, in words, and the seconds until the last one of each."""
        return {
            f"{each.ready} messages wait in {each.name!r}": each.arguments["x-message-ttl"] / 1000
            for _, each in self._queues()
            if each.ready and RETRY_INFIX in each.name and "x-message-ttl" in each.arguments
        }

    def _names(self, vhost: str) -> list[str]:
        """Return the names of the queues of a virtual host."""
        if vhost not in self._vhosts:
            raise KeyError(f"no vhost {vhost!r}{_others(sorted(self._vhosts))}")
        return self.broker.queues(vhost)

    def _is_read(self, vhost: str, queue: QueueSnapshot) -> bool:
        """Return whether a consumer reads it, or will as soon as it is connected again."""
        return queue.consumers > 0 or (vhost, queue.name) in self._read

    def _queues(self) -> list[tuple[str, QueueSnapshot]]:
        """Return the queues of messages, without those of leases, which always have one."""
        return [
            (vhost, self.broker.queue(name, vhost))
            for vhost in self._vhosts
            for name in self.broker.queues(vhost)
            if not name.startswith(QUEUE_PREFIX)
        ]


@asynccontextmanager
async def running(
    container: containers.Container,
    *,
    packages: Sequence[str],
    only: Sequence[str | type[Consumer]] = (),
    behaves_as: str = LATEST,
) -> AsyncIterator[Application]:
    """Run the consumers of *packages* on an embedded broker inside the block.

    Every AMQP connection of the settings leads to that broker, with all virtual hosts. Views
    are served on a free port, `app.http.url`; a connection of `settings.sse` that leads to host and
    port of `settings.http` leads there, too. Everything else comes from the container.

    Args:
        only: Names of the consumers to run, or their classes; none means all.
        behaves_as: The version of RabbitMQ that the broker behaves as: "3.10", "4.0" or "4.3".

    Raises:
        TypeError: *packages* or *only* is not a list.
        StartError: The application cannot start, or did not stop cleanly.
    """
    runner = Runner(container, packages=packages, only=only)
    transports = UsedTransports()
    async with EmbeddedBroker(behaves_as=behaves_as) as broker:
        with _free_port() as port, ExitStack() as stack:

            def put(name: str, value: object) -> None:
                provider = container.providers[name]
                stack.enter_context(provider.override(providers.Object(value)))

            settings: WorkerSettings = container.providers["settings"]()
            redirected = _redirected(settings, broker, port)
            put("settings", redirected)
            stack.enter_context(transports.put_into(container))
            if getattr(container.providers["publisher"](), "connects", False):
                put("publisher", Publisher())
            assembly = runner.assemble()
            vhosts = _add_vhosts(broker, assembly, settings)
            application = Application(runner, broker, transports, vhosts, assembly)
            put("observers", [*container.providers["observers"](), application._observe])
            async with runner.running():
                await _ready(runner)
                application._publisher.open(redirected)
                if transports.http is not None and transports.http.url:
                    application.http.open(transports.http.url)
                try:
                    yield application
                finally:
                    await application.http.close()
                    await application._publisher.close()


@contextmanager
def _free_port() -> Iterator[int]:
    """Reserve a port of the loopback; listen on it with `reuse_port`."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((_LOOPBACK, 0))
        yield reserved.getsockname()[1]


def _redirected(settings: WorkerSettings, broker: EmbeddedBroker, port: int) -> WorkerSettings:
    """Return the settings with all connections to RabbitMQ and the views redirected to the test."""
    http = {"host": _LOOPBACK, "port": port, "reuse_port": True}
    return settings.with_amqp(_connections(settings, broker)).model_copy(
        update={
            "http": settings.http.model_copy(update=http),
            "sse": {
                name: _redirected_stream(connection, settings.http, port)
                for name, connection in settings.sse.items()
            },
        }
    )


def _redirected_stream(connection: SSESettings, http: HTTPSettings, port: int) -> SSESettings:
    """Return the connection, to *port* if it leads to the views of this application."""
    url = URL(connection.url.get_secret_value())
    here = url.host == http.host or {url.host, http.host} <= _HERE
    if not here or (url.scheme, url.port) != ("http", http.port):
        return connection
    moved = SecretStr(str(url.with_host(_LOOPBACK).with_port(port)))
    return connection.model_copy(update={"url": moved})


def _others(names: Sequence[str]) -> str:
    return f", only {', '.join(names)}" if names else "; there is none"


def _add_vhosts(broker: EmbeddedBroker, assembly: Assembly, settings: WorkerSettings) -> set[str]:
    """Create every virtual host that settings or consumers name, and return all of them."""
    vhosts = {"/", *(each.vhost_name() for each in settings.amqp.values())}
    vhosts |= {
        assembly.settings.amqp[each.connection.casefold()].vhost_name(each.vhost)
        for each in (declared.options for declared in assembly.declared)
        if isinstance(each, AMQPOptions | SingletonOptions)
    }
    for vhost in vhosts - {"/"}:
        broker.add_vhost(vhost)
    return vhosts


def _connections(settings: WorkerSettings, broker: EmbeddedBroker) -> dict[str, AMQPSettings]:
    connections = {}
    for name, connection in settings.amqp.items():
        connections[name] = AMQPSettings(
            url=SecretStr(broker.url_of(connection.vhost_name())),
            declare=connection.declare,
            heartbeat=connection.heartbeat,
        )
    return connections


def _queues_read(assembly: Assembly) -> set[tuple[str, str]]:
    """Return the queues that consumers read from, each with its virtual host."""
    return {
        (assembly.settings.amqp[each.connection.casefold()].vhost_name(each.vhost), queue.name)
        for each in (declared.options for declared in assembly.declared)
        if isinstance(each, AMQPOptions)
        for queue in each.queues
    }


async def _ready(runner: Runner) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + _START_DEADLINE
    while runner.health and not runner.ready:
        if loop.time() > until:
            waiting = [each for each in runner.health if each.reason]
            raise RunError(*(f"{each.consumer} is not ready: {each.reason}" for each in waiting))
        await asyncio.sleep(_POLL_INTERVAL)
