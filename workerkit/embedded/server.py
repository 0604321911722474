"""The public class of the embedded broker: start, stop, inspect it and inject failures."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from workerkit.embedded import snapshot
from workerkit.embedded.behaviour import LATEST, behaviour_of
from workerkit.embedded.broker import Broker, Client
from workerkit.embedded.channel import Channel
from workerkit.embedded.connection import Connection
from workerkit.embedded.errors import CODES, Refusal
from workerkit.embedded.injected_faults import InjectedFault
from workerkit.embedded.listener import BrokerListener
from workerkit.embedded.snapshot import QueueSnapshot
from workerkit.errors import ConfigurationError

log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_MEMORY = 256 * 2**20
_HEARTBEAT = 60
_QUEUE_TYPES = (None, "classic", "quorum")
# A client that does not reply to connection.close must not delay a test.
_CLOSE_TIMEOUT = 1.0


class EmbeddedBroker:
    """An AMQP 0-9-1 broker inside this process that behaves like RabbitMQ.

        async with EmbeddedBroker() as broker:
            connection = await aio_pika.connect(broker.url)

    It is for demos and tests only: it listens on loopback, keeps everything in memory, loses it at
    `stop`, and has no TLS, permissions, policies, streams or clusters.

    Every method except `start` and `stop` may be called from any thread, and its effect is complete
    when it returns.

    Args:
        port: 0 picks a free one.
        host: A loopback address.
        behaves_as: The RabbitMQ version to imitate: "3.10", "4.0" or "4.3".
        max_memory: Bytes of messages at which the memory alarm blocks publishers.

    Raises:
        ConfigurationError: *host* is not a loopback address, or *behaves_as* is not supported.

    Attributes:
        behaves_as: The RabbitMQ version that it imitates.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        behaves_as: str = LATEST,
        max_memory: int = _MAX_MEMORY,
    ) -> None:
        self.behaves_as = behaves_as
        behaviour = behaviour_of(behaves_as)
        self._broker = Broker(behaviour, max_memory=max_memory, heartbeat=_HEARTBEAT)
        self._listener = BrokerListener(host, port, lambda: Connection(self._broker))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None

    # Lifetime

    async def start(self) -> None:
        """Start listening, with nothing declared.

        Raises:
            ConfigurationError: The port is in use.
        """
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._broker.clock.start(self._loop)
        self._listener.accept()
        place = {
            "host": self._listener.host,
            "port": self.port,
            "behaves_as": f"RabbitMQ {self.behaves_as}",
        }
        log.info("embedded broker started; for demos and tests only", extra=place)

    async def stop(self) -> None:
        """Close every connection, and leave no socket, task or timer."""
        self._listener.close()
        self._broker.frozen = False
        text = "broker forced connection closure with reason 'shutdown'"
        clients = [each for each in self._broker.clients if isinstance(each, Connection)]
        for client in clients:
            client.thaw()
            client.refuse(Refusal("CONNECTION_FORCED", text))
        lost = [client.lost for client in clients]
        if lost:
            await asyncio.wait(lost, timeout=_CLOSE_TIMEOUT)
        for client in clients:
            client.abort()
        if lost:
            await asyncio.wait(lost)
        self._broker.forget()
        self._loop = self._thread = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @classmethod
    @contextmanager
    def in_thread(cls, port: int = 0, **options: Any) -> Iterator[Self]:
        """Run a broker in a separate thread, for synchronous tests, until the block ends.

        Args:
            options: As for the class.
        """
        broker = cls(port, **options)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="embedded-broker", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(broker.start(), loop).result()
            try:
                yield broker
            finally:
                asyncio.run_coroutine_threadsafe(broker.stop(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    # Addresses, users, virtual hosts

    @property
    def port(self) -> int:
        """The port, when the broker has started."""
        return self._listener.port

    @property
    def url(self) -> str:
        """The URL of the virtual host `/` for the user `guest`."""
        return f"amqp://guest:guest@{self._listener.host}:{self.port}/"

    def url_of(self, vhost: str, *, user: str = "guest", password: str = "guest") -> str:
        """Return the URL of a virtual host, with its parts quoted."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"amqp://{login}@{self._listener.host}:{self.port}/{quote(vhost, safe='')}"

    def add_vhost(self, name: str, *, default_queue_type: str | None = None) -> None:
        """Create a virtual host that every user may use.

        Args:
            default_queue_type: The type, such as `quorum`, of queues that are declared without one
                and are durable, not exclusive and not auto-delete.

        Raises:
            ConfigurationError: The type is not supported.
        """
        if default_queue_type not in _QUEUE_TYPES:
            raise ConfigurationError(
                f"vhost {name!r}: default_queue_type is {default_queue_type!r}:"
                " the embedded broker has 'classic' and 'quorum'"
            )
        self._do(lambda: self._broker.add_vhost(name, default_queue_type))

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with its queues, and close its connections."""
        self._do(lambda: self._broker.delete_vhost(name))

    def add_user(self, name: str, password: str) -> None:
        """Add a user, or change a password. `guest` exists from the start."""
        self._do(lambda: self._broker.users.update({name: password}))

    # Inspect

    def queue(self, name: str, vhost: str = "/") -> QueueSnapshot:
        """Return the present state of a queue.

        Raises:
            KeyError: The queue does not exist.
        """
        return self._do(lambda: snapshot.of_queue(self._broker.vhosts[vhost].queues[name]))

    def queues(self, vhost: str = "/") -> list[str]:
        """Return the names of all queues of a virtual host, in order of declaration."""
        return self._do(lambda: list(self._broker.vhosts[vhost].queues))

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return self._do(lambda: len(self._broker.clients))

    # Failures

    def drop_connections(self, *, abrupt: bool = False) -> None:
        """Close every connection, with connection.close or (*abrupt*) without it."""
        refusal = Refusal("CONNECTION_FORCED", "Closed by a test")
        self._each(lambda client: client.abort() if abrupt else client.refuse(refusal))

    def close_channel(
        self,
        queue: str | None = None,
        vhost: str = "/",
        *,
        code: str = "PRECONDITION_FAILED",
        text: str = "closed by a test",
    ) -> int:
        """Close the channels that consume from a queue; without a queue, every channel.

        Args:
            code: Name of the reply code.

        Returns:
            The number of closed channels.

        Raises:
            ValueError: The code does not exist.
        """
        if code not in CODES:
            raise ValueError(f"{code!r} is not one of {', '.join(CODES)}")

        def matches(channel: Channel) -> bool:
            tags = channel.consumers.values()
            return queue is None or any(
                consumer.queue.name == queue and channel.vhost.name == vhost for consumer in tags
            )

        def close() -> int:
            found = [
                (client, channel)
                for client in self._broker.clients
                for channel in client.channels()
                if matches(channel)
            ]
            for client, channel in found:
                client.close_channel(channel, Refusal(code, text))
            return len(found)

        return self._do(close)

    def refuse_connections(self, refuse: bool) -> None:
        """Refuse new connections, or accept them again; open ones stay."""
        self._do(self._listener.refuse if refuse else self._listener.accept)

    def freeze(self) -> None:
        """Stop reading and writing; sockets stay open."""
        self._broker.frozen = True
        self._each(lambda client: client.freeze())

    def thaw(self) -> None:
        """Resume after `freeze`."""
        self._broker.frozen = False
        self._each(lambda client: client.thaw())

    def swallow_next(self, method: str) -> None:
        """Discard the next reply *method*, such as `basic.consume-ok`, on any connection.

        The confirm of a publish is `basic.ack`; publishes received together share one.

        Raises:
            ValueError: AMQP has no such method.
        """
        self._do(lambda: self._broker.faults.add(InjectedFault(method, None)))

    def delay_next(self, method: str, seconds: float) -> None:
        """Delay the next reply *method* by *seconds* of the broker's clock; others may overtake it.

        Raises:
            ValueError: AMQP has no such method.
        """
        self._do(lambda: self._broker.faults.add(InjectedFault(method, seconds)))

    def memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm, which blocks publishers."""
        self._do(lambda: self._broker.set_alarm("test", on))

    def purge(self, queue: str, vhost: str = "/") -> int:
        """Drop the waiting messages of a queue; return their number."""

        def run() -> int:
            return self._broker.vhosts[vhost].queues[queue].purge()

        return self._do(run)

    def advance(self, seconds: float) -> None:
        """Move the broker's clock: messages and queues that expire by then expire now, in order."""
        self._do(lambda: self._broker.clock.advance(seconds))

    # Internals

    def _each(self, action: Callable[[Client], None]) -> None:
        def run() -> None:
            for client in list(self._broker.clients):
                action(client)

        self._do(run)

    def _do(self, action: Callable[[], T]) -> T:
        """Run *action* in the broker's thread, and wait for it."""
        if self._loop is None or self._thread == threading.get_ident():
            return action()
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(action())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result()
