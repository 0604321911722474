"""Event streams as a transport: one subscription and one receiver for each stream of a consumer."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from yarl import URL

from workerkit.asyncapi import Operation
from workerkit.config.connections import SSESettings
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Delivery
from workerkit.describe import describe_class
from workerkit.endpoint import Endpoint
from workerkit.errors import RunError
from workerkit.health import Health, Part
from workerkit.named_types import type_faults, unused_types
from workerkit.options import Options, Source
from workerkit.sse.consumer import SSEOptions
from workerkit.sse.control import SSEControl
from workerkit.sse.cursor import CursorStore, FileCursors, MemoryCursors
from workerkit.sse.described import stream_operations
from workerkit.sse.event import SSEEvent
from workerkit.sse.event_types import reader
from workerkit.sse.receiver import StreamReceiver
from workerkit.sse.stored_cursor import StoredCursor
from workerkit.sse.subscription import StreamHealth, StreamSubscription
from workerkit.tasks import cancel_and_wait
from workerkit.transport import Context, Declared


class SSETransport:
    """The transport of `SSEConsumer`: it reads the streams and keeps their cursors."""

    kind = "sse"
    delivery: type[Delivery] | None = SSEEvent

    def __init__(self) -> None:
        self._subscriptions: list[StreamSubscription] = []
        self._receivers: list[StreamReceiver] = []
        self._stored_cursors: list[StoredCursor] = []
        self._workers: list[asyncio.Task[None]] = []
        self._loops: list[asyncio.Task[None]] = []
        self._saving: list[asyncio.Task[None]] = []

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """Return faults of combined options, and of options together with the settings."""
        options, class_ = _sse(declared.options), declared.consumer
        server = _server_faults(options, settings)
        faults = []
        if options.json is not None and options.verb == "GET":
            faults.append("json is the body of a request, and GET has none: set method to 'POST'")
        headers: Any = getattr(class_, "headers", None)
        if not inspect.iscoroutinefunction(inspect.unwrap(headers)):
            faults.append(
                "headers has to be an `async def headers(self)`; set constant headers in a "
                "connection of the settings"
            )
        faults += type_faults("events", class_.body_types(), declared.signature)
        set_by = options.origins.get("url") or options.origins.get("connection")
        at = describe_class(class_)
        return [f"{set_by or at}: {each}" for each in server] + [f"{at}: {each}" for each in faults]

    def warnings(self, declared: Declared) -> list[str]:
        """Return warnings about a stream that is opened once, and about types of no event."""
        class_, body = declared.consumer, declared.signature.body
        found = list(unused_types("events", class_.body_types(), body))
        options = _sse(declared.options)
        if not options.reopens and options.reopen is None and options.done is None:
            found.append(
                f"the stream is opened by {options.verb}, so it is not reopened after its end or"
                " its loss; set done to the data that ends it, such as '[DONE]', or reopen to True"
                " or False"
            )
        return [f"{describe_class(class_)}: {each}" for each in found]

    def runs_once(self, options: Options) -> bool:
        """Return True: a server sends all events to each process that reads the stream."""
        return True

    def source(self, options: Options) -> str:
        """Return the routes, or the server if there is no route."""
        own = _sse(options)
        routes = ", ".join(filter(None, own.routes))
        if routes or own.url is None:
            return routes or f"connection {own.connection}"
        return SSESettings(url=own.url).display()

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """Return the server, without credentials."""
        return f"server {_server(_sse(options), settings)().display()}"

    def receives(self, declared: Declared, settings: WorkerSettings) -> Iterator[Operation]:
        """Describe the events of a consumer."""
        return stream_operations(declared, _server(_sse(declared.options), settings)())

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """Return the endpoint of one consumer."""
        options, signature = _sse(declared.options), declared.signature
        types = declared.consumer.body_types()
        signature.read = reader(signature.body, signature.whole, types)
        return Endpoint(
            consumer,
            options,
            signature,
            on_success=options.on_success,
            on_exception=options.on_exception,
            on_invalid=options.on_invalid,
            retry=options.retry,
        )

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Load the cursors and connect; failures are tried again without a limit.

        Raises:
            RunError: The provider `cursors` of the container is not a cursor store.
        """
        store = _store(context)
        return [self._subscribe(endpoint, store, context) for endpoint in endpoints]

    async def stop(self) -> None:
        """Stop reading; events that no handler has started will be sent again."""
        for receiver in self._receivers:
            receiver.stop()
        for subscription in self._subscriptions:
            subscription.stream.stopping()
        await cancel_and_wait(self._loops)
        for receiver in self._receivers:
            receiver.drop()

    def skip_waits(self) -> None:
        """Handle partly filled batches, and end pauses before other attempts: for tests."""
        for receiver in self._receivers:
            receiver.skip_waits()

    def pending(self) -> list[str]:
        """Return texts on events that are not settled, and on streams that are being reopened."""
        return [
            f"{each.unsettled} events of {each.name} are not settled"
            for each in self._receivers
            if each.unsettled
        ] + [
            f"stream {each.stream.route!r} is not open: {each.stream.reason}"
            for each in self._subscriptions
            if each.stream.reason and not each.stream.refusals and not each.stream.over
        ]

    async def drain(self) -> None:
        """Wait until no handler runs."""
        await asyncio.gather(*(each.workers.quiet() for each in self._receivers))

    async def cancel(self) -> None:
        """Cancel the handlers that still run, and wait for them."""
        await cancel_and_wait(self._workers)

    def busy(self) -> list[str]:
        """Return the consumers whose handlers still run."""
        return list(dict.fromkeys(each.name for each in self._receivers if each.workers.busy))

    async def close(self) -> None:
        """Save the cursors."""
        if not self.busy():
            await cancel_and_wait(self._workers)
        await asyncio.gather(*(each.close() for each in self._subscriptions))
        await asyncio.gather(*(each.close() for each in self._stored_cursors))
        await cancel_and_wait(self._saving)

    def _subscribe(self, endpoint: Endpoint, store: CursorStore, context: Context) -> Health:
        options = _sse(endpoint.options)
        name, keep = options.name, context.keep
        # With one stream, the number of workers is the limit.
        slots = asyncio.Semaphore(options.concurrency) if len(options.routes) > 1 else None
        streams: list[Part] = []
        subscriptions: list[StreamSubscription] = []
        receivers: list[StreamReceiver] = []
        for route in options.routes:
            stream = StreamHealth(context.changed, source=route or name, route=route)
            stored_cursor = StoredCursor(store, name, route, stream.set_cursor_stored)
            receiver = StreamReceiver(
                endpoint, options, route, context.observers, stored_cursor, slots
            )
            stream.cursor = receiver.cursor
            server = _server(options, context.settings)
            subscription = StreamSubscription(
                endpoint,
                options,
                server,
                receiver,
                stored_cursor,
                stream,
                context.observers,
                context.tracing,
            )
            self._stored_cursors.append(stored_cursor)
            receivers.append(receiver)
            subscriptions.append(subscription)
            self._workers += [keep(work, task) for task, work in receiver.workers.tasks()]
            self._saving.append(
                keep(stored_cursor.run(), f"{name} cursor of {route or 'its server'}")
            )
            streams.append(stream)
        self._subscriptions += subscriptions
        self._receivers += receivers

        def read(subscription: StreamSubscription) -> asyncio.Task[None]:
            at = subscription.stream.route or "its server"
            self._loops = [each for each in self._loops if not each.done()]
            self._loops.append(keep(subscription.run(), f"{name} of {at}"))
            return self._loops[-1]

        def work(coroutine: Coroutine[Any, Any, None], task: str) -> None:
            self._workers = [each for each in self._workers if not each.done()]
            self._workers.append(keep(coroutine, task))

        control = SSEControl(options, subscriptions, receivers, read, work)
        return Health(name, streams, in_flight=partial(_working, receivers), control=control)


def _working(receivers: Sequence[StreamReceiver]) -> int:
    return sum(each.workers.working for each in receivers)


def _server_faults(options: SSEOptions, settings: WorkerSettings) -> list[str]:
    named = options.sources.get("connection") is not Source.DEFAULT
    if options.url is not None:
        url = URL(options.url.get_secret_value())
        if named:
            return ["set either url or connection; found both"]
        if url.user is not None or url.password is not None:
            return ["url has a user or a password: those belong to a connection of the settings"]
        return []
    if options.connection.casefold() in settings.sse:
        return []
    known = f", only {', '.join(sorted(settings.sse))}" if settings.sse else ""
    missing = f"the settings have no SSE connection {options.connection!r}{known}"
    missing += f"; write its address into {_variable(settings, 'sse', options.connection, 'url')}"
    return [missing if named else f"set url, or connection to one of the settings: {missing}"]


def _server(options: SSEOptions, settings: WorkerSettings) -> Callable[[], SSESettings]:
    """Return a function that reads the current settings of the server."""
    if options.url is not None:
        fixed = SSESettings(url=options.url)
        return lambda: fixed
    return partial(settings.stream_server, options.connection.casefold())


def _variable(settings: WorkerSettings, *path: str) -> str:
    """Return the environment variable of a setting."""
    return (settings.model_config.get("env_prefix", "") + "__".join(path)).upper()


def _prepare(directory: Path, settings: WorkerSettings) -> None:
    """Create the directory of the cursors if it is missing, and check that it is writable.

    Raises:
        RunError: It is not writable. Without this check the streams would wait without an end.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise RunError(
            f"{_variable(settings, 'cursors')} is {str(directory)!r}: {error.strerror}; "
            "set it to a writable directory"
        ) from error


def _store(context: Context) -> CursorStore:
    store, directory = context.cursors, context.settings.cursors
    if isinstance(store, MemoryCursors) and directory is not None:
        _prepare(directory, context.settings)
        settings = context.settings
        return FileCursors(
            directory,
            fsync=settings.cursors_fsync,
            set_aside=settings.cursors_corrupt == "set-aside",
        )
    if not isinstance(store, CursorStore):
        raise RunError(
            f"provider 'cursors' returned a {type(store).__name__}: it needs load and save"
        )
    for call in (store.load, store.save):
        if not inspect.iscoroutinefunction(inspect.unwrap(call)):
            name = f"{type(store).__name__}.{call.__name__}"
            raise RunError(f"provider 'cursors': {name} has to be an `async def`")
    return store


def _sse(options: object) -> SSEOptions:
    assert isinstance(options, SSEOptions)
    return options
