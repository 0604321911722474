"""The connection of a client: incoming frames, channels, alarms and closing."""

import asyncio
import logging
from enum import Enum, auto
from typing import Any

from pamqp.commands import Connection as Methods

from workerkit.embedded import frames, methods
from workerkit.embedded.broker import Broker
from workerkit.embedded.channel import Channel, Session
from workerkit.embedded.dispatch import Dispatcher
from workerkit.embedded.errors import Refusal
from workerkit.embedded.handshake import PROTOCOL_SIZE, PROTOCOLS, Handshake, SilentRejection
from workerkit.embedded.heartbeat import Heartbeat
from workerkit.embedded.outbox import Outbox

log = logging.getLogger(__name__)

_CHANNEL_OPEN = b"\x00\x14\x00\x0a"
_CHANNEL_CLOSE, _CHANNEL_CLOSE_OK = b"\x00\x14\x00\x28", b"\x00\x14\x00\x29"
_CLOSE_OK_FRAME = b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x33\xce"
_LOGIN_TIMEOUT = 10.0
_CLOSE_TIMEOUT = 5.0


class _State(Enum):
    """The state of a connection."""

    NEW = auto()  # Before the protocol header.
    LOGGING_IN = auto()
    RUNNING = auto()
    CLOSING = auto()  # After connection.close; other frames than close-ok are ignored.
    CLOSED = auto()


class Connection(asyncio.Protocol):
    """The socket of one client.

    Attributes:
        session: Set when the client has logged in and opened a virtual host.
        lost: Done when the socket is closed.
    """

    def __init__(self, broker: Broker) -> None:
        self._loop = asyncio.get_running_loop()
        self.session: Session | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._broker = broker
        self._outbox = Outbox(broker.clock, broker.faults, self._pump)
        self._handshake = Handshake(broker, self._outbox)
        self._transport: asyncio.Transport
        self._state = _State.NEW
        self._rest = b""
        # None: closed here, not yet by the client.
        self._channels: dict[int, Dispatcher | None] = {}
        self._deadline: asyncio.TimerHandle | None = None
        self._heartbeat: Heartbeat | None = None
        self._lost_framing = False  # The start of the next frame is unknown.
        self._blocked = False
        self._alarmed = broker.alarmed

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._outbox.open(transport)
        self._broker.clients.add(self)
        self._set_deadline(_LOGIN_TIMEOUT)
        if self._broker.frozen:
            self.freeze()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        self._broker.clients.discard(self)
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        self._outbox.pause()

    def resume_writing(self) -> None:
        self._outbox.resume()
        self._resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._heartbeat is not None and data:
            self._heartbeat.received = True
        try:
            self._rest = self._read(self._rest + data if self._rest else data)
        except Refusal as refusal:
            self.refuse(refusal)
        except SilentRejection as error:
            log.warning("client rejected during the handshake", extra={"reason": str(error)})
            self.abort()
        except Exception:
            # An error of this broker, not of the client: other connections stay open.
            log.exception("internal error of the embedded broker: closing the connection")
            self.refuse(Refusal("INTERNAL_ERROR"))

    # broker.Client

    def channels(self) -> list[Channel]:
        """Return the open channels, in the order in which they were opened."""
        return [each.channel for each in self._channels.values() if each is not None]

    def refuse(self, refusal: Refusal, number: tuple[int, int] = (0, 0)) -> None:
        """Close the connection with an error."""
        if self._state in (_State.CLOSING, _State.CLOSED):
            return
        self._close_channels()
        self._state = _State.CLOSING
        self._rest = b""
        self._outbox.reply(0, methods.connection_close(refusal.code, refusal.text, number))
        self._outbox.flush()
        self._set_deadline(_CLOSE_TIMEOUT)

    def close_channel(
        self, channel: Channel, refusal: Refusal, number: tuple[int, int] = (0, 0)
    ) -> None:
        """Close a channel with an error."""
        dispatcher = self._channels[channel.number]
        if dispatcher is not None:
            dispatcher.close()
        self._channels[channel.number] = None
        channel.send(methods.channel_close(refusal.code, refusal.text, number))

    def abort(self) -> None:
        """Close the socket without connection.close."""
        self._end()
        self._transport.abort()

    def alarm(self, on: bool) -> None:
        """Block publishing, or unblock it.

        As in RabbitMQ, a blocked connection is not read after the start of its next publish. A
        connection that only consumes is not affected.
        """
        self._alarmed = on
        if not on and self._blocked:
            self._blocked = False
            if self._handshake.understands_blocked:
                self._outbox.reply(0, methods.UNBLOCKED)
            # Not now: a queue may clear the alarm in the middle of an operation.
            self._loop.call_soon(self._resume_reading)

    def freeze(self) -> None:
        """Stop reading and writing."""
        self._transport.pause_reading()
        self._outbox.freeze()
        self._pause_heartbeat(True)

    def thaw(self) -> None:
        """Resume reading and writing."""
        self._outbox.thaw()
        self._resume_reading()

    # Frames

    def _read(self, data: bytes) -> bytes:
        """Handle all complete frames, and return the rest of the data."""
        if self._lost_framing:
            return self._read_after_framing_error(data)
        position = 0
        if self._state is _State.NEW:
            if len(data) < PROTOCOL_SIZE:
                return data
            position = PROTOCOL_SIZE
            self._greet(data[:position])
        while len(data) - position > frames.HEAD_SIZE and not self._blocked:
            try:
                frame = frames.next_frame(data, position, self._outbox.frame_max)
            except Refusal:
                self._lost_framing = True
                raise
            if frame is None:
                break
            kind, number, payload = frame
            position += frames.FRAME_SIZE + len(payload)
            if self._state is _State.RUNNING and number:
                self._take(kind, number, payload)
            else:
                self._take_connection_frame(kind, number, payload)
            if self._state is _State.CLOSED:
                return b""
        return data[position:]

    def _read_after_framing_error(self, data: bytes) -> bytes:
        """Look for connection.close-ok in data whose frames cannot be found."""
        if data.endswith(_CLOSE_OK_FRAME):
            self._close_socket()
        return data[-len(_CLOSE_OK_FRAME) :]

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        """Handle a frame on a channel."""
        frames.check(kind, number, payload)
        dispatcher = self._channels.get(number)
        if dispatcher is None or (
            kind == frames.METHOD and payload.startswith((_CHANNEL_OPEN, _CHANNEL_CLOSE))
        ):
            self._open_or_close(kind, number, payload)
            return
        try:
            dispatcher.take(kind, payload)
        except Refusal as refusal:
            if refusal.code == 541:
                self.refuse(refusal)
            elif refusal.closes_connection:
                self.refuse(refusal, dispatcher.number)
            else:
                self.close_channel(dispatcher.channel, refusal, dispatcher.number)
        if self._alarmed and dispatcher.receiving:
            self._block()

    def _open_or_close(self, kind: int, number: int, payload: bytes) -> None:
        """Handle channel.open and channel.close, and frames for a channel that is not open."""
        method = payload[:4] if kind == frames.METHOD else b""
        if method == _CHANNEL_OPEN and number not in self._channels:
            self._open_channel(number)
        elif number not in self._channels:
            refusal = Refusal("CHANNEL_ERROR", "expected 'channel.open'")
            self.refuse(refusal, methods.number_of(payload))
        elif method == _CHANNEL_CLOSE:
            dispatcher = self._channels.pop(number)
            if dispatcher is not None:
                dispatcher.close()
            self._outbox.reply(number, methods.CHANNEL_CLOSE_OK)
        elif method == _CHANNEL_CLOSE_OK:
            del self._channels[number]
        elif method == _CHANNEL_OPEN and self._channels[number] is not None:
            refusal = Refusal("CHANNEL_ERROR", "second 'channel.open' seen")
            self.refuse(refusal, methods.number_of(payload))

    def _open_channel(self, number: int) -> None:
        assert self.session is not None
        limit = self._handshake.channel_max
        if len(self._channels) >= limit:
            text = f"number of channels opened ({limit}) has reached the negotiated channel_max"
            raise Refusal("NOT_ALLOWED", f"{text} ({limit})")
        self._channels[number] = Dispatcher(Channel(number, self.session))
        self._outbox.reply(number, methods.CHANNEL_OPEN_OK)

    # The connection's own methods

    def _greet(self, protocol: bytes) -> None:
        if protocol in PROTOCOLS:
            self._state = _State.LOGGING_IN
            self._outbox.reply(0, self._handshake.greet())
            return
        self._transport.write(self._broker.behaviour.reply_to_protocol(protocol))
        self._end()
        self._transport.close()

    def _take_connection_frame(self, kind: int, number: int, payload: bytes) -> None:
        if self._state is _State.CLOSING:
            self._take_while_closing(kind, number, payload)
            return
        if kind == frames.HEARTBEAT and not number and not payload:
            return
        frames.check(kind, number, payload)
        if kind != frames.METHOD or number:
            raise Refusal("UNEXPECTED_FRAME", f"type {kind} on channel {number}")
        try:
            self._take_method(payload)
        except Refusal as refusal:
            # RabbitMQ reports a wrong password without the number of a method.
            about = (0, 0) if refusal.code == 403 else methods.number_of(payload)
            self.refuse(refusal, about)

    def _take_method(self, payload: bytes) -> None:
        method = methods.read(payload)
        if isinstance(method, Methods.Close):
            self._close_channels()
            self._state = _State.CLOSING
            self._outbox.reply(0, methods.CLOSE_OK)
            self._close_socket()
        elif self._state is _State.LOGGING_IN:
            reply = self._handshake.take(method)
            if reply is not None:
                self._outbox.reply(0, reply)
            if self._handshake.session is not None:
                self._run(self._handshake.session)
        elif isinstance(method, Methods.UpdateSecret):
            self._outbox.reply(0, methods.UPDATE_SECRET_OK)
        else:
            raise Refusal("CHANNEL_ERROR", "unexpected method in connection state running")

    def _take_while_closing(self, kind: int, number: int, payload: bytes) -> None:
        if kind != frames.METHOD or number or len(payload) < 4:
            return
        method = methods.number_of(payload)
        if method == (10, 50):  # connection.close: both sides close at the same time.
            self._outbox.reply(0, methods.CLOSE_OK)
        elif method == (10, 51):  # connection.close-ok
            self._close_socket()

    def _run(self, session: Session) -> None:
        self.session = session
        self._state = _State.RUNNING
        self._set_deadline(None)
        if self._handshake.heartbeat:
            self._heartbeat = Heartbeat(
                self._handshake.heartbeat, self._outbox.heartbeat, self.abort
            )

    # Alarms

    def _block(self) -> None:
        self._blocked = True
        self._pause_heartbeat(True)
        self._transport.pause_reading()
        if self._handshake.understands_blocked:
            self._outbox.reply(0, methods.blocked("low on memory"))

    def _resume_reading(self) -> None:
        """Resume reading, beginning with the data received before the pause."""
        if self._blocked or self._broker.frozen or self._state is _State.CLOSED:
            return
        self._pause_heartbeat(False)
        self._transport.resume_reading()
        if self._rest:
            self.data_received(b"")

    def _pause_heartbeat(self, paused: bool) -> None:
        if self._heartbeat is not None:
            self._heartbeat.paused = paused

    # The end

    def _close_socket(self) -> None:
        """Close the socket when everything is written, or after a timeout."""
        self._outbox.flush()
        self._transport.close()
        self._set_deadline(_CLOSE_TIMEOUT)

    def _close_channels(self) -> None:
        """Close all channels, and delete exclusive queues."""
        dispatchers = [each for each in self._channels.values() if each is not None]
        self._channels.clear()
        for dispatcher in dispatchers:
            dispatcher.close()
        if self.session is not None:
            for queue in list(self.session.vhost.queues.values()):
                if queue.owner is self.session:
                    self.session.vhost.delete_queue(queue)

    def _end(self) -> None:
        """Release everything, whatever the state of the socket."""
        if self._state is not _State.CLOSED:
            self._close_channels()
            self._state = _State.CLOSED
            self._outbox.close()
            self._set_deadline(None)
            if self._heartbeat is not None:
                self._heartbeat.stop()

    def _set_deadline(self, seconds: float | None) -> None:
        """Abort the connection after *seconds*; None removes the deadline."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self.abort) if seconds else None

    def _pump(self) -> None:
        for channel in self.channels():
            channel.pump()
