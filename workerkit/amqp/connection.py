"""Keep one connection to RabbitMQ open: connect, monitor the connection, and reconnect."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from workerkit.amqp.addresses import ConnectionAttempt, ServerRotation
from workerkit.amqp.channel_numbers import ChannelLimit, parse_limit
from workerkit.amqp.frames import STALL_CHECKS, MalformedFrame, StallDetector
from workerkit.amqp.handshake import SELF_EXPLANATORY
from workerkit.amqp.session import Session, connect, connect_to
from workerkit.config.connections import AMQPSettings
from workerkit.describe import summarize_error, without_needless_traceback
from workerkit.errors import ConnectionLost
from workerkit.observe import ConnectionEvent, Event, Observer, notify_event
from workerkit.tasks import Backoff

log = logging.getLogger(__name__)

_SILENT_HEARTBEATS = 2.5
_SECOND_CHECK = 0.1
STABLE_AFTER = 10.0
"""Seconds after which a connection is stable: its loss starts the backoff from the beginning."""


class ConnectionListener(Protocol):
    """A user of the connection, notified of failed attempts to connect."""

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """Handle a failed attempt; after `BrokerRefused`, an operator must change something."""


class Connection:
    """One connection to one virtual host, reconnected until it is stopped.

    Args:
        name: The name of the connection in the settings.
        settings: Returns the settings. Called before each attempt, as passwords and certificates
            change.
        role: The purpose of the connection, shown by the broker's management.
        observers: Called after each attempt and each loss.
        silence: Heartbeats without a byte from the broker after which the connection is dropped.
    """

    def __init__(
        self,
        name: str,
        settings: Callable[[], AMQPSettings],
        vhost: str | None,
        role: str,
        observers: Sequence[Observer] = (),
        silence: float = _SILENT_HEARTBEATS,
    ) -> None:
        self.name = name
        self._silence = silence
        self.listeners: list[ConnectionListener] = []
        self._read_settings = settings
        self._settings = settings()
        self.vhost = self._settings.vhost_name(vhost)
        self._vhost_option = vhost
        self._role = role
        self._observers = observers
        self._session: Session | None = None
        self._stopping = False
        self._connected = asyncio.Event()

    def __str__(self) -> str:
        return self._settings.display(self._vhost_option)

    async def session(self) -> Session:
        """Return the current session; wait until there is one."""
        while self._session is None:
            await self._connected.wait()
        return self._session

    async def open_another(self, role: str) -> Session:
        """Open another connection to the same virtual host, which the caller closes.

        Raises:
            ConnectionLost: As `connect` does.
        """
        return await connect(self._read_settings(), self._vhost_option, role)

    def check_silence(self, session: Session) -> None:
        """Raise `ConnectionLost` if nothing has arrived on a session for too long."""
        silent = asyncio.get_running_loop().time() - session.protocol.last_read
        if silent >= self._settings.heartbeat * self._silence:
            reason = f"no bytes from the broker for {silent:.1f} s"
            session.abort(reason)
            raise ConnectionLost(reason)

    async def run(self) -> None:
        """Connect, and reconnect each time the connection is lost, until stopped."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        rotation = ServerRotation()
        limit: ChannelLimit | None = None
        number = 1
        while True:
            self._settings = self._read_settings()
            servers = self._settings.servers
            attempt = rotation.attempt(servers)
            try:
                session = await connect_to(attempt, self._settings, self._vhost_option, self._role)
            except Exception as error:
                # The other servers are tried at once; a pause follows when all have failed.
                seconds = backoff.next() if rotation.failed(attempt, servers) else 0.0
                self._failed(error, attempt, number, seconds)
                number += 1
                await asyncio.sleep(seconds)
                continue
            since = loop.time()
            log.info("connected", extra=self._fields(attempt, attempt=number))
            self._notify("connected", number)
            number = 1
            if limit is not None and limit.most < session.channel_max:
                session.limit_channels(limit)
            await self._serve(session)
            if self._stopping:
                return
            reason = session.reason
            limit = parse_limit(reason, limit) or limit
            log.warning("connection lost", extra=self._fields(attempt, reason=reason))
            self._notify("connection_lost", number, reason)
            if loop.time() - since > STABLE_AFTER:
                backoff.reset()
                rotation.stable()
            await asyncio.sleep(backoff.next() if rotation.failed(attempt, servers) else 0.0)

    @property
    def connected(self) -> bool:
        """Return whether there is a session."""
        return self._session is not None

    def stop(self) -> None:
        """Do not reconnect when the current session is lost."""
        self._stopping = True

    def abort(self, reason: str) -> None:
        """Drop the socket, if there is one."""
        if self._session is not None:
            self._session.abort(reason)

    async def _serve(self, session: Session) -> None:
        """Provide *session* until it is lost or this is cancelled; then close it."""
        session.protocol.frame_reader.largest_message = self._settings.max_message_size
        self._session = session
        self._connected.set()
        session.lost.add_done_callback(self._clear_session)
        try:
            await self._watch(session)
        finally:
            self._clear_session()
            await session.close()

    def _clear_session(self, _: object = None) -> None:
        self._session = None
        self._connected.clear()

    async def _watch(self, session: Session) -> None:
        """Wait until the session is lost. Close it when nothing arrives from the broker.

        A frame or a message that the broker does not finish closes it as well.
        """
        loop = asyncio.get_running_loop()
        limit = self._settings.heartbeat * self._silence
        stalls = StallDetector(limit)
        while not session.lost.done():
            silent = loop.time() - session.protocol.last_read
            if silent < limit:
                await asyncio.wait(
                    [session.lost], timeout=min(limit - silent, limit / STALL_CHECKS)
                )
                unfinished = list(session.protocol.frame_reader.unfinished())
                if stalled := stalls.check(unfinished, loop.time()):
                    session.protocol.abort(MalformedFrame(stalled))
                    await asyncio.wait([session.lost])
                continue
            # If a handler blocked the event loop, the bytes that arrived are not read yet.
            await asyncio.wait([session.lost], timeout=_SECOND_CHECK)
            if loop.time() - session.protocol.last_read >= limit:
                session.abort(f"no bytes from the broker for {silent:.1f} s")
                await asyncio.wait([session.lost])

    def _failed(
        self, error: Exception, attempt: ConnectionAttempt, number: int, seconds: float
    ) -> None:
        fields = {"attempt": number, "retry_in": round(seconds, 2), "error": summarize_error(error)}
        log.error(
            "connection failed",
            exc_info=without_needless_traceback(error, *SELF_EXPLANATORY),
            extra=self._fields(attempt, **fields),
        )
        self._notify("connection_failed", number, str(error))
        for listener in self.listeners:
            listener.connection_failed(error, number)

    def _notify(self, event: Event, attempt: int, reason: str = "") -> None:
        record = ConnectionEvent(self.name, self._role, self.vhost, attempt, reason)
        notify_event(self._observers, event, record)

    def _fields(self, to: ConnectionAttempt, **more: object) -> dict[str, object]:
        return {
            "connection": self.name,
            "role": self._role,
            "broker": self._settings.display(self._vhost_option, to.server),
            "address": to.address or ", ".join(to.tried),
            "vhost": self.vhost,
            **more,
        }
