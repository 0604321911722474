"""RabbitMQ as a transport: one connection per virtual host, one subscription per consumer."""

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from workerkit.amqp import described
from workerkit.amqp.answers import Answers, refuse_expired
from workerkit.amqp.connection import Connection
from workerkit.amqp.consumer import AMQPOptions, DeclareMode
from workerkit.amqp.control import AMQPControl
from workerkit.amqp.copies import CopyPublisher
from workerkit.amqp.declared_queues import DeclaredQueues
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.message_types import type_reader
from workerkit.amqp.needs import reported_queues, with_default_types
from workerkit.amqp.option_faults import option_faults, option_warnings
from workerkit.amqp.preparation import START_DEADLINE, Preparation
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.queue_types import QueueTypes
from workerkit.amqp.receiver import Receiver
from workerkit.amqp.redelivery import Handled, Place, Redelivery
from workerkit.amqp.settlement import AMQPSettlement
from workerkit.amqp.side_effects import side_effects
from workerkit.amqp.subscription import Subscription
from workerkit.amqp.topology import Topology
from workerkit.amqp.traced_copies import copy_publisher
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Delivery
from workerkit.endpoint import Endpoint
from workerkit.health import Health, Part
from workerkit.options import Options
from workerkit.tasks import cancel, cancel_and_wait
from workerkit.transport import Context, Declared, Hook, ReadQueue, running_handlers

log = logging.getLogger(__name__)

_LONGEST_NAME = 255
_CANCEL_DEADLINE = 3.0
# A message that is not copied by then is requeued when its channel closes, which counts as a
# delivery. With the close of the connections this is shorter than the time that a process has.
_COPY_DEADLINE = 0.5


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The objects of one consumer that exist before it starts.

    Attributes:
        options: Its options; its queues have the default type of the settings.
        place: Its connection and virtual host.
    """

    options: AMQPOptions
    place: Place
    preparation: Preparation
    topology: Topology
    copies: CopyPublisher
    types: QueueTypes


class AMQPTransport:
    """Delivers messages to every `AMQPConsumer`, and settles them."""

    kind = "amqp"
    delivery: type[Delivery] | None = AMQPMessage
    receives = staticmethod(described.receives)
    sends = staticmethod(described.sends)
    publish_faults = staticmethod(described.publish_faults)

    def __init__(self) -> None:
        self._connections: dict[tuple[str, str], Connection] = {}
        self._preparations: dict[tuple[str, str], Preparation] = {}
        self._prepared: dict[str, _Prepared] = {}
        self._subscriptions: list[Subscription] = []
        # The return types of the consumers that may reply, by name.
        self._returns: dict[str, Any] = {}
        self._hooks: list[Hook] = []
        self._receivers: list[Receiver] = []
        self._workers: list[asyncio.Task[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._connection_tasks: list[asyncio.Task[None]] = []
        self._publisher: Publisher | None = None
        self._container_publisher: Any = None
        self._handled = Handled()
        self._copies: dict[tuple[Place, DeclareMode], CopyPublisher] = {}
        self._declared = DeclaredQueues()

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """Return the errors that depend on the settings or on RabbitMQ's limits."""
        options = _amqp_options(declared.options)
        errors = option_faults(declared, options, settings)
        return [*errors, *self._declared.contradictions(declared.consumer, options, settings)]

    def warnings(self, declared: Declared) -> list[str]:
        """Return what is allowed in `types` and `replies` but probably not intended."""
        return option_warnings(declared, _amqp_options(declared.options))

    def source(self, options: Options) -> str:
        """Return the names of the queues."""
        return ", ".join(queue.name for queue in _amqp_options(options).queues)

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """Return the address of the broker, and the virtual host."""
        own = _amqp_options(options)
        return settings.amqp[own.connection.casefold()].display(own.vhost)

    def read_queues(self, options: Options, settings: WorkerSettings) -> list[ReadQueue]:
        """Return the queues of a consumer, for the console."""
        own, found = _amqp_options(options), self._prepared.get(options.name)
        return reported_queues(own, settings, found.topology.name if found else str)

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """Return the endpoint of one consumer."""
        options, signature = _amqp_options(declared.options), declared.signature
        if options.types is not None:
            signature.read = type_reader(options, signature.reader)
        self._note_replies(declared)
        endpoint = Endpoint(
            consumer,
            options,
            signature,
            on_success=options.on_success,
            on_exception=options.on_exception,
            on_invalid=options.on_invalid,
            retry=options.retry,
        )
        if options.name in self._returns:
            refuse_expired(endpoint)
        return endpoint

    async def prepare(self, declared: Sequence[Declared], context: Context) -> None:
        """Connect, and declare the queues of all consumers.

        Return once each queue was tried, or a broker cannot be reached, or after five seconds.
        Publishes with the container's publisher wait within their own deadline until each queue of
        their connection was tried.
        """
        self._open([_amqp_options(each.options) for each in declared], context)
        waiting = (each.wait_for_start() for each in self._preparations.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(START_DEADLINE):
                await asyncio.gather(*waiting)

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Start to consume. Failures are retried for ever."""
        all_options = [_amqp_options(each.options) for each in endpoints]
        if missing := [each for each in all_options if each.name not in self._prepared]:
            self._open(missing, context)
        health = [self._subscribe(endpoint, context) for endpoint in endpoints]
        for preparation in self._preparations.values():
            preparation.start_finished()
        return health

    def _open(self, all_options: Sequence[AMQPOptions], context: Context) -> None:
        """Open the connections, and start to declare the queues."""
        if isinstance(context.publisher, Publisher) and context.publisher.connects:
            publisher = context.publisher
        else:
            publisher = self._publisher = Publisher()
            publisher.open(context.settings)
            publisher.observers = context.observers
        opened = set(self._connections)
        for options in all_options:
            self._prepared[options.name] = self._prepare(options, context, publisher)
        for key in [key for key in self._connections if key not in opened]:
            connection, preparation = self._connections[key], self._preparations[key]
            publisher.wait_for(key, preparation)
            self._connection_tasks.append(
                context.keep(connection.run(), f"connection to {connection}")
            )
            self._tasks.append(context.keep(preparation.run(), f"queues of {connection}"))

    def _note_replies(self, declared: Declared) -> None:
        """Note whether a consumer may reply, and what."""
        options, signature = _amqp_options(declared.options), declared.signature
        if signature.answers and options.replies != "off":
            self._returns[options.name] = signature.returns

    @property
    def first_connection(self) -> Connection | None:
        """The connection of the settings' default, or another one; None without consumers."""
        default = [each for (name, _), each in self._connections.items() if name == "default"]
        return next(iter([*default, *self._connections.values()]), None)

    async def stop(self) -> None:
        """Stop consuming, and requeue the messages that no handler has started with."""
        for receiver in self._receivers:
            receiver.stop()
        for preparation in self._preparations.values():
            preparation.stop()
        for connection, task in zip(
            self._connections.values(), self._connection_tasks, strict=False
        ):
            connection.stop()
            if not connection.connected:
                cancel(task)
        try:
            await cancel_and_wait(self._tasks)
            await self._cancel_consumers()
        finally:
            for receiver in self._receivers:
                receiver.requeue_waiting()

    async def _cancel_consumers(self) -> None:
        """Cancel the consumers. The close of the connection cancels those that take too long."""
        stops = [asyncio.ensure_future(each.stop()) for each in self._subscriptions]
        if not stops:
            return
        done, late = await asyncio.wait(stops, timeout=_CANCEL_DEADLINE)
        if late:
            log.warning("consumers not cancelled in time", extra={"consumers": len(late)})
            for each in late:
                each.cancel()
            await asyncio.wait(late)
        for each in done:
            each.result()

    async def open_publisher(self, context: Context) -> None:
        """Open the container's publisher, which connects when it is first used."""
        publisher: Any = context.publisher
        self._container_publisher = publisher
        publisher.open(context.settings)
        if isinstance(publisher, Publisher):
            publisher.observers, publisher.tracing = context.observers, context.tracing
            publisher.codecs = context.codecs

    def blocked(self) -> list[str]:
        """Return the connections whose broker blocks publishers, out of memory or disk."""
        publisher = self._container_publisher
        return publisher.blocked() if isinstance(publisher, Publisher) else []

    async def close_publisher(self) -> None:
        """Close the connections of the container's publisher."""
        if self._container_publisher is not None:
            await self._container_publisher.close()

    def pending(self) -> list[str]:
        """Return which handlers run; the broker shows what else is not settled."""
        return running_handlers(self.busy())

    def skip_waits(self) -> None:
        """Handle partly filled batches, and requeue what waits to be requeued: for tests."""
        for receiver in self._receivers:
            receiver.skip_waits()

    def endless(self, options: Options) -> str:
        """Return why a consumer has no end: a stream keeps its messages."""
        streams = [each.name for each in _amqp_options(options).queues if each.is_stream]
        return f"queue {streams[0]!r} is a stream" if streams else ""

    async def remaining(self) -> list[str]:
        """Return which messages are received and not settled, else what the queues have."""
        if found := [f"messages of {each.name}" for each in self._receivers if each.in_progress]:
            return found
        texts = await asyncio.gather(*(each.remaining() for each in self._subscriptions))
        return [text for text in texts if text]

    def failures(self) -> list[str]:
        """Return how many messages of each queue failed and were not dead-lettered."""
        return [text for each in self._subscriptions if (text := each.failure())]

    async def drain(self) -> None:
        """Wait until no handler is running and all messages to requeue were requeued."""
        await asyncio.gather(*(each.workers.quiet() for each in self._receivers))
        await self._wait_for_requeues()

    async def cancel(self) -> None:
        """Cancel the running handlers, and wait for them and for the requeue of their messages."""
        await cancel_and_wait(self._workers)
        for receiver in self._receivers:
            receiver.requeue_running()
        await self._wait_for_requeues()

    def busy(self) -> list[str]:
        """Return the names of the consumers with running handlers."""
        return [each.name for each in self._receivers if each.workers.busy]

    async def close(self) -> None:
        """Close channels and connections."""
        if self.busy():
            for connection in self._connections.values():
                connection.abort("handlers did not end")
        else:
            await cancel_and_wait(self._workers)
            for receiver in self._receivers:
                receiver.requeue_running()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wait_for_requeues(), _COPY_DEADLINE)
        await asyncio.gather(*(each.close() for each in self._hooks))
        for subscription in self._subscriptions:
            subscription.close()
        await cancel_and_wait(self._connection_tasks)
        if self._publisher is not None:
            await self._publisher.close()

    async def _wait_for_requeues(self) -> None:
        await asyncio.gather(*(each.wait_for_requeues() for each in self._receivers))

    def _prepare(self, options: AMQPOptions, context: Context, publisher: Publisher) -> _Prepared:
        name = options.connection.casefold()
        settings = context.settings.amqp[name]
        as_written = options.queues
        options = with_default_types(options, settings)
        options = dataclasses.replace(options, evidence=options.evidence or settings.evidence)
        key = (name, settings.vhost_name(options.vhost))
        if key not in self._connections:
            read = partial(context.settings.connection, name)
            connection = Connection(name, read, options.vhost, "consumers", context.observers)
            self._connections[key] = connection
            self._preparations[key] = Preparation(connection, len(settings.servers))
        for text, fields in side_effects(options, context.settings.consumer_timeout):
            log.warning(text, extra={"consumer": options.name, **fields})
        declare = options.declare or settings.declare
        copies = self._copies.setdefault(
            (key, declare),
            copy_publisher(publisher, name, options.vhost, declare, context.tracing),
        )
        types = QueueTypes()
        replies = self._returns.get(options.name, Any) is not Any
        topology = Topology(options, as_written, declare, copies, types, replies=replies)
        self._preparations[key].add(topology, options.queues)
        return _Prepared(options, key, self._preparations[key], topology, copies, types)

    def _subscribe(self, endpoint: Endpoint, context: Context) -> Health:
        prepared = self._prepared[endpoint.name]
        options, preparation, key = prepared.options, prepared.preparation, prepared.place
        self._hooks.append(Hook(endpoint))
        preparation.add_listener(self._hooks[-1])
        types, consumer_timeout = prepared.types, context.settings.consumer_timeout
        answers = None
        if (returns := self._returns.get(options.name)) is not None:
            always = returns is not Any
            answers = Answers(options, prepared.copies, context.codecs, always=always)
        settlement = AMQPSettlement(options, prepared.copies, types, context.redact, answers)
        redelivery = Redelivery(options, types, self._handled, key, consumer_timeout)
        receiver = Receiver(endpoint, options, context.observers, settlement, redelivery, answers)
        self._receivers.append(receiver)
        if context.burst:
            receiver.keep_failed()
        self._workers += [context.keep(work, name) for name, work in receiver.workers.tasks()]
        parts = [Part(context.changed) for _ in options.queues]
        settlement.parts = dict(zip((queue.name for queue in options.queues), parts, strict=True))
        subscriptions = []
        for queue, part in zip(options.queues, parts, strict=True):
            subscription = Subscription(
                queue,
                options.prefetch_count,
                options.paused,
                self._connections[key],
                preparation,
                receiver,
                prepared.topology,
                part,
            )
            subscriptions.append(subscription)
            self._tasks.append(context.keep(subscription.run(), f"{options.name} of {queue}"))
        self._subscriptions += subscriptions

        def work(coroutine: Coroutine[Any, Any, None], name: str) -> None:
            self._workers = [each for each in self._workers if not each.done()]
            self._workers.append(context.keep(coroutine, name))

        control = AMQPControl(options, receiver, subscriptions, work)
        return Health(
            options.name, parts, in_flight=lambda: receiver.workers.working, control=control
        )


def _amqp_options(options: object) -> AMQPOptions:
    assert isinstance(options, AMQPOptions)
    return options
