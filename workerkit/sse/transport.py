"""Event streams as a transport: one subscription and one receiver for each stream of a consumer."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from yarl import URL

from workerkit.config.connections import SSESettings
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Delivery
from workerkit.describe import describe_class
from workerkit.endpoint import Endpoint
from workerkit.errors import RunError
from workerkit.health import Health, Part
from workerkit.options import Options, Source
from workerkit.sse.bookmark import Bookmark
from workerkit.sse.consumer import SSEOptions
from workerkit.sse.cursor import CursorStore, FileCursors, MemoryCursors
from workerkit.sse.event import SSEEvent
from workerkit.sse.event_types import misfits, reader, types_of
from workerkit.sse.receiver import Receiver
from workerkit.sse.subscription import Stream, Subscription
from workerkit.tasks import cancel_and_wait
from workerkit.transport import Context, Declared
from workerkit.workers import Workers


class SSETransport:
    """Feeds every `SSEConsumer` and keeps the cursors of their streams."""

    kind = "sse"
    delivery: type[Delivery] | None = SSEEvent

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self._receivers: list[Receiver] = []
        self._bookmarks: list[Bookmark] = []
        self._workers: list[asyncio.Task[None]] = []
        self._loops: list[asyncio.Task[None]] = []
        self._saving: list[asyncio.Task[None]] = []

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """Faults that only the settings show, or the options together."""
        options, class_ = _sse(declared.options), declared.consumer
        server = _server_faults(options, settings)
        faults = []
        if options.json is not None and options.verb == "GET":
            faults.append("json is the body of a request, and GET has none: set method to 'POST'")
        headers: Any = getattr(class_, "headers", None)
        if not inspect.iscoroutinefunction(inspect.unwrap(headers)):
            faults.append(
                "headers is no `async def headers(self)`; headers that do not change belong to a "
                "connection of the settings"
            )
        faults += misfits(declared.signature.body, types_of(getattr(class_, "events", None)))
        said_by = options.origins.get("url") or options.origins.get("connection")
        at = describe_class(class_)
        return [f"{said_by or at}: {each}" for each in server] + [
            f"{at}: {each}" for each in faults
        ]

    def warnings(self, declared: Declared) -> list[str]:
        """A stream that is opened once, where the class may not know it."""
        options = _sse(declared.options)
        if options.reopens or options.reopen is not None or options.done is not None:
            return []
        text = (
            f"{describe_class(declared.consumer)}: the stream is opened by {options.verb}, so it is"
            " not opened again once it has ended or is lost; set done to the data that ends it,"
            " such as '[DONE]', or reopen to True or False"
        )
        return [text]

    def source(self, options: Options) -> str:
        """The routes, or the server where it has only one stream."""
        own = _sse(options)
        routes = ", ".join(filter(None, own.routes))
        if routes or own.url is None:
            return routes or f"connection {own.connection}"
        return SSESettings(url=own.url).display()

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """The server, without credentials."""
        return f"server {_server(_sse(options), settings)().display()}"

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """The endpoint of one consumer."""
        options, signature = _sse(declared.options), declared.signature
        types = types_of(getattr(declared.consumer, "events", None))
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
        """Load the cursors and connect; what goes wrong is tried again for ever.

        Raises:
            RunError: What the container has for `cursors` is no store.
        """
        store = _store(context)
        return [self._subscribe(endpoint, store, context) for endpoint in endpoints]

    async def stop(self) -> None:
        """Read nothing more; what no handler has begun with comes again."""
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
            receiver.hasten()

    def pending(self) -> list[str]:
        """What is not settled, and which streams are being opened again, for people."""
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
        """Return once no handler runs."""
        await asyncio.gather(*(each.workers.quiet() for each in self._receivers))

    async def cancel(self) -> None:
        """Cancel the handlers that still run, and wait for them."""
        await cancel_and_wait(self._workers)

    def busy(self) -> list[str]:
        """Consumers with handlers that still run."""
        return list(dict.fromkeys(each.name for each in self._receivers if each.workers.busy))

    async def close(self) -> None:
        """Save the cursors."""
        if not self.busy():
            await cancel_and_wait(self._workers)
        await asyncio.gather(*(each.close() for each in self._subscriptions))
        await asyncio.gather(*(each.close() for each in self._bookmarks))
        await cancel_and_wait(self._saving)

    def _subscribe(self, endpoint: Endpoint, store: CursorStore, context: Context) -> Health:
        options = _sse(endpoint.options)
        name, keep = options.name, context.keep
        # Of one stream the number of its workers is limit enough.
        slots = asyncio.Semaphore(options.concurrency) if len(options.routes) > 1 else None
        streams: list[Part] = []
        workers: list[Workers] = []
        for route in options.routes:
            stream = Stream(context.changed, source=route or name, route=route)
            bookmark = Bookmark(store, name, route, stream.cursor_reached)
            receiver = Receiver(endpoint, options, route, context.observers, bookmark, slots)
            stream.cursor = receiver.cursor
            server = _server(options, context.settings)
            subscription = Subscription(
                endpoint, options, server, receiver, bookmark, stream, context.observers
            )
            self._bookmarks.append(bookmark)
            self._receivers.append(receiver)
            workers.append(receiver.workers)
            self._subscriptions.append(subscription)
            self._workers += [keep(work, task) for task, work in receiver.workers.tasks()]
            self._loops.append(keep(subscription.run(), f"{name} of {route or 'its server'}"))
            self._saving.append(keep(bookmark.run(), f"{name} cursor of {route or 'its server'}"))
            streams.append(stream)
        return Health(name, streams, in_flight=lambda: sum(each.working for each in workers))


def _server_faults(options: SSEOptions, settings: WorkerSettings) -> list[str]:
    named = options.sources.get("connection") is not Source.FRAMEWORK
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
    """What is known of the server, asked anew each time."""
    if options.url is not None:
        fixed = SSESettings(url=options.url)
        return lambda: fixed
    return partial(settings.stream_server, options.connection.casefold())


def _variable(settings: WorkerSettings, *path: str) -> str:
    """The variable of the environment that sets what stands there in the settings."""
    return (settings.model_config.get("env_prefix", "") + "__".join(path)).upper()


def _prepare(directory: Path, settings: WorkerSettings) -> None:
    """Make the directory of the cursors, where it is not there, and see that it can be written to.

    Raises:
        RunError: It cannot; to try that again for ever would keep the streams waiting.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise RunError(
            f"{_variable(settings, 'cursors')} is {str(directory)!r}: {error.strerror}; "
            "write a directory that can be written to"
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
        raise RunError(f"provider 'cursors' gave a {type(store).__name__}: it needs load and save")
    for call in (store.load, store.save):
        if not inspect.iscoroutinefunction(inspect.unwrap(call)):
            name = f"{type(store).__name__}.{call.__name__}"
            raise RunError(f"provider 'cursors': {name} has to be an `async def`")
    return store


def _sse(options: object) -> SSEOptions:
    assert isinstance(options, SSEOptions)
    return options
