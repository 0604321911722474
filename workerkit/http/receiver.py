"""Answers the requests for one method of a view."""

import asyncio
from time import perf_counter

from aiohttp import ClientConnectionResetError, web

from workerkit.codec import JSON
from workerkit.delivery import Action, Outcome
from workerkit.endpoint import Endpoint
from workerkit.errors import HandlerExit, InvalidRequest
from workerkit.http.answer import answer
from workerkit.http.request import HTTPRequest
from workerkit.http.signature import RequestSignature
from workerkit.observe import Settled, notify
from workerkit.wire import Context

_CLIENT_LEFT = 499  # As nginx has it; no client ever sees it.


class Receiver:
    """Answers the requests for one method of a view.

    Args:
        status: Of an answer that does not say.
        max_body: Bytes of a body; None leaves it to the server.

    Attributes:
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
        self._endpoint = endpoint
        self._body = signature.body
        self._status = status
        self._max_body = max_body
        self._context = context

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, and tell the observers.

        A client that leaves cancels nothing: what was begun is finished.

        Raises:
            web.HTTPException: It is the answer.
            ConnectionError: It ended with half of an answer sent, so the connection has to end.
        """
        if self._max_body is not None:
            request = request.clone(client_max_size=self._max_body)
        delivery = HTTPRequest(request)
        began = perf_counter()
        self.running += 1
        try:
            outcome = await self._process(delivery)
        finally:
            self.running -= 1
        if isinstance(outcome.error, ClientConnectionResetError):
            # What a stream meets when its client has left: it has done what it could.
            outcome = Outcome(Action.ACK, value=web.Response(status=_CLIENT_LEFT))
        response, settled = answer(outcome, self._status)
        seconds = perf_counter() - began
        delivery.status = response.status
        if isinstance(response, web.Response):
            delivery.response_size = _size(response)
        record = Settled(self.name, delivery.route, delivery, settled, settled.action, seconds)
        notify(self._context.observers, record)
        if request.writer.output_size and not response.prepared:
            raise ConnectionResetError("it ended with half of an answer sent")
        if isinstance(response, web.HTTPException):
            raise response
        return response

    async def _process(self, delivery: HTTPRequest) -> Outcome:
        if self._body is not None:
            try:
                delivery.raw = await self._received(delivery.request, self._body.required)
            except InvalidRequest as error:
                return Outcome(Action.REJECT, error)
        try:
            return await self._endpoint.process(delivery)
        except HandlerExit as error:
            ending = self._context.keep(_ended_by(error), f"{self.name} exit")
            await asyncio.wait([ending])
            return Outcome(Action.REJECT, error)

    async def _received(self, request: web.Request, required: bool) -> bytes:
        """The body of a request, as JSON if there is any.

        Raises:
            InvalidRequest: It is too large, too slow, broken, or of another type.
        """
        limit = request.client_max_size
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        try:
            if request.content.is_eof():
                raw = await request.read()
            else:
                async with asyncio.timeout(self._context.settings.http.read_timeout):
                    raw = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise _too_large(limit) from error
        except TimeoutError as error:
            raise InvalidRequest(408, "the body did not come in time") from error
        except (web.RequestPayloadError, ConnectionError) as error:
            raise InvalidRequest(400, "the body is broken off, or encoded wrongly") from error
        if raw or required:
            _check_type(request.content_type, bool(raw))
        return raw


async def _ended_by(error: HandlerExit) -> None:
    """A task that ends like this stops the process."""
    raise error


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(413, f"the body is larger than {limit} bytes")


def _check_type(found: str, there: bool) -> None:
    if not there:
        raise InvalidRequest(400, "the body is missing")
    if found != JSON and not found.endswith("+json"):
        raise InvalidRequest(415, f"the body has to be {JSON}")


def _size(response: web.Response) -> int | None:
    body = response.body
    return len(body) if isinstance(body, bytes | bytearray) else None if body else 0
