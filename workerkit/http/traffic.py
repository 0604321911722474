"""Every request that is being answered: what surrounds its handling, and how it is ended."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from itertools import count
from secrets import token_hex

from aiohttp import web

from workerkit.http.connection import Connection
from workerkit.http.problem import of_exception, problem
from workerkit.logs import request_id

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
EVENT_STREAM = "text/event-stream"

# What a client may choose stands in logs and answers.
_SOUND_ID = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
# uuid4() would take as long as the rest of this module.
_START = token_hex(6)
_NUMBERS = count(1)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Traffic:
    """The requests that are being answered.

    Args:
        ended: Called whenever one is answered.
    """

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._stopping = False
        self._answering: set[asyncio.Task[object]] = set()
        self._streams: dict[asyncio.Task[object], web.StreamResponse] = {}

    def __bool__(self) -> bool:
        return bool(self._answering)

    @web.middleware
    async def surround(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle one request; nothing but an answer comes out of it.

        Raises:
            asyncio.CancelledError: It was cancelled: the connection ends without an answer.
            ConnectionError: It ends in the middle of one.
        """
        connection = request.protocol
        task = asyncio.current_task()
        assert isinstance(connection, Connection)
        assert task is not None
        connection.begin()
        self._answering.add(task)
        request_id.set(_id_of(request))
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _chosen(request, error)
        except asyncio.CancelledError:
            if not self._stopping or task not in self._streams:
                raise
            # A stream that was ended for the stop has a proper end.
            task.uncancel()
            response = self._streams[task]
        except ConnectionError:
            raise
        except Exception:
            # Of a middleware; what a view raises is an outcome.
            log.exception("middleware failed", extra={"path": request.path})
            response = problem(500)
        finally:
            self._answering.discard(task)
            self._streams.pop(task, None)
            connection.end()
            self._ended()
        if self._stopping:
            response.force_close()
        return response

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Complete the head of an answer before it is sent."""
        response.headers[REQUEST_ID] = request_id.get()
        if response.headers.get("Content-Type") == EVENT_STREAM:
            task = asyncio.current_task()
            if task in self._answering:
                self._streams[task] = response

    def stop(self) -> None:
        """Have connections closed behind their answers, and end streams of events.

        Such a stream has no end of its own, and its client connects again, elsewhere.
        """
        self._stopping = True
        for task in self._streams:
            task.cancel()

    async def cancel(self) -> None:
        """Cancel everything, and wait for it."""
        tasks = set(self._answering)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _id_of(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID)
    if given is not None and _SOUND_ID.fullmatch(given):
        return given
    return f"{_START}-{next(_NUMBERS):x}"


def _chosen(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    """The answer that an exception of aiohttp's stands for."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted({*error.allowed_methods, "OPTIONS"}))
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={"Allow": allowed})
        error.headers["Allow"] = allowed
    return of_exception(error)
