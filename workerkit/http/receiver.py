"""Answers the requests for one method of a view."""

import asyncio
from functools import partial
from time import perf_counter
from typing import Any

from aiohttp import hdrs, web

from workerkit.codec import JSON
from workerkit.delivery import Action, Outcome
from workerkit.endpoint import Endpoint
from workerkit.errors import HandlerExit, InvalidRequest
from workerkit.http.connection import ClientConnection
from workerkit.http.middleware import limited
from workerkit.http.problem import of_exception
from workerkit.http.raw_request import ACCEPTED, UNSUPPORTED, is_supported
from workerkit.http.request import HTTPRequest, identify
from workerkit.http.response import answer, is_event_stream
from workerkit.http.signature import RequestSignature
from workerkit.observe import Settled, notify
from workerkit.tasks import is_meant_to_end
from workerkit.transport import Context


class RequestReceiver:
    """Answers the requests for one method of a view.

    Args:
        status: Of an answer that does not say.
        max_body: Bytes of a body; None leaves it to the server.

    Attributes:
        max_body: The same.
        running: Requests that are being answered.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        signature: RequestSignature,
        status: int,
        max_body: int | None,
        context: Context,
    ) -> None:
        self.name = endpoint.name
        self.running = 0
        self._process = endpoint.process
        self._body = signature.body
        self._takes_request = signature.takes_request
        self._status = status
        self.max_body = max_body
        self._context = context
        self._observers = context.observers

    async def respond(self, route: str, request: web.Request) -> web.StreamResponse:
        """Answer one request, and tell the observers.

        A client that leaves cancels nothing: what was begun is finished.

        Args:
            route: As it stands in the record.

        Raises:
            web.HTTPException: It is the answer.
            ConnectionError: It ended with half of an answer sent, so the connection has to end.
        """
        if self.max_body is not None:
            request = limited(request, self.max_body)
        connection: Any = request.protocol  # To assert that it is ours would cost every request.
        connection.answer(request)
        delivery = HTTPRequest(request, route, identify(request))
        came = began = perf_counter()
        self.running += 1
        try:
            if self._body is not None:
                delivery.raw = await self._received(connection, request, self._body.required)
                began = perf_counter()
            outcome = await self._process(delivery)
            if outcome.error is not None and is_meant_to_end(request.task):
                # Asked to stop, drivers raise errors of their own: that is no failure either.
                raise asyncio.CancelledError from outcome.error
        except InvalidRequest as error:
            outcome = Outcome(Action.REJECT, error)
        except HandlerExit as error:
            outcome = await self._exited(error)
        except BaseException as error:
            stopped = isinstance(error, asyncio.CancelledError) and connection.last
            if stopped and is_event_stream(request):
                await request.writer.write_eof()
            connection.release()
            raise
        finally:
            self.running -= 1
        now = perf_counter()
        delivery.seconds = now - came
        return self._settled(connection, delivery, outcome, now - began)

    def _settled(
        self, connection: ClientConnection, delivery: HTTPRequest, outcome: Outcome, seconds: float
    ) -> web.StreamResponse:
        """The answer that an outcome is; raised if it is raised.

        The observers are told of it, or will be, where somebody may still change it on its way.
        """
        request = delivery.request
        raised: web.HTTPException | None = None
        if type(outcome.value) is web.Response and outcome.error is None:
            response: web.StreamResponse = outcome.value
        else:
            response, outcome = answer(outcome, self._status, request)
            if isinstance(response, web.HTTPException):
                # Its own text is not what is sent.
                raised, response = response, of_exception(response, request.method)
        delivery.answered(response)
        record = Settled(self.name, delivery.route, delivery, outcome, outcome.action, seconds)
        if (
            connection.begun is None
            and type(response) is web.Response
            # What is made here is.
            and ((raised is None and response is not outcome.value) or _is_sendable(response))
        ):
            notify(self._observers, record)
        else:
            connection.settled = delivery, partial(notify, self._observers, record)
        if request.writer.output_size and not (raised or response).prepared:
            raise ConnectionResetError("it ended with half of an answer sent")
        if raised is not None:
            raise raised
        return response

    async def _exited(self, error: HandlerExit) -> Outcome:
        """Have the process stop, and let the client know no more than of any failure."""
        await asyncio.wait([self._context.keep(_ended_by(error), f"{self.name} exit")])
        return Outcome(Action.REJECT, error)

    async def _received(
        self, connection: ClientConnection, request: web.Request, required: bool
    ) -> bytes:
        """The body of a request, as JSON if there is any.

        Raises:
            InvalidRequest: It is too large, too slow, broken, or of another type.
        """
        if hdrs.CONTENT_ENCODING in request.headers:
            _check_coding(request.headers[hdrs.CONTENT_ENCODING])
        try:
            content = request.content
            if content.is_eof() and not content.at_eof() and not self._takes_request:
                # All of it is here, and read() would take 2 µs to find that out.
                raw = content.read_nowait()
            else:
                async with connection.patiently():
                    raw = await request.read()
            if len(raw) > (limit := self.max_body or request.client_max_size):
                raise web.HTTPRequestEntityTooLarge(limit, len(raw))
        except web.HTTPRequestEntityTooLarge as error:
            text = f"the body is larger than {self.max_body or request.client_max_size} bytes"
            raise InvalidRequest(413, text) from error
        except TimeoutError as error:
            raise InvalidRequest(408, "the body did not come in time") from error
        except (web.RequestPayloadError, ConnectionError) as error:
            raise InvalidRequest(400, "the body is broken off, or encoded wrongly") from error
        if raw or required:
            _check_type(request, raw)
        return raw


def _is_sendable(response: web.Response) -> bool:
    """Whether there is no doubt; which header is wrong is found when it is sent."""
    headers = response.headers
    if not headers:
        return response.reason.isprintable()
    kind = headers.get(hdrs.CONTENT_TYPE)
    return (
        len(headers) == 1
        and type(kind) is str
        and kind.isprintable()
        and response.reason.isprintable()
    )


async def _ended_by(error: HandlerExit) -> None:
    """A task that ends like this stops the process."""
    raise error


def _check_coding(coding: str) -> None:
    if not is_supported(coding):
        raise InvalidRequest(415, UNSUPPORTED, headers=ACCEPTED)


def _check_type(request: web.Request, raw: bytes) -> None:
    if not raw:
        raise InvalidRequest(400, "the body is missing")
    if request.headers.get(hdrs.CONTENT_TYPE) == JSON:
        return
    found = request.content_type
    if found != JSON and not found.endswith("+json"):
        raise InvalidRequest(415, f"the body has to be {JSON}")
