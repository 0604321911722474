"""A virtual host: its queues and exchanges, and the routing of messages."""

import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from workerkit.embedded.arguments import QueueArguments
from workerkit.embedded.behaviour import Behaviour
from workerkit.embedded.clock import Clock
from workerkit.embedded.errors import not_found
from workerkit.embedded.exchange import Binding, Destination, Exchange
from workerkit.embedded.memory import Memory
from workerkit.embedded.message import Message, routing_keys, without_bcc
from workerkit.embedded.queue import Copy, Queue
from workerkit.embedded.x_death import dead_letter, is_cycle

REPLY_TO = "amq.rabbitmq.reply-to"
_PREDECLARED = {
    "": "direct",
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.topic": "topic",
    "amq.headers": "headers",
    "amq.match": "headers",
}


class ReplyChannel(Protocol):
    """A channel that consumes from `amq.rabbitmq.reply-to`."""

    def deliver_reply(self, message: Message) -> None:
        """Send a direct reply."""


class PublishResult(NamedTuple):
    """The result of a publish.

    Attributes:
        routed: The message reached a queue.
        accepted: No queue refused it.
    """

    routed: bool
    accepted: bool


class VirtualHost:
    """Queues and exchanges by name, independent of connections.

    Attributes:
        replies: Channels that consume direct replies, by routing key.
        memory: That of all virtual hosts together.
        default_queue_type: The type of queues that are declared without one; None is the default of
            the broker.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        memory: Memory,
        behaviour: Behaviour,
        default_queue_type: str | None = None,
    ) -> None:
        self.name = name
        self.behaviour = behaviour
        self.default_queue_type = default_queue_type
        self.queues: dict[str, Queue] = {}
        self.exchanges = {
            each: Exchange(
                each,
                name,
                kind,
                {},
                durable=True,
                floats_equal_integers=behaviour.floats_equal_integers,
            )
            for each, kind in _PREDECLARED.items()
        }
        self.replies: dict[str, ReplyChannel] = {}
        self.memory = memory
        self._clock = clock
        self._dead_letters: deque[tuple[Message, list[str]]] = deque()
        self._publishing_dead_letters = False

    # Topology

    def queue(self, name: str) -> Queue:
        """Return the queue *name*, or raise NOT_FOUND."""
        queue = self.queues.get(name)
        if queue is None:
            raise not_found("queue", name, self.name)
        return queue

    def exchange(self, name: str) -> Exchange:
        """Return the exchange *name*, or raise NOT_FOUND."""
        exchange = self.exchanges.get(name)
        if exchange is None:
            raise not_found("exchange", name, self.name)
        return exchange

    def add_queue(
        self,
        name: str,
        arguments: QueueArguments,
        *,
        durable: bool,
        auto_delete: bool,
        owner: object | None,
    ) -> Queue:
        """Create a queue."""
        queue = self.queues[name] = Queue(
            name,
            self.name,
            arguments,
            self._clock,
            self.memory,
            durable=durable,
            auto_delete=auto_delete,
            owner=owner,
            dead_letter=self._dead_letter,
            unused=self.delete_queue,
        )
        return queue

    def delete_queue(self, queue: Queue) -> None:
        """Delete a queue with its bindings, unless it is deleted already."""
        if not queue.deleted:
            del self.queues[queue.name]
            self._unbind_all(queue)
            queue.delete()

    def delete_exchange(self, exchange: Exchange) -> None:
        """Delete an exchange with the bindings to it and from it."""
        if self.exchanges.get(exchange.name) is exchange:
            del self.exchanges[exchange.name]
            self._unbind_all(exchange)

    def unbind(self, exchange: Exchange, binding: Binding) -> None:
        """Remove a binding, if it exists; an auto-delete exchange is deleted with its last one."""
        if exchange.unbind(binding):
            self._delete_if_unused(exchange)

    def _unbind_all(self, destination: Destination) -> None:
        for exchange in list(self.exchanges.values()):
            if exchange.unbind_all(destination):
                self._delete_if_unused(exchange)

    def _delete_if_unused(self, exchange: Exchange) -> None:
        if exchange.auto_delete and exchange.bound and not exchange.bindings:
            self.delete_exchange(exchange)

    # Messages

    def publish(self, message: Message) -> PublishResult:
        """Put a message into every queue that it is routed to."""
        if not message.exchange and not message.has_copies:  # The most frequent case, kept fast.
            queue = self.queues.get(message.routing_key)
            if queue is not None:
                return PublishResult(True, queue.publish(message))
        keys = routing_keys(message)
        message = without_bcc(message)
        if not message.exchange and self._reply(keys, message):
            return PublishResult(self.behaviour.routes_replies, True)
        queues = self.route(message, keys)
        accepted = [queue.publish(message) for queue in queues]
        return PublishResult(bool(queues), all(accepted))

    def route(self, message: Message, keys: Iterable[str]) -> Iterable[Queue]:
        """Return the queues for a message, each once.

        Exchange bindings and alternate exchanges are followed.
        """
        start = self.exchanges.get(message.exchange)
        queues: dict[Queue, None] = {}
        todo = [start] if start else []
        seen = set(todo)
        while todo:
            exchange = todo.pop()
            found = self._destinations(exchange, message, keys)
            if not found and exchange.alternate is not None:
                alternate = self.exchanges.get(exchange.alternate)
                found = [alternate] if alternate else []
            for destination in found:
                if isinstance(destination, Queue):
                    queues[destination] = None
                elif destination not in seen:
                    seen.add(destination)
                    todo.append(destination)
        return queues

    def _destinations(
        self, exchange: Exchange, message: Message, keys: Iterable[str]
    ) -> list[Destination]:
        if not exchange.name:
            return [queue for key in keys if (queue := self.queues.get(key))]
        return [
            destination
            for key in keys
            for destination in exchange.destinations(key, message.headers)
        ]

    def _reply(self, keys: list[str], message: Message) -> bool:
        """Deliver a direct reply; return whether *message* counts as routed."""
        channels = [channel for key in keys if (channel := self.replies.get(key))]
        for channel in channels:
            channel.deliver_reply(message)
        gone = self.behaviour.routes_replies and message.routing_key.startswith(f"{REPLY_TO}.")
        return bool(channels) or gone

    def _dead_letter(self, copy: Copy, reason: str) -> None:
        """Publish a message to the dead-letter exchange of its queue, if it has one.

        Messages that this dead-letters in turn are published afterwards, not recursively: a long
        chain of queues does not grow the stack.
        """
        queue, arguments = copy.queue, copy.queue.arguments
        exchange, routing_key = arguments.dead_letter_exchange, arguments.dead_letter_routing_key
        if exchange is None or exchange not in self.exchanges:
            return
        count = self.behaviour.counting.after_death(copy, reason, quorum=arguments.quorum)
        letter = dead_letter(
            copy.message,
            queue.name,
            reason,
            int(time.time()),
            exchange,
            routing_key,
            deliveries=count,
            discards_client_deaths=self.behaviour.discards_client_deaths,
        )
        # With a dead-letter routing key, it is routed by that key only.
        keys = routing_keys(letter) if routing_key is None else [routing_key]
        self._dead_letters.append((letter, keys))
        if not self._publishing_dead_letters:
            self._publishing_dead_letters = True
            try:
                while self._dead_letters:
                    self._publish_dead_letter(*self._dead_letters.popleft(), reason)
            finally:
                self._publishing_dead_letters = False

    def _publish_dead_letter(self, letter: Message, keys: list[str], reason: str) -> None:
        headers = letter.headers()
        for queue in self.route(letter, keys):
            if reason == "rejected" or not is_cycle(queue.name, headers):
                queue.publish(letter)
