"""RabbitMQ as a transport: one connection per virtual host, one subscription per consumer."""

import asyncio
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from workerkit.amqp.connection import Link
from workerkit.amqp.consumer import AMQPOptions, Declare
from workerkit.amqp.copies import Moves
from workerkit.amqp.handled import Handled, Place
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.preparation import START_DEADLINE, Preparation
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX, Queue, retry_suffix
from workerkit.amqp.queue_types import QueueTypes
from workerkit.amqp.receiver import Receiver
from workerkit.amqp.redelivery import Overdue
from workerkit.amqp.settlement import Settling
from workerkit.amqp.subscription import Subscription
from workerkit.amqp.topology import Topology
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Delivery
from workerkit.describe import describe_class
from workerkit.endpoint import Endpoint
from workerkit.health import Health, Part
from workerkit.options import Options
from workerkit.tasks import cancel, cancel_and_wait
from workerkit.transport import Context, Declared, Hook

log = logging.getLogger(__name__)

_LONGEST_NAME = 255
_CANCEL_DEADLINE = 3.0
# A message that is not copied by then is requeued when its channel closes, and is counted.
_COPY_DEADLINE = 0.5  # With the close of a connection it is shorter than what a process has.
# The broker does not compare these: the offset, the bindings, and the limit of another declaration.
_DECLARED = [
    each.name
    for each in dataclasses.fields(Queue)
    if each.name not in ("stream_offset", "bindings", "expected_delivery_limit")
]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is known of one consumer before it starts.

    Attributes:
        options: With the type that the settings give to its queues.
        place: Its connection and virtual host.
    """

    options: AMQPOptions
    place: Place
    preparation: Preparation
    topology: Topology
    moves: Moves
    types: QueueTypes


class AMQPTransport:
    """Feeds every `AMQPConsumer` and settles what they handle."""

    kind = "amqp"
    delivery: type[Delivery] | None = AMQPMessage

    def __init__(self) -> None:
        self._links: dict[tuple[str, str], Link] = {}
        self._preparations: dict[tuple[str, str], Preparation] = {}
        self._prepared: dict[str, _Prepared] = {}
        self._subscriptions: list[Subscription] = []
        self._hooks: list[Hook] = []
        self._receivers: list[Receiver] = []
        self._workers: list[asyncio.Task[None]] = []
        self._loops: list[asyncio.Task[None]] = []
        self._keeping: list[asyncio.Task[None]] = []
        self._publisher: Publisher | None = None
        self._container_publisher: Any = None
        self._handled = Handled()
        self._moves: dict[tuple[Place, Declare], Moves] = {}
        self._declared: dict[tuple[str, str, str], tuple[type[Consumer], Queue]] = {}

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """Faults that only the settings or RabbitMQ's limits show."""
        options = _amqp(declared.options)
        where = describe_class(declared.consumer)
        faults = []
        if options.connection.casefold() not in settings.amqp:
            known = ", ".join(sorted(settings.amqp))
            said_by = options.origins.get("connection", where)
            faults.append(
                f"{said_by}: the settings have no connection {options.connection!r}, only {known}"
            )
        names = [queue.name for queue in options.queues]
        faults += [
            f"{where}: queue {name!r} stands twice in queues"
            for name in names
            if names.count(name) > 1
        ][:1]
        faults += [
            f"{where}: the name of queue {queue.name!r} leaves no room for {suffix!r} behind it"
            for queue in options.queues
            for suffix in _suffixes(options)
            if len((queue.name + suffix).encode()) > _LONGEST_NAME
        ][:1]
        return [*faults, *self._contradictions(declared.consumer, options, settings)]

    def _contradictions(
        self, class_: type[Consumer], options: AMQPOptions, settings: WorkerSettings
    ) -> Iterator[str]:
        """Faults of queues that another consumer declares otherwise."""
        name = options.connection.casefold()
        connection = settings.amqp.get(name)
        if connection is None or (options.declare or connection.declare) == "never":
            return
        for queue in options.queues:
            key = (name, connection.vhost_name(options.vhost), queue.name)
            other, declared = self._declared.setdefault(key, (class_, queue))
            found = [
                f"{each} is {getattr(queue, each)!r} and {getattr(declared, each)!r}"
                for each in _DECLARED
                if getattr(queue, each) != getattr(declared, each)
            ]
            if other is not class_ and found:
                yield (
                    f"{describe_class(class_)} and {describe_class(other)} declare queue"
                    f" {queue.name!r} differently: {', '.join(found)}; write the same Queue in both"
                )

    def source(self, options: Options) -> str:
        """The names of the queues."""
        return ", ".join(queue.name for queue in _amqp(options).queues)

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """The broker's address and the virtual host."""
        own = _amqp(options)
        return settings.amqp[own.connection.casefold()].display(own.vhost)

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """The endpoint of one consumer."""
        options = _amqp(declared.options)
        return Endpoint(
            consumer,
            options,
            declared.signature,
            on_success=options.on_success,
            on_exception=options.on_exception,
            on_invalid=options.on_invalid,
            retry=options.retry,
        )

    async def prepare(self, declared: Sequence[Declared], context: Context) -> None:
        """Connect, and declare the queues of all consumers.

        Returns once each queue was tried, or a broker cannot be reached, or after five seconds.
        Publishes with the container's publisher wait until each queue of their connection was
        tried, within their own deadline.
        """
        self._open([_amqp(each.options) for each in declared], context)
        waiting = (each.may_start() for each in self._preparations.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(START_DEADLINE):
                await asyncio.gather(*waiting)

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Consume; what goes wrong is tried again for ever."""
        found = [_amqp(each.options) for each in endpoints]
        if missing := [each for each in found if each.name not in self._prepared]:
            self._open(missing, context)
        health = [self._subscribe(endpoint, context) for endpoint in endpoints]
        for preparation in self._preparations.values():
            preparation.started()
        return health

    def _open(self, all_options: Sequence[AMQPOptions], context: Context) -> None:
        """Open the connections, and begin to declare the queues."""
        if isinstance(context.publisher, Publisher) and context.publisher.connects:
            publisher = context.publisher
        else:
            publisher = self._publisher = Publisher()
            publisher.open(context.settings)
            publisher.observers = context.observers
        before = set(self._links)
        for options in all_options:
            self._prepared[options.name] = self._prepare(options, context, publisher)
        for key in [key for key in self._links if key not in before]:
            link, preparation = self._links[key], self._preparations[key]
            publisher.wait_for(key, preparation)
            self._keeping.append(context.keep(link.run(), f"link to {link}"))
            self._loops.append(context.keep(preparation.run(), f"queues of {link}"))

    async def stop(self) -> None:
        """Take nothing new; what no handler has begun with goes back."""
        for receiver in self._receivers:
            receiver.stop()
        for preparation in self._preparations.values():
            preparation.stop()
        for link, keeping in zip(self._links.values(), self._keeping, strict=False):
            link.stop()
            if not link.connected:
                cancel(keeping)
        try:
            await cancel_and_wait(self._loops)
            await self._cancel_consumers()
        finally:
            for receiver in self._receivers:
                receiver.put_back()

    async def _cancel_consumers(self) -> None:
        """Cancel the consumers; if that takes too long, the close of the connection does it."""
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
        publisher.observers = context.observers

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
        return [f"a handler of {name} runs" for name in self.busy()]

    def skip_waits(self) -> None:
        """Handle partly filled batches, and requeue what waits to be requeued: for tests."""
        for receiver in self._receivers:
            receiver.hasten()

    async def drain(self) -> None:
        """Wait until no handler runs, and all messages to requeue were requeued."""
        await asyncio.gather(*(each.workers.quiet() for each in self._receivers))
        await self._wait_for_requeues()

    async def cancel(self) -> None:
        """Cancel the handlers that still run, and wait for them and what they had begun with."""
        await cancel_and_wait(self._workers)
        for receiver in self._receivers:
            receiver.requeue_running()
        await self._wait_for_requeues()

    def busy(self) -> list[str]:
        """Consumers with handlers that still run."""
        return [each.name for each in self._receivers if each.workers.busy]

    async def close(self) -> None:
        """Close channels and connections."""
        if self.busy():
            for link in self._links.values():
                link.abort("handlers would not end")
        else:
            await cancel_and_wait(self._workers)
            for receiver in self._receivers:
                receiver.requeue_running()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wait_for_requeues(), _COPY_DEADLINE)
        await asyncio.gather(*(each.close() for each in self._hooks))
        for subscription in self._subscriptions:
            subscription.close()
        await cancel_and_wait(self._keeping)
        if self._publisher is not None:
            await self._publisher.close()

    async def _wait_for_requeues(self) -> None:
        await asyncio.gather(*(each.wait_for_requeues() for each in self._receivers))

    def _prepare(self, options: AMQPOptions, context: Context, publisher: Publisher) -> _Prepared:
        name = options.connection.casefold()
        settings = context.settings.amqp[name]
        written = options.queues
        typed = tuple(queue.of_type(settings.queue_type) for queue in written)
        evidence = options.evidence or settings.evidence
        options = dataclasses.replace(options, queues=typed, evidence=evidence)
        key = (name, settings.vhost_name(options.vhost))
        if key not in self._links:
            read = partial(context.settings.connection, name)
            link = Link(name, read, options.vhost, "consumers", context.observers)
            self._links[key] = link
            self._preparations[key] = Preparation(link, len(settings.servers))
        for text, fields in _warnings(options, context.settings.consumer_timeout):
            log.warning(text, extra={"consumer": options.name, **fields})
        declare = options.declare or settings.declare
        moves = self._moves.setdefault(
            (key, declare), Moves(publisher, name, options.vhost, declare)
        )
        types = QueueTypes()
        topology = Topology(options, written, declare, moves, types)
        self._preparations[key].add(topology, options.queues)
        return _Prepared(options, key, self._preparations[key], topology, moves, types)

    def _subscribe(self, endpoint: Endpoint, context: Context) -> Health:
        prepared = self._prepared[endpoint.name]
        options, preparation, key = prepared.options, prepared.preparation, prepared.place
        self._hooks.append(Hook(endpoint))
        preparation.follow(self._hooks[-1])
        settling = Settling(options, prepared.moves, prepared.types, context.redact)
        receiver = Receiver(
            endpoint,
            options,
            context.observers,
            settling,
            Overdue(options.name, context.settings.consumer_timeout),
            self._handled,
            key,
        )
        self._receivers.append(receiver)
        self._workers += [context.keep(work, name) for name, work in receiver.workers.tasks()]
        parts = [Part(context.changed) for _ in options.queues]
        settling.parts = dict(zip((queue.name for queue in options.queues), parts, strict=True))
        for queue, part in zip(options.queues, parts, strict=True):
            subscription = Subscription(
                queue,
                options.prefetch_count,
                self._links[key],
                preparation,
                receiver,
                prepared.topology,
                part,
            )
            self._subscriptions.append(subscription)
            self._loops.append(context.keep(subscription.run(), f"{options.name} of {queue}"))
        return Health(options.name, parts, in_flight=lambda: receiver.workers.working)


def _warnings(
    options: AMQPOptions, consumer_timeout: float
) -> Iterator[tuple[str, dict[str, object]]]:
    """What will do, but not as its author may think: a message for the log, and its fields."""
    if options.batch and options.full_batch < options.batch_size:
        yield (
            "batches are cut to the prefetch",
            {"batch_size": options.batch_size, "prefetch": options.full_batch},
        )
    tries = 1 if options.retry is None else options.retry.most_in_place
    if options.timeout is None or options.timeout * tries > consumer_timeout:
        yield (
            "timeout is longer than the broker waits for an acknowledgement",
            {
                "timeout": options.timeout,
                "tries_in_place": tries,
                "consumer_timeout": consumer_timeout,
            },
        )


def _suffixes(options: AMQPOptions) -> Iterator[str]:
    """What the names of the queues beside a consumer's own end in."""
    yield DEAD_LETTER_SUFFIX
    if options.retry is not None:
        yield from map(retry_suffix, options.retry.steps)


def _amqp(options: object) -> AMQPOptions:
    assert isinstance(options, AMQPOptions)
    return options
