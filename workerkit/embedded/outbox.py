"""Outgoing frames of one connection, collected and written once per turn of the event loop.

One write per turn, and one confirm for all publishes of a turn, make the broker fast: 20,000 small
writes per second would cost more than everything else together.
"""

import asyncio
from collections.abc import Callable
from struct import Struct

from workerkit.embedded import methods
from workerkit.embedded.clock import Clock
from workerkit.embedded.injected_faults import InjectedFaults
from workerkit.embedded.methods import Reply

_METHOD, _HEADER, _BODY = 1, 2, 3
_END = b"\xce"
_HEAD = Struct(">BHI").pack
_CONTENT_HEAD = Struct(">BHIHHQ").pack
_BASIC = 60
_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
# Deliveries pause at this number of bytes that are not written, or wait in the transport.
_FULL = 2**20
# Above this, a client that does not read its replies is not read any more either.
_TOO_FULL = 2**25


class Outbox:
    """Frames to write.

    Args:
        on_room: Called when deliveries may resume after a pause.

    Attributes:
        has_room: Deliveries may be added. Replies may be added at any time.
        frame_max: Maximum bytes of a frame, its head and end included.
    """

    def __init__(self, clock: Clock, faults: InjectedFaults, on_room: Callable[[], None]) -> None:
        self.has_room = True
        self.frame_max = 131072
        self._wrote = False
        self._clock = clock
        self._faults = faults
        self._on_room = on_room
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._size = 0
        self._scheduled = False
        self._confirms: dict[int, list[int]] = {}  # Channel: first tag, last tag, accepted.
        self._paused = False
        self._frozen = False

    def open(self, transport: asyncio.Transport) -> None:
        """Start writing to *transport*."""
        self._transport = transport
        transport.set_write_buffer_limits(_FULL)

    def close(self) -> None:
        """Discard what is not written, and accept no more."""
        self._transport = None
        self.has_room = False
        self._parts.clear()
        self._confirms.clear()

    # Adding

    def reply(self, channel: int, reply: Reply) -> None:
        """Send a method, subject to injected faults."""
        self._add_confirms()
        self._add_reply(channel, reply)

    def content(self, channel: int, method: Reply, properties: bytes, body: bytes) -> None:
        """Send a method with a message, subject to injected faults."""
        size = len(body)
        parts = [
            _HEAD(_METHOD, channel, len(method.payload)),
            method.payload,
            _END,
            _CONTENT_HEAD(_HEADER, channel, 12 + len(properties), _BASIC, 0, size),
            properties,
            _END,
        ]
        limit = self.frame_max - 8
        if 0 < size <= limit:
            parts += (_HEAD(_BODY, channel, size), body, _END)
        else:
            for start in range(0, size, limit):
                part = body[start : start + limit]
                parts += (_HEAD(_BODY, channel, len(part)), part, _END)
        self._send(method.name, b"".join(parts))

    def confirm(self, channel: int, tag: int, *, accepted: bool) -> None:
        """Confirm a publish, together with others of this turn. Tags must be in order."""
        run = self._confirms.get(channel)
        if run is not None and run[2] != accepted:
            self._add_confirms()
            run = None
        if run is None:
            self._confirms[channel] = [tag, tag, accepted]
            self._schedule()
        else:
            run[1] = tag

    def heartbeat(self) -> None:
        """Send a heartbeat if nothing else went out since the last call."""
        if not self._wrote and not self._frozen and self._transport is not None:
            self._transport.write(_HEARTBEAT)
        self._wrote = False

    # Writing

    def flush(self) -> None:
        """Write all frames now."""
        self._scheduled = False
        self._add_confirms()
        transport = self._transport
        if transport is None or self._frozen:
            return
        if self._parts:
            transport.write(b"".join(self._parts))
            self._wrote = True
            self._parts.clear()
            self._size = 0
            if transport.get_write_buffer_size() > _TOO_FULL:
                transport.pause_reading()
        self._check_room()

    def pause(self) -> None:
        """Pause deliveries: the buffer of the transport is full."""
        self._paused = True
        self.has_room = False

    def resume(self) -> None:
        """Resume deliveries: the transport has room."""
        self._paused = False
        self._check_room()

    def freeze(self) -> None:
        """Write nothing until `thaw`."""
        self._frozen = True
        self.has_room = False

    def thaw(self) -> None:
        """Resume writing."""
        self._frozen = False
        self.flush()

    # Internals

    def _check_room(self) -> None:
        if not self.has_room and not self._paused and not self._frozen:
            self.has_room = True
            self._on_room()

    def _add_reply(self, channel: int, reply: Reply) -> None:
        head = _HEAD(_METHOD, channel, len(reply.payload))
        self._send(reply.name, b"".join((head, reply.payload, _END)))

    def _send(self, name: str, frame: bytes) -> None:
        fault = self._faults.take(name) if self._faults else None
        if fault is None:
            self._add(frame)
        elif fault.delay is not None:
            self._clock.after(fault.delay, lambda: self._add(frame))

    def _add(self, frame: bytes) -> None:
        if self._transport is None:
            return
        self._parts.append(frame)
        self._size += len(frame)
        if self._size > _FULL:
            self.has_room = False
        self._schedule()

    def _add_confirms(self) -> None:
        confirms, self._confirms = self._confirms, {}
        for channel, (first, last, accepted) in confirms.items():
            reply = methods.confirm(last, accepted=bool(accepted), multiple=last > first)
            self._add_reply(channel, reply)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)
