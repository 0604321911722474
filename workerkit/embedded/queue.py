"""A queue: waiting messages, consumers, limits and expiry."""

from collections.abc import Callable, Iterable
from typing import Protocol

from workerkit.embedded.arguments import QueueArguments
from workerkit.embedded.clock import Clock, Timer
from workerkit.embedded.counting import Settlement
from workerkit.embedded.errors import label
from workerkit.embedded.memory import Memory
from workerkit.embedded.message import Message
from workerkit.embedded.methods import short
from workerkit.embedded.order import Backlog, RoundRobin
from workerkit.embedded.properties import FLAGS

_EXPIRATION, _PRIORITY = FLAGS["expiration"], FLAGS["priority"]
_EXPIRY_OR_PRIORITY = _EXPIRATION | _PRIORITY


class ConsumerChannel(Protocol):
    """The channel of a consumer as a queue uses it."""

    def has_room(self) -> bool:
        """Return whether the channel can send one more delivery now."""

    def deliver(self, consumer: "Consumer", copy: "Copy") -> None:
        """Send a message to a consumer."""

    def queue_deleted(self, consumer: "Consumer") -> None:
        """Cancel a consumer whose queue was deleted."""


class Consumer:
    """A subscription to a queue.

    Attributes:
        acknowledges: It has to settle its deliveries.
        prefetch: Maximum of unacknowledged messages; 0 is no limit.
        prefix: The start of each delivery: method number and consumer tag.
    """

    __slots__ = (
        "acknowledges",
        "channel",
        "exclusive",
        "prefetch",
        "prefix",
        "priority",
        "queue",
        "tag",
        "unacked",
    )

    def __init__(
        self,
        channel: ConsumerChannel,
        queue: "Queue",
        tag: str,
        *,
        acknowledges: bool,
        exclusive: bool,
        prefetch: int,
        priority: int,
    ) -> None:
        self.channel = channel
        self.queue = queue
        self.tag = tag
        self.acknowledges = acknowledges
        self.exclusive = exclusive
        self.prefetch = prefetch
        self.priority = priority
        self.unacked = 0
        self.prefix = b"\x00\x3c\x00\x3c" + short(tag)

    def ready(self) -> bool:
        """Return whether it can take one more message now."""
        full = self.prefetch and self.unacked >= self.prefetch
        return not full and self.channel.has_room()


class Copy:
    """One message in one queue.

    Attributes:
        position: Its position, also after it is requeued.
        expires: The time on the clock, or None.
        acquired, returns, lost: The numbers of requeues; see `counting`.
        consumer: The consumer that it was delivered to, if there is one.
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

    Between calls, either no message waits or no consumer is ready. Code that makes a consumer ready
    has to call `pump`.

    Args:
        owner: The session that it is exclusive to.
        dead_letter: Called with a copy and the reason when a message has to be dead-lettered.
        unused: Called when the queue should be deleted because it is unused.

    Attributes:
        unacked: The number of unacknowledged messages.
        deleted: The queue was deleted; requeued messages are dropped.
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
        dead_letter: Callable[[Copy, str], None],
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
        single_active = arguments.single_active_consumer
        self.consumers: RoundRobin[Consumer] = RoundRobin(single_active=single_active)
        self.deleted = False
        self._clock = clock
        self._memory = memory
        self._dead_letter = dead_letter
        self._unused = unused
        self._position = 0
        self._bounded = arguments.max_length is not None or arguments.max_bytes is not None
        self._has_expiring = False  # Some message has had an expiry.
        self._expiry: Timer | None = None
        self._idle: Timer | None = None
        self.touch()

    # Messages

    def publish(self, message: Message) -> bool:
        """Add a message; return False if the queue is full and refuses it."""
        if self._bounded and self._refuses(message):
            return False
        self._position += 1
        copy = Copy(message, self, self._position)
        if message.deliveries:
            quorum = self.arguments.quorum
            copy.redelivered = self.behaviour.counting.redelivered(message, quorum=quorum)
        self._memory.hold(message.size)
        if self.arguments.ttl is not None or message.flags & _EXPIRY_OR_PRIORITY:
            self._set_expiry_and_priority(copy)
        if not len(self.waiting) and (consumer := self.consumers.next()):
            self._deliver(consumer, copy)
            return True
        self.waiting.add(copy)
        self.waiting_bytes += len(message.body)
        self._trim()
        self._watch_expiry()
        return True

    def get(self) -> Copy | None:
        """Remove and return the next message, if there is one, for basic.get."""
        self.touch()
        self.drop_expired()
        if not len(self.waiting):
            return None
        copy = self._pop()
        copy.consumer = None
        self._watch_expiry()
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
                self._remove(copy, "delivery_limit")
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
            self._remove(copy, "rejected")

    def forget(self, copy: Copy) -> None:
        """Release the memory of a message that has left the queue."""
        self._memory.release(copy.message.size)

    def purge(self) -> int:
        """Drop waiting messages; return their number."""
        count = len(self.waiting)
        for copy in self.waiting:
            self.forget(copy)
        self.waiting.clear()
        self.waiting_bytes = 0
        return count

    def drop_expired(self) -> None:
        """Dead-letter or drop expired messages at the head, as RabbitMQ does."""
        while self._has_expiring and len(self.waiting):
            expires = self.waiting.head().expires
            if expires is None or expires > self._clock.now():
                break
            self._remove(self._pop(), "expired")

    def pump(self) -> None:
        """Deliver waiting messages to consumers that are ready."""
        self.consumers.refresh()
        self.drop_expired()
        while len(self.waiting) and (consumer := self.consumers.next()):
            self._deliver(consumer, self._pop())
            self.drop_expired()
        self._watch_expiry()

    # Consumers

    def subscribe(self, consumer: Consumer) -> None:
        """Add a consumer; the caller calls `pump` after basic.consume-ok."""
        self.consumers.add(consumer)
        self.touch()

    def unsubscribe(self, consumer: Consumer) -> None:
        """Remove a consumer, but not its unacknowledged messages.

        An auto-delete queue is deleted with its last consumer.
        """
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
        """Whether its consumer is exclusive."""
        return any(consumer.exclusive for consumer in self.consumers)

    # Lifetime

    def touch(self) -> None:
        """Restart the time without use, after which the queue expires; consumers are use."""
        if self.arguments.expires is None:
            return
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if not self.consumers and not self.deleted:
            self._idle = self._clock.after(self.arguments.expires, self._on_idle)

    def delete(self) -> None:
        """Drop all messages and cancel all consumers."""
        self.deleted = True
        for timer in (self._idle, self._expiry):
            if timer is not None:
                timer.cancel()
        for consumer in self.consumers.clear():
            consumer.channel.queue_deleted(consumer)
        self.purge()

    # Internals

    def _deliver(self, consumer: Consumer, copy: Copy) -> None:
        if consumer.acknowledges:
            copy.consumer = consumer
            consumer.unacked += 1
            self.unacked += 1
        else:
            self._memory.release(copy.message.size)
        consumer.channel.deliver(consumer, copy)

    def _pop(self) -> Copy:
        copy = self.waiting.pop()
        self.waiting_bytes -= len(copy.message.body)
        return copy

    def _set_expiry_and_priority(self, copy: Copy) -> None:
        """Set the priority and the expiry of a new copy."""
        message, ttl = copy.message, self.arguments.ttl
        if message.flags & _EXPIRATION:
            own = int(message.read_properties().expiration or 0) / 1000
            ttl = own if ttl is None else min(ttl, own)
        if ttl is not None:
            copy.expires = self._clock.now() + ttl
            self._has_expiring = True
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
            self._dead_letter(Copy(message, self, 0), "maxlen")
        return True

    def _full(self, more: int = 0, more_bytes: int = 0) -> bool:
        length, size = self.arguments.max_length, self.arguments.max_bytes
        return (length is not None and len(self.waiting) + more > length) or (
            size is not None and self.waiting_bytes + more_bytes > size
        )

    def _trim(self) -> None:
        """Drop messages above the limits, from the head."""
        if self._bounded and self.arguments.overflow == "drop-head":
            while len(self.waiting) and self._full():
                self._remove(self._pop(), "maxlen")

    def _watch_expiry(self) -> None:
        """Drop expired messages, and set a timer for the next expiry."""
        if not self._has_expiring:
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
        self._expiry = self._clock.after(when - self._clock.now(), self._watch_expiry)

    def _on_idle(self) -> None:
        self._unused(self)

    def _remove(self, copy: Copy, reason: str) -> None:
        self.forget(copy)
        self._dead_letter(copy, reason)
