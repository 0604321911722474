"""The room in which a message is handled and settled."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from struct import Struct
from time import perf_counter
from typing import Any

from workerkit.amqp.acks import Acks
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.settling import Settling
from workerkit.delivery import Action
from workerkit.endpoint import Endpoint
from workerkit.observe import Observer, Settled, notify
from workerkit.workers import Workers

_U64 = Struct(">Q").unpack_from
_LONG_TURN = 0.001


class Receiver:
    """Takes messages off the tap, has them handled by a free worker, and settles them.

    There are as many workers as the consumer's `concurrency`; they outlive every connection.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: AMQPOptions,
        observers: Sequence[Observer],
        settling: Settling,
    ) -> None:
        self.name = endpoint.name
        self.workers = Workers(endpoint.name, options.concurrency, self._work)
        self._process = endpoint.process
        self._observers = observers
        self._settling = settling
        self._waiting: deque[AMQPMessage[Any]] = deque()
        self._queues: Mapping[bytes, str] = {}
        self._acks: Acks | None = None
        self._stopping = False

    def attach(self, acks: Acks, queues: Mapping[bytes, str]) -> None:
        """Expect messages of a new channel; *queues* has the queue of each consumer tag."""
        self._acks, self._queues = acks, queues

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Queue a message for the next free worker. The prefetch bounds how many there are."""
        end = method[0] + 1
        assert self._acks is not None
        self._waiting.append(
            AMQPMessage(
                body,
                queue=self._queues[method[1:end]],
                tag=_U64(method, end)[0],
                envelope=method[end + 8 :],
                properties=properties,
                acks=self._acks,
            )
        )
        self.workers.wake()

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Nothing is published on this channel."""

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Nothing is published on this channel."""

    def closed(self) -> None:
        """The broker closes the channel, and hears nothing that is sent on it from now on."""
        if self._acks is not None:
            self._acks.fence()

    def forget(self) -> None:
        """The channel is lost: the broker delivers again what no worker has begun with."""
        self._waiting.clear()
        self._settling.release()

    def stop(self) -> None:
        """Begin with nothing new."""
        self._stopping = True

    def put_back(self) -> None:
        """Return to the broker what no worker has begun with, and what waits to go back."""
        while self._waiting:
            message = self._waiting.popleft()
            message.acks.reject(message.tag, requeue=True)
        self._settling.hurry()

    async def _work(self) -> None:
        while self._waiting and not self._stopping:
            message = self._waiting.popleft()
            if self._waiting:
                self.workers.wake()
            if message.acks.lost:
                continue
            began = perf_counter()
            outcome = await self._process(message)
            seconds = perf_counter() - began
            if outcome.action is Action.ACK:
                action, alive = Action.ACK, self._settling.acknowledge(message)
            else:
                action, alive = await self._settling.settle(message, outcome)
            record = Settled(self.name, message.queue, message, outcome, action, seconds, not alive)
            notify(self._observers, record)
            if seconds > _LONG_TURN:
                # A handler that computes without awaiting must not starve everybody else.
                await asyncio.sleep(0)
