"""Keep one connection to RabbitMQ alive: connect, watch, lose, connect again."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from workerkit.amqp.addresses import Attempt, Rotation
from workerkit.amqp.channel_numbers import ChannelLimit, parse_limit
from workerkit.amqp.frames import MalformedFrame
from workerkit.amqp.handshake import EXPLAINED
from workerkit.amqp.session import Session, connect_to
from workerkit.amqp.stalls import CHECKS, StallDetector
from workerkit.config.connections import AMQPSettings
from workerkit.describe import summarize_error, without_needless_traceback
from workerkit.observe import Connection, Event, Observer, tell
from workerkit.tasks import Backoff

log = logging.getLogger(__name__)

_LOST_AFTER_HEARTBEATS = 2.5
_SECOND_LOOK = 0.1
STABLE_AFTER = 10.0
"""Seconds that a connection has to last until its loss is not counted with the one before."""


class Follower(Protocol):
    """Somebody who needs the connection and is told why it is not there."""

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """One attempt failed; `BrokerRefused` when somebody must change something first."""


class Link:
    """Keeps one connection to one virtual host alive, for as long as the process wants it.

    Args:
        name: Of the connection in the settings.
        settings: Asked anew at each attempt, as passwords and certificates change.
        role: What it is for; shown by the broker's management.
        observers: Told of each attempt, and of each loss.
        silence: Heartbeats without a byte from the broker after which the connection is dropped.
    """

    def __init__(
        self,
        name: str,
        settings: Callable[[], AMQPSettings],
        vhost: str | None,
        role: str,
        observers: Sequence[Observer] = (),
        silence: float = _LOST_AFTER_HEARTBEATS,
    ) -> None:
        self.name = name
        self._silence = silence
        self.followers: list[Follower] = []
        self._read_settings = settings
        self._settings = settings()
        self.vhost = self._settings.vhost_name(vhost)
        self._asked_vhost = vhost
        self._role = role
        self._observers = observers
        self._session: Session | None = None
        self._stopping = False
        self._connected = asyncio.Event()

    def __str__(self) -> str:
        return self._settings.display(self._asked_vhost)

    async def session(self) -> Session:
        """The present incarnation, once there is one."""
        while self._session is None:
            await self._connected.wait()
        return self._session

    async def run(self) -> None:
        """Connect, and connect again whenever the connection is lost, until stopped."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        rotation = Rotation()
        limit: ChannelLimit | None = None
        number = 1
        while True:
            self._settings = self._read_settings()
            servers = self._settings.servers
            attempt = rotation.attempt(servers)
            try:
                session = await connect_to(attempt, self._settings, self._asked_vhost, self._role)
            except Exception as error:
                # The other servers are tried at once; a pause follows when all have failed.
                seconds = backoff.next() if rotation.failed(attempt, servers) else 0.0
                self._failed(error, attempt, number, seconds)
                number += 1
                await asyncio.sleep(seconds)
                continue
            since = loop.time()
            log.info("connected", extra=self._fields(attempt, attempt=number))
            self._tell("connected", number)
            number = 1
            if limit is not None and limit.most < session.channel_max:
                session.limit_channels(limit)
            await self._serve(session)
            if self._stopping:
                return
            reason = session.reason
            limit = parse_limit(reason, limit) or limit
            log.warning("connection lost", extra=self._fields(attempt, reason=reason))
            self._tell("connection_lost", number, reason)
            if loop.time() - since > STABLE_AFTER:
                backoff.reset()
                rotation.stable()
            await asyncio.sleep(backoff.next() if rotation.failed(attempt, servers) else 0.0)

    @property
    def connected(self) -> bool:
        """Whether there is a session."""
        return self._session is not None

    def stop(self) -> None:
        """Do not connect again when the present session is lost."""
        self._stopping = True

    def abort(self, reason: str) -> None:
        """Drop the socket, if there is one."""
        if self._session is not None:
            self._session.abort(reason)

    async def _serve(self, session: Session) -> None:
        """Lend *session* out until it is lost, or this is cancelled; then clear up after it."""
        session.protocol.tap.largest_message = self._settings.max_message_size
        self._session = session
        self._connected.set()
        session.lost.add_done_callback(self._forget)
        try:
            await self._watch(session)
        finally:
            self._forget()
            await session.close()

    def _forget(self, _: object = None) -> None:
        self._session = None
        self._connected.clear()

    async def _watch(self, session: Session) -> None:
        """Return when the session is lost; close it when the broker is silent.

        A frame or a message that the broker does not finish closes it as well.
        """
        loop = asyncio.get_running_loop()
        limit = self._settings.heartbeat * self._silence
        stalls = StallDetector(limit)
        while not session.lost.done():
            silent = loop.time() - session.protocol.last_read
            if silent < limit:
                await asyncio.wait([session.lost], timeout=min(limit - silent, limit / CHECKS))
                unfinished = list(session.protocol.tap.unfinished())
                if stalled := stalls.check(unfinished, loop.time()):
                    session.protocol.give_up(MalformedFrame(stalled))
                    await asyncio.wait([session.lost])
                continue
            # After a handler that blocked the loop, what came meanwhile has yet to be read.
            await asyncio.wait([session.lost], timeout=_SECOND_LOOK)
            if loop.time() - session.protocol.last_read >= limit:
                session.abort(f"nothing heard of the broker for {silent:.1f} s")
                await asyncio.wait([session.lost])

    def _failed(self, error: Exception, attempt: Attempt, number: int, seconds: float) -> None:
        fields = {"attempt": number, "retry_in": round(seconds, 2), "error": summarize_error(error)}
        log.error(
            "connection failed",
            exc_info=without_needless_traceback(error, *EXPLAINED),
            extra=self._fields(attempt, **fields),
        )
        self._tell("connection_failed", number, str(error))
        for follower in self.followers:
            follower.connection_failed(error, number)

    def _tell(self, event: Event, attempt: int, reason: str = "") -> None:
        record = Connection(self.name, self._role, self.vhost, attempt, reason)
        tell(self._observers, event, record)

    def _fields(self, to: Attempt, **more: object) -> dict[str, object]:
        return {
            "connection": self.name,
            "role": self._role,
            "broker": self._settings.display(self._asked_vhost, to.server),
            "address": to.address or ", ".join(to.tried),
            "vhost": self.vhost,
            **more,
        }
