"""The seam for transports: what a package needs that adds SQS, Kafka or NATS to workerkit.

Every name in `__all__` is public and stable: from 1.0 on it changes only with a major version, and
before that only with a line in the changelog that says what to write instead. Import them from
here, whichever module defines them.

Most transports subclass `SimpleTransport` of `workerkit.simple_transport`, which needs two
functions. `Transport` is the protocol behind it, for those that need full control. Optional
abilities have a protocol each: `Bursts`, `Configured`, `Idles`, `Prepares`, `Publishes`,
`ReadsQueues`, `RunsOnce`, `Warns`; for the AsyncAPI document, `DescribesReceiving` and
`DescribesPublishing` of `workerkit.asyncapi`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel

from workerkit.codec import Codecs
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.control import Ability, Control, NotPossible
from workerkit.delivery import Action, Delivery, Outcome, TraceDetails
from workerkit.endpoint import Endpoint
from workerkit.errors import BrokerRefused, ConnectionLost
from workerkit.health import Health, Part, State
from workerkit.observe import ConnectionEvent, Observer, Published, Settled, notify, notify_event
from workerkit.options import (
    OF_BATCHES,
    Concurrency,
    Options,
    Seconds,
    Settlement,
    unless_retried,
)
from workerkit.retry import Retries, RetryPolicy, pause
from workerkit.safe_text import Redact
from workerkit.signature import Arguments, Signature
from workerkit.tasks import Backoff, cancel, cancel_and_wait
from workerkit.trace import Tracing
from workerkit.workers import Batching, Workers

__all__ = [
    "OF_BATCHES",
    "Ability",
    "Action",
    "Arguments",
    "Backoff",
    "Batching",
    "BrokerRefused",
    "Bursts",
    "Codecs",
    "Concurrency",
    "Configured",
    "ConnectionEvent",
    "ConnectionLost",
    "Consumer",
    "Context",
    "Control",
    "Declared",
    "Delivery",
    "Endpoint",
    "Health",
    "Hook",
    "Idles",
    "NotPossible",
    "Observer",
    "Options",
    "Outcome",
    "Part",
    "Prepares",
    "Published",
    "Publishes",
    "ReadQueue",
    "ReadsQueues",
    "Redact",
    "Retries",
    "RetryPolicy",
    "RunsOnce",
    "Seconds",
    "Settled",
    "Settlement",
    "Signature",
    "State",
    "TraceDetails",
    "Tracing",
    "Transport",
    "Warns",
    "WorkerSettings",
    "Workers",
    "cancel",
    "cancel_and_wait",
    "notify",
    "notify_event",
    "pause",
    "unless_retried",
]

Section = TypeVar("Section", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Declared:
    """A consumer class and everything known about it before an instance exists.

    Attributes:
        signatures: The signature of each method that its transport calls, by the method's name.
        factory: Creates the instance from the container; returns a future where a resource is
            asynchronous.
        interceptors: Create its interceptors likewise, the outermost first.
    """

    consumer: type[Consumer]
    options: Options
    signatures: Mapping[str, Arguments]
    factory: Callable[[], Any]
    interceptors: Sequence[Callable[[], Any]] = ()

    @property
    def signature(self) -> Signature:
        """Return the signature of `handle`, for kinds of consumers that have no other method."""
        signature = self.signatures["handle"]
        assert isinstance(signature, Signature)
        return signature


@dataclass(frozen=True, slots=True)
class Context:
    """What every transport needs from the process.

    Attributes:
        publisher: The container's; a test may have put a fake there.
        cursors: The container's store of the cursors of streams.
        middlewares: The container's, for requests.
        redact: The container's; called with texts of exceptions before they leave the process.
        codecs: The container's, and the built-in ones.
        changed: For each `Part` of a `Health`: called after every change of it.
        tracing: Creates spans; None if tracing is off. The calls of `handle` are traced without it.
        burst: The process ends when there is nothing left to handle; see `Bursts`.
        keep: Runs a coroutine as a task of the process: one that raises stops the process, and so
            does one that was cancelled otherwise than by `cancel` or `cancel_and_wait`.
    """

    settings: WorkerSettings
    observers: Sequence[Observer]
    publisher: object
    cursors: object
    middlewares: Sequence[Any]
    redact: Redact | None
    codecs: Codecs
    changed: Callable[[], None]
    keep: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    tracing: Tracing | None = None
    burst: bool = False

    def section(self, model: type[Section]) -> Section:
        """Return the section of the settings that has this class; see `Configured`.

        Raises:
            LookupError: No transport of the process has such a section.
        """
        for name in type(self.settings).model_fields:
            found = getattr(self.settings, name)
            if isinstance(found, model):
                return found
        raise LookupError(f"no transport adds a section {model.__name__} to the settings")


class Transport(Protocol):
    """Receives deliveries of one kind and settles them: a Runner has one per kind.

    The Runner calls `check` before anything is opened, `start` once, `stop` and then `drain` when
    the process stops, `cancel` if handlers still run after the grace period, and `close` last.

    Attributes:
        kind: One word for its consumers, such as `amqp`.
        delivery: The type that this transport passes to `handle`; None where there is no body.
    """

    kind: str
    delivery: type[Delivery] | None

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """Return the faults of a declaration that only this transport can see, a sentence each."""

    def source(self, options: Options) -> str:
        """Return what a consumer reads from, for people."""

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """Return how the source is reached, for people; without passwords."""

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """Create the endpoint of one consumer.

        Where several methods are called there is one for each; this is the first, whose `start`
        and `stop` are called for the consumer. The transport closes the others.
        """

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Begin to deliver, and reconnect after every loss of the connection.

        Returns at once; the health of each consumer shows when it is ready. Its `control` is what
        an operator may change while it runs; by default nothing. A consumer with the option
        `paused` starts paused.
        """

    async def stop(self) -> None:
        """Receive nothing new; return to the source what no handler has begun with."""

    async def drain(self) -> None:
        """Return once every running handler has returned and its delivery is settled."""

    async def cancel(self) -> None:
        """Cancel the handlers that still run, and wait for them.

        Cancelled deliveries are not settled. The Runner cancels this call if it takes too long.
        """

    def busy(self) -> list[str]:
        """Return the names of the consumers whose handlers still run."""

    async def close(self) -> None:
        """Close every connection. The source redelivers what was not settled.

        While handlers still run, connections are aborted instead of closed.
        """


@runtime_checkable
class Prepares(Protocol):
    """A transport that has something to do before any code of the consumers runs."""

    async def prepare(self, declared: Sequence[Declared], context: Context) -> None:
        """Prepare what the consumers need, and what other consumers may use in `on_start`.

        The Runner calls it after it has created the consumers, and before it calls the first
        `on_start`. It has to return after a bounded time, even while the source is unreachable.
        """


@runtime_checkable
class Publishes(Protocol):
    """A transport that can also publish, whether or not a consumer of its kind runs.

    Attributes:
        kind: As that of the transport.
    """

    kind: str

    async def open_publisher(self, context: Context) -> None:
        """Make publishing possible. Called before the first `on_start`; do not connect yet."""

    def blocked(self) -> Sequence[str]:
        """Return the connections on which nothing can be published now; health shows them."""

    async def close_publisher(self) -> None:
        """Close the publisher's connections. Called after the last `on_stop`."""


@runtime_checkable
class Warns(Protocol):
    """A transport that also reports what is allowed but probably not intended."""

    def warnings(self, declared: Declared) -> list[str]:
        """Return the warnings of `workerkit check`, one sentence each."""


@runtime_checkable
class RunsOnce(Protocol):
    """A transport with consumers that must not run in several processes at the same time.

    `workerkit run --processes` runs them in its first process only.
    """

    def runs_once(self, options: Options) -> bool:
        """Return whether a second process with this consumer would repeat its work."""


class ReadQueue(NamedTuple):
    """A queue that a consumer reads, as operators know it.

    Attributes:
        name: At the broker.
        connection: The name of the connection in the settings.
        vhost: The virtual host; empty where there is none.
        broker: The address of the broker, without a password.
        dead_letters: The name of the queue for its dead letters; None if it has none.
        is_stream: It keeps its messages after they were handled.
        is_temporary: Its name changes with each connection, and other connections cannot read it.
    """

    name: str
    connection: str
    vhost: str = ""
    broker: str = ""
    dead_letters: str | None = None
    is_stream: bool = False
    is_temporary: bool = False


@runtime_checkable
class ReadsQueues(Protocol):
    """A transport whose consumers read queues of a broker: the console lists them."""

    def read_queues(self, options: Options, settings: WorkerSettings) -> Sequence[ReadQueue]:
        """Return the queues of a consumer, before the start as well."""


@runtime_checkable
class Idles(Protocol):
    """A transport that tests can wait for: `idle()` of the test kit calls this.

    Without these methods `idle()` waits until `busy` returns nothing.
    """

    def pending(self) -> list[str]:
        """Return what is not settled, and what will be delivered without a wait, in words."""

    def skip_waits(self) -> None:
        """Handle partly filled batches, and end pauses before other attempts, now."""


@runtime_checkable
class Bursts(Protocol):
    """A transport that can handle what there is, and then end: for `workerkit run --burst`.

    Consumers of other transports do not run in a burst. In one, `Context.burst` is true at `start`:
    a delivery that fails again and again must not keep the process running. Try it a bounded number
    of times, then keep it until `stop`, which returns it to its source.
    """

    def endless(self, options: Options) -> str:
        """Return why a consumer has no end, such as "it serves requests"; empty if it has one."""

    async def remaining(self) -> list[str]:
        """Return what is left to be handled, in words: what is received, and what the source has.

        It is called again and again, until there is nothing. Return a text as well while that is
        unknown, because the connection is lost. What is due later is not included.
        """

    def failures(self) -> list[str]:
        """Return what was tried and could not be handled, one sentence each; for the end.

        A dead letter was handled. With a failure the process exits with 1.
        """


@runtime_checkable
class Configured(Protocol):
    """A transport with a section of its own in the settings.

    Attributes:
        section: The name and the class of the section. `("redis", RedisSettings)` reads
            `WORKERKIT_REDIS__URL`, with the prefix of the application's settings. Unknown variables
            below it are faults, and `workerkit settings` lists it. If the settings class of the
            application has a field of that name and class, its value is used.
    """

    section: ClassVar[tuple[str, type[BaseModel]]]


def running_handlers(names: Sequence[str]) -> list[str]:
    """Return for `pending` that handlers of these consumers run, in words."""
    return [f"a handler of {name} runs" for name in names]


class Hook:
    """Calls a consumer's `on_connection_error` for each failed attempt."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._calls: set[asyncio.Task[None]] = set()

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """Call the hook in the background."""
        call = asyncio.create_task(self._endpoint.connection_failed(error, attempt))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        """Cancel the calls that still run."""
        await cancel_and_wait(self._calls)
