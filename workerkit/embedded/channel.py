"""A channel: what was delivered on it and is not settled, its consumers, its modes."""

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
    """A client that is logged in. It owns the exclusive queues that it declares.

    Attributes:
        user: Its name.
        outbox: Of its connection.
        wants_cancels: It understands basic.cancel from the broker.
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
    """What waits for tx.commit."""

    def __init__(self) -> None:
        self.publishes: list[Callable[[], None]] = []
        self.settled: list[tuple[dict[int, Copy], Settlement]] = []


class Channel:
    """One open channel.

    Attributes:
        prefetch: Unsettled messages of each consumer that begins from now on; 0 is any number.
        prefetch_total: Of all consumers together.
        last_queue: Name of the queue declared last: what an empty name means.
        confirmed: Publishes since confirm.select, None before it.
        transaction: Since tx.select.
        reply_name: Where answers to this channel are sent to, once it consumes them.
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
        self._in_hand = 0  # Of consumers, not of basic.get.
        self._last_tag = 0

    def send(self, reply: Reply) -> None:
        """Send a method on this channel."""
        self.outbox.reply(self.number, reply)

    # Deliveries

    def has_room(self) -> bool:
        """Whether one more delivery may go out now."""
        full = self.prefetch_total and self._in_hand >= self.prefetch_total
        return self.outbox.has_room and not full and not self._closed

    def deliver(self, consumer: Consumer, copy: Copy) -> None:
        """Send a message to a consumer."""
        message = copy.message
        self._last_tag = tag = self._last_tag + 1
        if consumer.acknowledges:
            self._unacked[tag] = copy
            self._in_hand += 1
        method = consumer.prefix + _U64(tag) + _FLAG[copy.redelivered] + message.address
        reply = Reply("basic.deliver", method)
        self.outbox.content(self.number, reply, _properties(copy), message.body)

    def deliver_reply(self, message: Message) -> None:
        """Send an answer to the one who asked."""
        self._last_tag += 1
        tag = short(self.reply_tag or "") + _U64(self._last_tag)
        reply = Reply("basic.deliver", _DELIVER + tag + b"\x00" + message.address)
        self.outbox.content(self.number, reply, message.properties, message.body)

    def hand_over(self, copy: Copy, *, acknowledges: bool) -> None:
        """Answer basic.get with a message."""
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
        """Settle a delivery, or all up to it; tag 0 with *multiple* is all there are."""
        taken = self._take(tag, multiple)
        if self.transaction is not None:
            self.transaction.settled.append((taken, settlement))
        else:
            self.apply(taken.values(), settlement)

    def apply(self, copies: Iterable[Copy], settlement: Settlement) -> None:
        """Let queues know what became of deliveries that were taken."""
        returned: dict[Queue, list[Copy]] = {}
        for copy in copies:
            queue, consumer = copy.queue, copy.consumer
            queue.unacked -= 1
            if consumer is not None:
                consumer.unacked -= 1
                self._in_hand -= 1
            returned.setdefault(queue, [])
            if settlement is Settlement.ACK:
                queue.forget(copy)
            elif settlement is Settlement.REJECT:
                queue.reject(copy)
            else:
                returned[queue].append(copy)
        for queue, back in returned.items():
            queue.requeue(back, settlement)
        if self.prefetch_total:
            self.pump()

    def recover(self, settlement: Settlement) -> None:
        """Put everything back that is not settled."""
        self.apply(self._take(0, True).values(), settlement)

    def pump(self) -> None:
        """Deliver what waits for the consumers of this channel."""
        for consumer in list(self.consumers.values()):
            consumer.queue.pump()

    # Transactions

    def begin(self) -> None:
        """Keep publishes and settlements until `commit` from now on."""
        if self.transaction is None:
            self.transaction = Transaction()

    def commit(self) -> None:
        """Do what was kept, and begin anew."""
        done = self._end()
        for publish in done.publishes:
            publish()
        for taken, settlement in done.settled:
            self.apply(taken.values(), settlement)

    def rollback(self) -> None:
        """Forget what was kept: deliveries are unsettled again. Begin anew."""
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
        """The queue of a consumer is gone, and with it the consumer."""
        self.consumers.pop(consumer.tag, None)
        if self.session.wants_cancels:
            self.send(methods.cancel(consumer.tag))

    def expect_replies(self, tag: str) -> None:
        """Consume from `amq.rabbitmq.reply-to`."""
        self.reply_tag = tag
        self.reply_name = f"{REPLY_TO}.{token_urlsafe(24)}"
        self.vhost.replies[self.reply_name] = self

    def forget_replies(self) -> None:
        """Consume no answers any more."""
        if self.reply_tag is not None:
            del self.vhost.replies[self.reply_name]
            self.reply_tag = None

    def close(self) -> None:
        """End: consumers go, and what is not settled goes back."""
        self._closed = True
        self.forget_replies()
        if self.transaction is not None:
            self.rollback()
        consumers, self.consumers = self.consumers, {}
        for consumer in consumers.values():
            consumer.queue.unsubscribe(consumer)
        self.recover(Settlement.LOST)

    def _take(self, tag: int, multiple: bool) -> dict[int, Copy]:
        """Take deliveries off the list of those that are not settled."""
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
    """The properties to send: a quorum queue reports in them how often it delivered a message."""
    message, queue = copy.message, copy.queue
    if not queue.arguments.quorum or not (got or copy.acquired or message.deliveries):
        return message.properties
    counts = queue.behaviour.counting.headers(copy, got=got)
    if not counts:
        return message.properties
    read = message.read_properties()
    read.headers = (read.headers or {}) | counts
    return write(read)
