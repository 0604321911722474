"""A channel: its unacknowledged deliveries, consumers, confirms and transaction."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from secrets import token_urlsafe
from struct import Struct

from workerkit.embedded import methods
from workerkit.embedded.counting import Settlement
from workerkit.embedded.errors import Refusal
from workerkit.embedded.message import Message
from workerkit.embedded.methods import Reply, short
from workerkit.embedded.outbox import Outbox
from workerkit.embedded.properties import write
from workerkit.embedded.queue import Consumer, Copy, Queue
from workerkit.embedded.vhost import REPLY_TO, VirtualHost


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """An authenticated client, which owns the exclusive queues that it declares.

    Attributes:
        user: The name of the user.
        outbox: That of the connection.
        wants_cancels: The client understands basic.cancel from the broker.
    """

    user: str
    vhost: VirtualHost
    outbox: Outbox
    wants_cancels: bool


_U64 = Struct(">Q").pack
_FLAG = (b"\x00", b"\x01")
_GET_OK = b"\x00\x3c\x00\x47"
_DELIVER = b"\x00\x3c\x00\x3c"


class Transaction:
    """Publishes and settlements that wait for tx.commit."""

    def __init__(self) -> None:
        self.publishes: list[Callable[[], None]] = []
        self.settled: list[tuple[dict[int, Copy], Settlement]] = []


class Channel:
    """One open channel.

    Attributes:
        prefetch: Unacknowledged messages of each later consumer; 0 is no limit.
        prefetch_total: Unacknowledged messages of all consumers together; 0 is no limit.
        last_queue: The queue declared last, which an empty name stands for.
        confirmed: The number of publishes since confirm.select; None before it.
        transaction: The open transaction; None before tx.select.
        reply_name: The routing key of direct replies to this channel, while it consumes them.
    """

    def __init__(self, number: int, session: Session) -> None:
        self.number = number
        self.session = session
        self.vhost = session.vhost
        self.outbox = session.outbox
        self.consumers: dict[str, Consumer] = {}
        self.prefetch = 0
        self.prefetch_total = 0
        self.last_queue = ""
        self.confirmed: int | None = None
        self.transaction: Transaction | None = None
        self.reply_tag: str | None = None
        self.reply_name = ""
        self._closed = False
        self._unacked: dict[int, Copy] = {}
        self._unacked_by_consumers = 0  # Without those of basic.get.
        self._last_tag = 0

    def send(self, reply: Reply) -> None:
        """Send a method on this channel."""
        self.outbox.reply(self.number, reply)

    # Deliveries

    def has_room(self) -> bool:
        """Return whether the channel can send one more delivery now."""
        full = self.prefetch_total and self._unacked_by_consumers >= self.prefetch_total
        return self.outbox.has_room and not full and not self._closed

    def deliver(self, consumer: Consumer, copy: Copy) -> None:
        """Send a message to a consumer."""
        message = copy.message
        self._last_tag = tag = self._last_tag + 1
        if consumer.acknowledges:
            self._unacked[tag] = copy
            self._unacked_by_consumers += 1
        method = consumer.prefix + _U64(tag) + _FLAG[copy.redelivered] + message.address
        reply = Reply("basic.deliver", method)
        self.outbox.content(self.number, reply, _properties(copy), message.body)

    def deliver_reply(self, message: Message) -> None:
        """Send a direct reply."""
        self._last_tag += 1
        tag = short(self.reply_tag or "") + _U64(self._last_tag)
        reply = Reply("basic.deliver", _DELIVER + tag + b"\x00" + message.address)
        self.outbox.content(self.number, reply, message.properties, message.body)

    def deliver_get(self, copy: Copy, *, acknowledges: bool) -> None:
        """Reply to basic.get with a message."""
        self._last_tag = tag = self._last_tag + 1
        message, left = copy.message, len(copy.queue.waiting)
        if acknowledges:
            self._unacked[tag] = copy
            copy.queue.unacked += 1
        else:
            copy.queue.forget(copy)
        method = _GET_OK + _U64(tag) + _FLAG[copy.redelivered] + message.address
        reply = Reply("basic.get-ok", method + left.to_bytes(4, "big"))
        self.outbox.content(self.number, reply, _properties(copy, got=True), message.body)

    def settle(self, tag: int, settlement: Settlement, *, multiple: bool) -> None:
        """Settle a delivery, or with *multiple* all up to it; tag 0 then means all."""
        taken = self._take(tag, multiple)
        if self.transaction is not None:
            self.transaction.settled.append((taken, settlement))
        else:
            self.apply(taken.values(), settlement)

    def apply(self, copies: Iterable[Copy], settlement: Settlement) -> None:
        """Settle deliveries in their queues."""
        returned: dict[Queue, list[Copy]] = {}
        for copy in copies:
            queue, consumer = copy.queue, copy.consumer
            queue.unacked -= 1
            if consumer is not None:
                consumer.unacked -= 1
                self._unacked_by_consumers -= 1
            returned.setdefault(queue, [])
            if settlement is Settlement.ACK:
                queue.forget(copy)
            elif settlement is Settlement.REJECT:
                queue.reject(copy)
            else:
                returned[queue].append(copy)
        for queue, requeued in returned.items():
            queue.requeue(requeued, settlement)
        if self.prefetch_total:
            self.pump()

    def recover(self, settlement: Settlement) -> None:
        """Requeue every unacknowledged delivery."""
        self.apply(self._take(0, True).values(), settlement)

    def pump(self) -> None:
        """Deliver waiting messages to the consumers of this channel."""
        for consumer in list(self.consumers.values()):
            consumer.queue.pump()

    # Transactions

    def begin(self) -> None:
        """Begin a transaction, which holds publishes and settlements until `commit`."""
        if self.transaction is None:
            self.transaction = Transaction()

    def commit(self) -> None:
        """Apply the transaction, and begin a new one."""
        done = self._end()
        for publish in done.publishes:
            publish()
        for taken, settlement in done.settled:
            self.apply(taken.values(), settlement)

    def rollback(self) -> None:
        """Discard the transaction, so its deliveries are unacknowledged again; begin a new one."""
        for taken, _ in self._end().settled:
            self._unacked |= taken
        self._unacked = dict(sorted(self._unacked.items()))

    def _end(self) -> Transaction:
        done, self.transaction = self.transaction, Transaction()
        if done is None:
            self.transaction = None
            raise Refusal("PRECONDITION_FAILED", "channel is not transactional")
        return done

    # Consumers

    def queue_deleted(self, consumer: Consumer) -> None:
        """Cancel a consumer whose queue was deleted."""
        self.consumers.pop(consumer.tag, None)
        if self.session.wants_cancels:
            self.send(methods.cancel(consumer.tag))

    def consume_replies(self, tag: str) -> None:
        """Consume from `amq.rabbitmq.reply-to`."""
        self.reply_tag = tag
        self.reply_name = f"{REPLY_TO}.{token_urlsafe(24)}"
        self.vhost.replies[self.reply_name] = self

    def cancel_replies(self) -> None:
        """Stop consuming direct replies."""
        if self.reply_tag is not None:
            del self.vhost.replies[self.reply_name]
            self.reply_tag = None

    def close(self) -> None:
        """Close the channel: cancel its consumers and requeue unacknowledged messages."""
        self._closed = True
        self.cancel_replies()
        if self.transaction is not None:
            self.rollback()
        consumers, self.consumers = self.consumers, {}
        for consumer in consumers.values():
            consumer.queue.unsubscribe(consumer)
        self.recover(Settlement.LOST)

    def _take(self, tag: int, multiple: bool) -> dict[int, Copy]:
        """Remove deliveries from the unacknowledged ones, and return them."""
        unacked = self._unacked
        if not multiple:
            if tag not in unacked:
                raise Refusal("PRECONDITION_FAILED", f"unknown delivery tag {tag}")
            return {tag: unacked.pop(tag)}
        if tag == 0:
            self._unacked = {}
            return unacked
        if tag not in unacked:
            raise Refusal("PRECONDITION_FAILED", f"unknown delivery tag {tag}")
        tags = list(takewhile(lambda each: each <= tag, unacked))
        return {each: unacked.pop(each) for each in tags}


def _properties(copy: Copy, *, got: bool = False) -> bytes:
    """Return the properties of a delivery, with the counts that a quorum queue adds."""
    message, queue = copy.message, copy.queue
    if not queue.arguments.quorum or not (got or copy.acquired or message.deliveries):
        return message.properties
    counts = queue.behaviour.counting.headers(copy, got=got)
    if not counts:
        return message.properties
    read = message.read_properties()
    read.headers = (read.headers or {}) | counts
    return write(read)
