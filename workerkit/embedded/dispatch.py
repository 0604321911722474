"""Dispatch the frames of a channel to the functions that handle them."""

from collections.abc import Callable
from typing import Any

from pamqp import base
from pamqp.commands import Basic, Confirm, Exchange, Queue, Tx
from pamqp.commands import Channel as ChannelMethods

from workerkit.embedded import consuming, declaring, methods, publishing
from workerkit.embedded.channel import Channel
from workerkit.embedded.counting import Settlement
from workerkit.embedded.errors import Refusal, unexpected
from workerkit.embedded.methods import Reply
from workerkit.embedded.publishing import Incoming

_METHOD = 1
# basic.publish and basic.ack are decoded here, without pamqp, for speed. Their numbers:
_PUBLISH, _ACK = b"\x00\x3c\x00\x28", b"\x00\x3c\x00\x50"
_SMALLEST_PUBLISH, _ACK_SIZE = 9, 13

_HANDLERS: dict[type[base.Frame], Callable[[Channel, Any], Reply | None]] = {
    Exchange.Declare: declaring.declare_exchange,
    Exchange.Delete: declaring.delete_exchange,
    Exchange.Bind: declaring.bind_exchange,
    Exchange.Unbind: declaring.unbind_exchange,
    Queue.Declare: declaring.declare_queue,
    Queue.Bind: declaring.bind_queue,
    Queue.Unbind: declaring.unbind_queue,
    Queue.Purge: declaring.purge_queue,
    Queue.Delete: declaring.delete_queue,
    Basic.Qos: consuming.set_prefetch,
    Basic.Consume: consuming.consume,
    Basic.Cancel: consuming.cancel,
    Basic.Get: consuming.get,
    Basic.Ack: consuming.ack,
    Basic.Nack: consuming.nack,
    Basic.Reject: consuming.reject,
    Basic.Recover: consuming.recover,
    Basic.RecoverAsync: consuming.recover_async,
    Confirm.Select: publishing.select_confirms,
    Tx.Select: publishing.select_transactions,
    Tx.Commit: publishing.commit,
    Tx.Rollback: publishing.rollback,
}


class Dispatcher:
    """A dispatcher for the frames of one channel.

    Attributes:
        number: Class and method number of the present method, for errors.
    """

    __slots__ = ("_held", "_incoming", "_sorts_headers", "channel", "number")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.number = (0, 0)
        self._held = 0  # Bytes of an incomplete message.
        self._incoming: Incoming | None = None
        self._sorts_headers = channel.vhost.behaviour.sorts_headers

    @property
    def receiving(self) -> bool:
        """Whether a message has been received in part."""
        return self._incoming is not None

    def take(self, kind: int, payload: bytes) -> None:
        """Handle a frame.

        Raises:
            Refusal: The channel or the connection has to be closed.
        """
        if self._incoming is not None:
            self._take_content(self._incoming, kind, payload)
        elif kind != _METHOD:
            self.number = (0, 0)
            raise unexpected("method frame", "non method frame")
        else:
            self._take_method(payload)

    def close(self) -> None:
        """Close the channel, and discard an incomplete message."""
        self._discard_content()
        self.channel.close()

    def _take_content(self, incoming: Incoming, kind: int, payload: bytes) -> None:
        if incoming.take(kind, payload):
            self._discard_content()
            publishing.publish(self.channel, incoming)
        elif not incoming.parts:
            publishing.check_size(self.channel, incoming.missing)
        else:
            self._held += len(payload)
            self.channel.vhost.memory.hold(len(payload))

    def _discard_content(self) -> None:
        self._incoming = None
        if self._held:
            self.channel.vhost.memory.release(self._held)
            self._held = 0

    def _take_method(self, payload: bytes) -> None:
        self.number = methods.number_of(payload)
        if payload.startswith(_PUBLISH) and len(payload) >= _SMALLEST_PUBLISH:
            self._incoming = Incoming(payload, sorts_headers=self._sorts_headers)
        elif payload.startswith(_ACK) and len(payload) == _ACK_SIZE:
            tag = int.from_bytes(payload[4:12], "big")
            self.channel.settle(tag, Settlement.ACK, multiple=bool(payload[12] & 1))
        else:
            self._call(methods.read(payload))

    def _call(self, method: base.Frame) -> None:
        if isinstance(method, ChannelMethods.Flow):
            if not method.active:
                raise Refusal("NOT_IMPLEMENTED", "active=false")
            self.channel.send(methods.CHANNEL_FLOW_OK)
            return
        handler = _HANDLERS.get(type(method))
        if handler is None:
            raise Refusal("COMMAND_INVALID", "unimplemented method")
        reply = handler(self.channel, method)
        if reply is not None and not getattr(method, "nowait", False):
            self.channel.send(reply)
