"""One stream of a consumer: connect, read events, and reconnect after the last one."""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multidict import CIMultiDict
from yarl import URL

from workerkit.config.connections import SSESettings, TLSSettings
from workerkit.describe import describe_error, summarize_error, without_needless_traceback
from workerkit.endpoint import Endpoint
from workerkit.errors import ConnectionLost, StreamRefused
from workerkit.health import Part, State
from workerkit.observe import ConnectionEvent, Event, Observer, notify_event
from workerkit.sse.connection import NETWORK_ERRORS, StreamConnection
from workerkit.sse.consumer import SSEConsumer, SSEOptions
from workerkit.sse.cookies import Cookies
from workerkit.sse.event import SSEEvent
from workerkit.sse.parser import Parser
from workerkit.sse.receiver import StreamReceiver
from workerkit.sse.redirects import Redirect
from workerkit.sse.request import StreamRequest
from workerkit.sse.stored_cursor import StoredCursor
from workerkit.sse.traced_connection import TracedStreamConnection
from workerkit.tasks import Backoff, guard, with_deadline
from workerkit.trace import Tracing
from workerkit.transport import Hook

log = logging.getLogger(__name__)

STABLE_AFTER = 10.0
"""Seconds after which the loss of a connection without events resets the pauses."""

_MAX_PAUSE = 30.0
_MAX_PAUSE_REFUSED = 60.0
_MIN_RETRY = 0.01
_MAX_RETRY = 3600.0


@dataclass(slots=True)
class StreamHealth(Part):
    """The health of one stream.

    Attributes:
        route: The route of the stream.
        over: The stream has ended permanently.
        cursor: Returns the id up to which all events are settled.
        cursor_stored: Whether the cursor store answered the last time.
    """

    route: str = field(kw_only=True)
    over: bool = False
    cursor: Callable[[], str] = field(default=lambda: "", repr=False)
    cursor_stored: bool = True

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self.state is State.READY and not self.over

    @property
    def age(self) -> float | None:
        """Seconds since the last event; None before the first."""
        return None if self.last_event is None else time.monotonic() - self.last_event

    def told(self) -> dict[str, Any]:
        """Return the connection state, the seconds since the last event, and the cursor."""
        return {
            "connected": self.connected,
            "last_event_age": None if self.age is None else round(self.age, 3),
            "cursor": self.cursor(),
            "cursor_stored": self.cursor_stored,
        }

    def end(self, reason: str) -> None:
        """Set that the stream has ended permanently."""
        self.over = True
        self.ended(reason)

    def set_cursor_stored(self, reachable: bool) -> None:
        """Set whether the cursor store answered."""
        self.cursor_stored = reachable
        self.changed()


class StreamSubscription:
    """The subscription to one stream: it reconnects, and passes events to a receiver.

    Args:
        settings: Called before each attempt to connect, as tokens and certificates may change.
        stream: The health, which it keeps up to date.
        observers: They are notified of connections.
        tracing: Traces each attempt to connect.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: SSEOptions,
        settings: Callable[[], SSESettings],
        receiver: StreamReceiver,
        stored_cursor: StoredCursor,
        stream: StreamHealth,
        observers: Sequence[Observer],
        tracing: Tracing | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._options = options
        self._settings = settings
        self._receiver = receiver
        self._stored_cursor = stored_cursor
        self.stream = stream
        self._observers = observers
        self._tracing = tracing
        self._backoff = Backoff(cap=_MAX_PAUSE)
        self._first_pause = 0.0
        self._refusals = Backoff(cap=_MAX_PAUSE_REFUSED)
        self._display = settings().display(stream.route)
        self._attempt = 1
        self._last_event_id = ""
        self._has_events = False
        self._done = False
        self._cookies = Cookies()
        self._warned: set[str] = set()
        self._last_redirect = ("", "")
        self._hook = Hook(endpoint)
        self._began = False

    async def run(self) -> None:
        """Read until cancelled, or until the stream has ended permanently.

        When it is called again, after a pause, it continues after the last event that was received.
        """
        if not self._began:
            self.stream.waiting("the cursor is not loaded yet")
            self._last_event_id = await self._stored_cursor.load()
            self._receiver.begin(self._last_event_id)
            self._began = True
        while not self.stream.over:
            opened, self._has_events, self._done = 0.0, False, False
            try:
                async with self._connection(await self._request()) as connection:
                    if connection.has_ended:
                        self._no_content()
                        return
                    opened = time.monotonic()
                    self._connected()
                    try:
                        await self._read(connection)
                    except ConnectionLost as error:
                        # Reported before the connection is closed, which may take a moment.
                        if self._options.reopens:
                            self.stream.waiting(str(error))
                        raise
                lost = ConnectionLost("the server ended the stream")
                if self._done or not self._options.reopens:
                    self._end("done" if self._done else "the server ended it")
            except ConnectionLost as error:
                lost = error
                if self._has_events and not self._options.reopens:
                    self._lost_for_good(error)
            if not self.stream.over:
                await asyncio.sleep(self._lost(lost, opened) if opened else self._failed(lost))

    async def close(self) -> None:
        """Cancel hooks that still run."""
        await self._hook.close()

    def _connection(self, request: StreamRequest) -> StreamConnection:
        parser = Parser(self.stream.route, self._last_event_id, self._options.max_event_size)
        more = parser, self._cookies, self._redirected
        if self._tracing is None:
            return StreamConnection(request, *more)
        return TracedStreamConnection(self._tracing, self.stream.route, request, *more)

    async def _request(self) -> StreamRequest:
        """Return the request of the next attempt.

        Raises:
            ConnectionLost: The method `headers` of the consumer failed.
            StreamRefused: The TLS files cannot be read.
        """
        settings, options, route = self._settings(), self._options, self.stream.route
        # Names of headers are case-insensitive.
        headers = CIMultiDict(settings.request_headers())
        headers.update(await self._own_headers(settings.connect_timeout))
        self._display = settings.display(route)
        tls, elsewhere = self._tls(settings)
        idle = options.idle_timeout
        return StreamRequest(
            method=options.verb,
            url=settings.address(route),
            display=self._display,
            headers=headers,
            json=options.json,
            tls=tls,
            server_name=settings.tls.server_name if tls is not None else None,
            connect_timeout=settings.connect_timeout,
            idle_timeout=settings.idle_timeout if idle is None else idle,
            redirects=settings.redirects,
            trusted_origins=frozenset(settings.trusted_origins),
            tls_elsewhere=elsewhere,
            proxy=None if settings.proxy is None else URL(settings.proxy.get_secret_value()),
            trust_env=settings.trust_env,
        )

    def _tls(self, settings: SSESettings) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
        """Return TLS for the server, and for origins that do not get the client certificate."""
        own, encrypted = settings.tls, settings.address().scheme == "https"
        if not encrypted and own == TLSSettings():
            return None, None
        try:
            tls = own.context()
            without_cert = own.model_copy(update={"cert": None})
            elsewhere = tls if own.cert is None else without_cert.context()
        except (OSError, ValueError) as error:  # Errors of ssl are subclasses.
            raise StreamRefused(f"TLS for {self._display}: {describe_error(error)}", 0) from error
        if encrypted and not own.verify:
            log.warning("the server's certificate is not verified", extra=self._fields())
        return tls, elsewhere

    async def _own_headers(self, seconds: float) -> dict[str, str]:
        consumer = self._endpoint.consumer
        assert isinstance(consumer, SSEConsumer)
        timeout = TimeoutError(f"it took longer than {seconds:g} s")
        try:
            found: object = await with_deadline(seconds, guard(consumer.headers()), timeout)
        except Exception as error:
            raise ConnectionLost(
                f"headers of {self._receiver.name}: {describe_error(error)}"
            ) from error
        if wrong := _headers_fault(found):
            raise ConnectionLost(f"headers of {self._receiver.name}: {wrong}")
        assert isinstance(found, Mapping)
        return dict(found)

    async def _read(self, connection: StreamConnection) -> None:
        """Pass events to the receiver until the connection ends, or until the `done` event."""
        parser, receiver, done = connection.parser, self._receiver, self._options.done
        async for events in connection:
            last_id = parser.last_event_id
            if events:
                self._has_events = True
                self.stream.last_event = time.monotonic()
                self._backoff.reset()
                if done is not None and (found := _index_of_data(events, done)) is not None:
                    self._done, last_id = True, events[found].id
                    events = events[:found]
            if events or last_id != self._last_event_id:
                self._last_event_id = last_id
                receiver.add(events, last_id)
            if self._done:
                return
            if parser.retry is not None:
                self._set_retry(parser.retry / 1000)
                parser.retry = None
            if parser.long_ids:
                self._warn_once("id of an event is too long: it is not sent back")
            if receiver.full:
                await receiver.room()

    def _set_retry(self, seconds: float) -> None:
        # A pause is random, between half of its limit and the limit: never less than *seconds*.
        first = 2 * min(max(seconds, _MIN_RETRY), _MAX_RETRY)
        if first != self._first_pause:
            self._first_pause = first
            self._backoff = Backoff(first, max(first, _MAX_PAUSE))

    def _connected(self) -> None:
        self.stream.ready()
        log.info("stream is open", extra=self._fields(attempt=self._attempt))
        if self._cookies.ignored:
            self._warn_once("cookies of the server are ignored: too many, too long or malformed")
        self._notify("connected")
        self._attempt = 1
        self._refusals.reset()

    def _no_content(self) -> None:
        self.stream.end("the server answered 204")
        log.warning("the server has ended the stream permanently: 204", extra=self._fields())

    def _end(self, reason: str) -> None:
        """End the stream, unless the option `reopen` is set."""
        if self._options.reopen:
            return
        self.stream.end(reason)
        log.info("stream has ended", extra=self._fields(reason=reason))

    def _lost_for_good(self, error: ConnectionLost) -> None:
        """End a stream whose connection was lost and whose request must not be repeated."""
        self.stream.end(str(error))
        fields = self._fields(reason=str(error), error=summarize_error(error))
        log.error(
            "stream lost: it is not opened again",
            exc_info=without_needless_traceback(error, *NETWORK_ERRORS),
            extra=fields,
        )
        self._notify("connection_lost", str(error))
        self._hook.connection_failed(error, self._attempt)

    def _redirected(self, redirect: Redirect) -> None:
        origins = (redirect.origin, redirect.target)
        if redirect.origin == redirect.target or origins == self._last_redirect:
            return
        self._last_redirect = origins
        fields = self._fields(
            from_origin=redirect.origin, to_origin=redirect.target, followed=not redirect.refusal
        )
        log.warning("the server redirects to another origin", extra=fields)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning(text, extra=self._fields())

    def _lost(self, error: ConnectionLost, opened: float) -> float:
        """Report a lost connection, and return the pause before the next attempt."""
        if time.monotonic() - opened > STABLE_AFTER:
            self._backoff.reset()
        pause = self._backoff.next()
        self.stream.waiting(str(error))
        fields = self._fields(reason=str(error), retry_in=round(pause, 2))
        log.warning("stream lost", extra=fields)
        self._notify("connection_lost", str(error))
        return pause

    def _failed(self, error: ConnectionLost) -> float:
        """Report a failed attempt to connect, and return the pause before the next one."""
        if isinstance(error, StreamRefused) and not error.for_now:
            # The server may have refused because of one of its own cookies.
            self._cookies.clear()
            pause = self._refusals.next()
            self.stream.refused(str(error))
        else:
            pause = self._backoff.next()
            self.stream.waiting(str(error))
        retry_after = error.retry_after if isinstance(error, StreamRefused) else None
        pause = max(pause, min(retry_after or 0.0, _MAX_RETRY))
        fields = self._fields(
            attempt=self._attempt, retry_in=round(pause, 2), error=summarize_error(error)
        )
        log.error(
            "connection failed",
            exc_info=without_needless_traceback(error, *NETWORK_ERRORS),
            extra=fields,
        )
        self._notify("connection_failed", str(error))
        self._hook.connection_failed(error, self._attempt)
        self._attempt += 1
        return pause

    def _notify(self, event: Event, reason: str = "") -> None:
        has_own_url = self._options.url is not None
        name = self._receiver.name if has_own_url else self._options.connection.casefold()
        record = ConnectionEvent(name, "stream", "", self._attempt, reason)
        notify_event(self._observers, event, record)

    def _fields(self, **more: object) -> dict[str, object]:
        name, route = self._receiver.name, self.stream.route
        return {"consumer": name, "route": route, "url": self._display, **more}


def _index_of_data(events: Sequence[SSEEvent[Any]], done: str) -> int | None:
    """Return the index of the first event with this data; None if there is none."""
    for number, event in enumerate(events):
        if event.raw == done and not event.oversized:
            return number
    return None


def _headers_fault(found: object) -> str:
    """Return the fault of what the method `headers` returned; "" if there is none."""
    if not isinstance(found, Mapping):
        what = "None" if found is None else f"a {type(found).__qualname__}"
        return f"returned {what}: return a dict of str by name"
    kinds = [type(name).__qualname__ for name in found if not isinstance(name, str)]
    return f"a name is of type {kinds[0]}: write a str" if kinds else ""
