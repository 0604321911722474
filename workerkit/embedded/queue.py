"""A queue: what waits, who consumes, and what becomes of messages that cannot stay."""

from collections.abc import Callable, Iterable
from typing import Protocol

from workerkit.embedded.arguments import QueueArguments
from workerkit.embedded.clock import Clock, Timer
from workerkit.embedded.counting import Settlement
from workerkit.embedded.errors import label
from workerkit.embedded.memory import Memory
from workerkit.embedded.message import Message
from workerkit.embedded.methods import short
from workerkit.embedded.order import Backlog, Turns
from workerkit.embedded.properties import FLAGS

_EXPIRATION, _PRIORITY = FLAGS["expiration"], FLAGS["priority"]
_QUALIFIED = _EXPIRATION | _PRIORITY


class Outlet(Protocol):
    """Where deliveries leave: a channel."""

    def has_room(self) -> bool:
        """Whether one more delivery may go out now."""

    def deliver(self, consumer: "Consumer", copy: "Copy") -> None:
        """Send a message to a consumer."""

    def queue_deleted(self, consumer: "Consumer") -> None:
        """The queue of a consumer is gone, and with it the consumer."""


class Consumer:
    """A subscription to a queue.

    Attributes:
        acknowledges: It has to settle what it gets.
        prefetch: Unsettled messages that it may have; 0 is any number.
        prefix: How each of its deliveries begins: the method's number and the tag.
    """

    __slots__ = (
        "acknowledges",
        "exclusive",
        "outlet",
        "prefetch",
        "prefix",
        "priority",
        "queue",
        "tag",
        "unacked",
    )

    def __init__(
        self,
        outlet: Outlet,
        queue: "Queue",
        tag: str,
        *,
        acknowledges: bool,
        exclusive: bool,
        prefetch: int,
        priority: int,
    ) -> None:
        self.outlet = outlet
        self.queue = queue
        self.tag = tag
        self.acknowledges = acknowledges
        self.exclusive = exclusive
        self.prefetch = prefetch
        self.priority = priority
        self.unacked = 0
        self.prefix = b"\x00\x3c\x00\x3c" + short(tag)

    def ready(self) -> bool:
        """Whether it takes one more message now."""
        full = self.prefetch and self.unacked >= self.prefetch
        return not full and self.outlet.has_room()


class Copy:
    """One message in one queue.

    Attributes:
        position: Its place; it keeps it when it comes back.
        expires: The clock's time, or None.
        acquired, returns, lost: How often it was requeued; see `counting`.
        consumer: Who has it, if a consumer has.
    """

    __slots__ = (
        "acquired",
        "consumer",
        "expires",
        "lost",
        "message",
        "position",
        "priority",
        "queue",
        "redelivered",
        "returns",
    )

    def __init__(self, message: Message, queue: "Queue", position: int) -> None:
        self.message = message
        self.queue = queue
        self.position = position
        self.priority = 0
        self.expires: float | None = None
        self.redelivered = False
        self.acquired = 0
        self.returns = 0
        self.lost = 0
        self.consumer: Consumer | None = None


class Queue:
    """A classic or a quorum queue.

    Between calls it holds that either nothing waits or no consumer is ready. Whatever makes a
    consumer ready again has to call `pump`.

    Args:
        owner: The connection that it is exclusive to.
        bury: Called with a copy and the reason when a message has to be dead-lettered.
        unused: Called when the queue should be deleted, as nobody uses it.

    Attributes:
        unacked: Messages that were delivered and are not settled.
        deleted: It is gone; what comes back to it is dropped.
    """

    def __init__(
        self,
        name: str,
        vhost: str,
        arguments: QueueArguments,
        clock: Clock,
        memory: Memory,
        *,
        durable: bool,
        auto_delete: bool,
        owner: object | None,
        bury: Callable[[Copy, str], None],
        unused: Callable[["Queue"], None],
    ) -> None:
        self.name = name
        self.label = label("queue", name, vhost)
        self.arguments = arguments
        self.behaviour = arguments.behaviour
        self.durable = durable
        self.auto_delete = auto_delete
        self.owner = owner
        self.waiting: Backlog[Copy] = arguments.backlog()
        self.waiting_bytes = 0
        self.unacked = 0
        self.consumers: Turns[Consumer] = Turns(single_active=arguments.single_active_consumer)
        self.deleted = False
        self._clock = clock
        self._memory = memory
        self._bury = bury
        self._unused = unused
        self._position = 0
        self._bounded = arguments.max_length is not None or arguments.max_bytes is not None
        self._timed = False  # Some message had an end to its time.
        self._expiry: Timer | None = None
        self._idle: Timer | None = None
        self.touch()

    # Messages

    def publish(self, message: Message) -> bool:
        """Take a message; False where the queue is full and refuses."""
        if self._bounded and self._refuses(message):
            return False
        self._position += 1
        copy = Copy(message, self, self._position)
        if message.deliveries:
            quorum = self.arguments.quorum
            copy.redelivered = self.behaviour.counting.redelivered(message, quorum=quorum)
        self._memory.hold(message.size)
        if self.arguments.ttl is not None or message.flags & _QUALIFIED:
            self._qualify(copy)
        if not len(self.waiting) and (consumer := self.consumers.next()):
            self._hand(consumer, copy)
            return True
        self.waiting.add(copy)
        self.waiting_bytes += len(message.body)
        self._trim()
        self._watch()
        return True

    def get(self) -> Copy | None:
        """Take the next message, if there is one, for basic.get."""
        self.touch()
        self.drop_expired()
        if not len(self.waiting):
            return None
        copy = self._pop()
        copy.consumer = None
        self._watch()
        return copy

    def requeue(self, copies: Iterable[Copy], settlement: Settlement) -> None:
        """Requeue messages that were delivered."""
        limit, counting = self.arguments.delivery_limit, self.behaviour.counting
        for copy in copies:
            if self.deleted:
                self.forget(copy)
                continue
            copy.redelivered = True
            copy.consumer = None
            counting.count(copy, settlement)
            if limit is not None and counting.total(copy) > limit:
                self._die(copy, "delivery_limit")
                continue
            self.waiting.restore(copy)
            self.waiting_bytes += len(copy.message.body)
        if not self.deleted:
            self._trim()
            self.pump()

    def reject(self, copy: Copy) -> None:
        """Dead-letter or drop a message that was delivered."""
        if self.deleted:
            self.forget(copy)
        else:
            self._die(copy, "rejected")

    def forget(self, copy: Copy) -> None:
        """A message is done with."""
        self._memory.release(copy.message.size)

    def purge(self) -> int:
        """Drop what waits; how many that were."""
        count = len(self.waiting)
        for copy in self.waiting:
            self.forget(copy)
        self.waiting.clear()
        self.waiting_bytes = 0
        return count

    def drop_expired(self) -> None:
        """Dead-letter or drop what has waited too long; only the head counts, as in RabbitMQ."""
        while self._timed and len(self.waiting):
            expires = self.waiting.head().expires
            if expires is None or expires > self._clock.now():
                break
            self._die(self._pop(), "expired")

    def pump(self) -> None:
        """Deliver what waits to consumers that are ready."""
        self.consumers.rejoin()
        self.drop_expired()
        while len(self.waiting) and (consumer := self.consumers.next()):
            self._hand(consumer, self._pop())
            self.drop_expired()
        self._watch()

    # Consumers

    def subscribe(self, consumer: Consumer) -> None:
        """Add a consumer; the caller pumps when its client knows of it."""
        self.consumers.add(consumer)
        self.touch()

    def unsubscribe(self, consumer: Consumer) -> None:
        """Remove a consumer. What it has stays its own; the last one takes along the queue."""
        if consumer not in self.consumers:
            return
        self.consumers.remove(consumer)
        self.touch()
        if self.auto_delete and not self.consumers:
            self._unused(self)
        else:
            self.pump()

    @property
    def in_exclusive_use(self) -> bool:
        """Whether its consumer wants no other."""
        return any(consumer.exclusive for consumer in self.consumers)

    # Life

    def touch(self) -> None:
        """Count the time without use from now, where that matters; consumers are use."""
        if self.arguments.expires is None:
            return
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if not self.consumers and not self.deleted:
            self._idle = self._clock.after(self.arguments.expires, self._on_idle)

    def delete(self) -> None:
        """Drop everything and let consumers know."""
        self.deleted = True
        for timer in (self._idle, self._expiry):
            if timer is not None:
                timer.cancel()
        for consumer in self.consumers.clear():
            consumer.outlet.queue_deleted(consumer)
        self.purge()

    # Within

    def _hand(self, consumer: Consumer, copy: Copy) -> None:
        if consumer.acknowledges:
            copy.consumer = consumer
            consumer.unacked += 1
            self.unacked += 1
        else:
            self._memory.release(copy.message.size)
        consumer.outlet.deliver(consumer, copy)

    def _pop(self) -> Copy:
        copy = self.waiting.pop()
        self.waiting_bytes -= len(copy.message.body)
        return copy

    def _qualify(self, copy: Copy) -> None:
        """Give a new copy its priority and the end of its time."""
        message, ttl = copy.message, self.arguments.ttl
        if message.flags & _EXPIRATION:
            own = int(message.read_properties().expiration or 0) / 1000
            ttl = own if ttl is None else min(ttl, own)
        if ttl is not None:
            copy.expires = self._clock.now() + ttl
            self._timed = True
        if self.arguments.max_priority and message.flags & _PRIORITY:
            priority = message.read_properties().priority or 0
            copy.priority = min(priority, self.arguments.max_priority)
        elif self.arguments.quorum and message.flags & _PRIORITY:
            copy.priority = self.behaviour.priority(message.read_properties().priority or 0)

    def _refuses(self, message: Message) -> bool:
        arguments = self.arguments
        if arguments.overflow == "drop-head" or not self._full(1, len(message.body)):
            return False
        if arguments.overflow == "reject-publish-dlx":
            self._bury(Copy(message, self, 0), "maxlen")
        return True

    def _full(self, more: int = 0, more_bytes: int = 0) -> bool:
        length, size = self.arguments.max_length, self.arguments.max_bytes
        return (length is not None and len(self.waiting) + more > length) or (
            size is not None and self.waiting_bytes + more_bytes > size
        )

    def _trim(self) -> None:
        """Drop what is too much."""
        if self._bounded and self.arguments.overflow == "drop-head":
            while len(self.waiting) and self._full():
                self._die(self._pop(), "maxlen")

    def _watch(self) -> None:
        """Wake when the head expires."""
        if not self._timed:
            return
        self.drop_expired()
        if len(self.waiting) and (expires := self.waiting.head().expires) is not None:
            self._wake_at(expires)

    def _wake_at(self, when: float) -> None:
        timer = self._expiry
        if timer is not None and not timer.cancelled:
            if timer.when <= when:
                return
            timer.cancel()
        self._expiry = self._clock.after(when - self._clock.now(), self._watch)

    def _on_idle(self) -> None:
        self._unused(self)

    def _die(self, copy: Copy, reason: str) -> None:
        self.forget(copy)
        self._bury(copy, reason)
