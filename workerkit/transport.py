"""What the Runner needs of a transport: the seam at which others add SQS, Kafka or NATS."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Delivery
from workerkit.endpoint import Endpoint
from workerkit.health import Health
from workerkit.observe import Observer
from workerkit.options import Options
from workerkit.safe_text import Redact
from workerkit.signature import Arguments, Signature
from workerkit.tasks import cancel_and_wait


@dataclass(frozen=True, slots=True)
class Declared:
    """A consumer class with everything known of it before it is made.

    Attributes:
        signatures: The plan of each method that its transport calls, by the method's name.
        factory: Makes the instance, from the container; gives a future where a resource is
            asynchronous.
    """

    consumer: type[Consumer]
    options: Options
    signatures: Mapping[str, Arguments]
    factory: Callable[[], Any]

    @property
    def signature(self) -> Signature:
        """The plan of `handle`, for kinds of consumers that have nothing but that."""
        signature = self.signatures["handle"]
        assert isinstance(signature, Signature)
        return signature


@dataclass(frozen=True, slots=True)
class Context:
    """What every transport needs of the process.

    Attributes:
        publisher: The container's; a test may have put a fake there.
        cursors: The container's store of the cursors of streams.
        middlewares: The container's, for requests.
        redact: The container's; called with texts of exceptions before they leave the process.
        changed: For each `Part` of a `Health`: called after every change of it.
        keep: Runs a coroutine as a task, for as long as the process runs: one that ends in an
            exception stops the process.
    """

    settings: WorkerSettings
    observers: Sequence[Observer]
    publisher: object
    cursors: object
    middlewares: Sequence[Any]
    redact: Redact | None
    changed: Callable[[], None]
    keep: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class Transport(Protocol):
    """Reads deliveries of one kind and settles them: a Runner has one per kind.

    The Runner calls `check` before anything is opened, `start` once, `drain` when the process
    stops, and `close` last.

    Attributes:
        kind: What its consumers are, in a word, such as `amqp`.
        delivery: The type that this transport hands to `handle`; None where there is no body.
    """

    kind: str
    delivery: type[Delivery] | None

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """The faults of one declaration that this transport alone can see, one sentence each."""

    def source(self, options: Options) -> str:
        """What a consumer reads from, for people."""

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """How it is reached, for people; without passwords."""

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """Make the endpoint of one consumer.

        Where several methods are called there is one for each; this is the first, whose `start`
        and `stop` are called for the consumer. The transport closes the others.
        """

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Begin to deliver, and go on through every loss of the connection.

        Returns at once; each consumer's health tells when it is ready.
        """

    async def stop(self) -> None:
        """Take nothing new; hand back what no handler has begun with."""

    async def drain(self) -> None:
        """Return once every handler that runs has returned and its delivery is settled."""

    async def cancel(self) -> None:
        """Cancel the handlers that still run, and wait for them.

        The Runner cancels this call when one will not end.
        """

    def busy(self) -> list[str]:
        """The names of the consumers whose handlers still run."""

    async def close(self) -> None:
        """Let go of every connection. What was not settled is delivered again.

        With handlers that still run, connections are dropped and not closed.
        """


@runtime_checkable
class Prepares(Protocol):
    """A transport that has something to do before anything of the process runs."""

    async def prepare(self, declared: Sequence[Declared], context: Context) -> None:
        """Prepare what the consumers need, and others may use as soon as they run.

        The Runner calls it after it has created the consumers, and before it calls the first
        `on_start`. It has to return after a bounded time, also while the outside is not there.
        """


@runtime_checkable
class Warns(Protocol):
    """A transport that can also say what is allowed and may not be meant."""

    def warnings(self, declared: Declared) -> list[str]:
        """What `workerkit check` warns of, one sentence each."""


class Hook:
    """Calls a consumer's `on_connection_error` for each failed attempt."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._calls: set[asyncio.Task[None]] = set()

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """Call it, without waiting for what it does."""
        call = asyncio.create_task(self._endpoint.connection_failed(error, attempt))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        """Cancel the calls that still run."""
        await cancel_and_wait(self._calls)
