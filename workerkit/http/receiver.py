"""Receive the requests for one method of a view, and answer them."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any

from aiohttp import hdrs, web

from workerkit.codec import JSON
from workerkit.delivery import Action, Outcome
from workerkit.endpoint import Endpoint
from workerkit.errors import HandlerExit, InvalidRequest
from workerkit.http.connection import ClientConnection
from workerkit.http.etag import response_with_etag
from workerkit.http.form import RequestForm
from workerkit.http.form_reader import SPOOL, read_form
from workerkit.http.middleware import with_body_limit
from workerkit.http.problem import exception_response
from workerkit.http.raw_request import ACCEPTED, UNSUPPORTED, is_supported
from workerkit.http.request import HTTPRequest, assign_id
from workerkit.http.response import is_event_stream, outcome_response
from workerkit.http.signature import RequestSignature
from workerkit.http.verifier import Authenticator
from workerkit.observe import Settled, notify
from workerkit.tasks import is_meant_to_end
from workerkit.transport import Context

_Read = Callable[[ClientConnection, HTTPRequest], Awaitable[None]]


class RequestReceiver:
    """The receiver of the requests for one method of a view.

    Args:
        status: Of a response that does not set one.
        max_body: Bytes of a request's body; None for the limit of the server.
        authenticator: Verifies clients; None if any may send requests.
        etag: Whether values that the method returns get an `ETag`.

    Attributes:
        max_body: The same.
        takes_form: Whether `respond_to_form` has to answer.
        running: Number of requests that are being handled.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        signature: RequestSignature,
        status: int,
        max_body: int | None,
        context: Context,
        authenticator: Authenticator | None = None,
        *,
        etag: bool = False,
    ) -> None:
        self.name = endpoint.name
        self.running = 0
        self._process = endpoint.process
        self._form = signature.body if isinstance(signature.body, RequestForm) else None
        self.takes_form = self._form is not None
        self._required = signature.body is not None and signature.body.required
        self._takes_request = signature.takes_request
        # Chosen once: a request whose view needs nothing before the call pays for one check.
        self._read: _Read | None = None
        if signature.body is not None:
            self._read = self._read_body if self._form is None else self._read_form
        self._read_next, self._authenticator = self._read, authenticator
        if authenticator is not None:
            self._read = self._authenticate
        self._response_of = response_with_etag if etag else outcome_response
        self._status = status
        self.max_body = max_body
        self._context = context
        self._observers = context.observers

    async def respond(self, route: str, request: web.Request) -> web.StreamResponse:
        """Answer one request, and notify the observers.

        A request is handled to its end even if its client disconnects.

        Args:
            route: The route in the observers' record.

        Raises:
            web.HTTPException: It is the response.
            ConnectionError: The handler ended after sending a part of the response, so the
                connection has to be closed.
        """
        if self.max_body is not None:
            request = with_body_limit(request, self.max_body)
        connection: Any = request.protocol  # An assertion of its type would cost each request.
        connection.enter_view(request)
        delivery = HTTPRequest(request, route, assign_id(request))
        arrived = started = perf_counter()
        self.running += 1
        try:
            if self._read is not None:
                await self._read(connection, delivery)
                started = perf_counter()
            outcome = await self._process(delivery)
            if outcome.error is not None and is_meant_to_end(request.task):
                # Drivers raise errors of their own when they are cancelled: that is no failure.
                raise asyncio.CancelledError from outcome.error
        except HandlerExit as error:
            outcome = await self._exit(error)
        except Exception as error:
            # The request is invalid, or could not be verified or read.
            outcome = Outcome(Action.REJECT, error)
        except BaseException as error:
            stops = isinstance(error, asyncio.CancelledError) and connection.close_after_response
            if stops and is_event_stream(request):
                await request.writer.write_eof()
            connection.leave_request()
            raise
        finally:
            self.running -= 1
        now = perf_counter()
        delivery.seconds = now - arrived
        return self._respond(connection, delivery, outcome, now - started)

    def _respond(
        self, connection: ClientConnection, delivery: HTTPRequest, outcome: Outcome, seconds: float
    ) -> web.StreamResponse:
        """Return the response to an outcome, or raise it if the view raised it.

        The observers are notified immediately, or after sending if middlewares may still change
        the response.
        """
        request = delivery.request
        raised: web.HTTPException | None = None
        if type(outcome.value) is web.Response and outcome.error is None:
            response: web.StreamResponse = outcome.value
        else:
            response, outcome = self._response_of(outcome, self._status, request)
            if isinstance(response, web.HTTPException):
                # The text of the exception is not sent.
                raised, response = response, exception_response(response, request.method)
        delivery.set_response(response)
        record = Settled(self.name, delivery.route, delivery, outcome, outcome.action, seconds)
        if (
            connection.middleware_request is None
            and type(response) is web.Response
            # A response that was created here is sendable.
            and ((raised is None and response is not outcome.value) or _is_sendable(response))
        ):
            notify(self._observers, record)
        else:
            connection.unreported = delivery, partial(notify, self._observers, record)
        if request.writer.output_size and not (raised or response).prepared:
            raise ConnectionResetError("the handler ended after sending half of a response")
        if raised is not None:
            raise raised
        return response

    async def _exit(self, error: HandlerExit) -> Outcome:
        """Stop the process; the client gets the same response as for any failure."""
        await asyncio.wait([self._context.keep(_raise_exit(error), f"{self.name} exit")])
        return Outcome(Action.REJECT, error)

    async def respond_to_form(self, route: str, request: web.Request) -> web.StreamResponse:
        """Answer a request with a form, and remove its files; as `respond`."""
        if self.max_body is not None:
            request = with_body_limit(request, self.max_body)
        try:
            return await self.respond(route, request)
        finally:
            if (spool := request.get(SPOOL)) is not None:
                spool.close()

    async def _authenticate(self, connection: ClientConnection, delivery: HTTPRequest) -> None:
        """Verify the client before anything of the body is read."""
        assert self._authenticator is not None
        await self._authenticator.check(delivery.request)
        if self._read_next is not None:
            await self._read_next(connection, delivery)

    async def _read_form(self, connection: ClientConnection, delivery: HTTPRequest) -> None:
        assert self._form is not None
        request = delivery.request
        if hdrs.CONTENT_ENCODING in request.headers:
            _check_coding(request.headers[hdrs.CONTENT_ENCODING])
        limit = self.max_body or request.client_max_size
        await read_form(connection, request, self._form, limit)

    async def _read_body(self, connection: ClientConnection, delivery: HTTPRequest) -> None:
        """Read the body of a request, after a check of its content type.

        Raises:
            InvalidRequest: The body is too large, too slow, malformed, or of another type.
        """
        request = delivery.request
        if hdrs.CONTENT_ENCODING in request.headers:
            _check_coding(request.headers[hdrs.CONTENT_ENCODING])
        try:
            content = request.content
            if content.is_eof() and not content.at_eof() and not self._takes_request:
                # The whole body has arrived; read() would take 2 µs to find that out.
                raw = content.read_nowait()
            else:
                async with connection.body_timeout:
                    raw = await request.read()
            if len(raw) > (limit := self.max_body or request.client_max_size):
                raise web.HTTPRequestEntityTooLarge(limit, len(raw))
        except web.HTTPRequestEntityTooLarge as error:
            text = f"the body is larger than {self.max_body or request.client_max_size} bytes"
            raise InvalidRequest(413, text) from error
        except TimeoutError as error:
            raise InvalidRequest(408, "the body did not arrive in time") from error
        except (web.RequestPayloadError, ConnectionError) as error:
            raise InvalidRequest(400, "the body is truncated, or encoded wrongly") from error
        if raw or self._required:
            _check_type(request, raw)
        delivery.raw = raw


def _is_sendable(response: web.Response) -> bool:
    """Return whether a response can certainly be sent; others are checked when they are sent."""
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


async def _raise_exit(error: HandlerExit) -> None:
    """Raise *error*: a task that ends with it stops the process."""
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
