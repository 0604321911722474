"""What becomes of a request: an outcome turned into the answer that the client gets."""

import math
from typing import Any

from aiohttp import ClientConnectionResetError, web
from pydantic import BaseModel
from pydantic_core import to_json

from workerkit.codec import JSON, encode
from workerkit.delivery import Action, Outcome
from workerkit.errors import HandlerTimeout, InvalidRequest, Reject, Retry
from workerkit.http.problem import problem
from workerkit.http.raw_request import is_fault_of_body
from workerkit.http.return_type import BODILESS, STATUSES

_JSON = {"Content-Type": JSON}
_CLIENT_LEFT = 499  # As nginx has it; no client ever sees it.
UNREADABLE = "the body is malformed, broken off, or encoded wrongly"
"""What the client is told of a body that aiohttp could not read."""


def answer(
    outcome: Outcome, status: int, request: web.BaseRequest
) -> tuple[web.StreamResponse, Outcome]:
    """Make the answer to a request, and say what is settled by it.

    | outcome | answer |
    |---|---|
    | returned | its value as JSON; 204 for None |
    | an exception of aiohttp's | itself |
    | the request does not fit | 400, 413, 415 or 422 |
    | `Reject` | 422 with its reason |
    | `Retry` | 503 with `Retry-After` |
    | late | 504 |
    | anything else | 500 |

    Args:
        status: Of an answer that does not say.

    Returns:
        The answer, and the outcome as it is settled: an exception of aiohttp's below 500 is an
        answer like any other, and a value that cannot be written is a failure.
    """
    try:
        if outcome.error is not None:
            return _raised(outcome, outcome.error, request)
        return _returned(outcome.value, status), outcome
    except Exception as failure:
        # The value's own code may raise anything: serializers, computed fields.
        return problem(500), Outcome(Action.REJECT, failure)


def _raised(
    outcome: Outcome, error: Exception, request: web.BaseRequest
) -> tuple[web.StreamResponse, Outcome]:
    if isinstance(error, web.HTTPException):
        failed = error.status >= 500
        return error, Outcome(Action.REJECT, error) if failed else Outcome(Action.ACK, value=error)
    if isinstance(error, ClientConnectionResetError) and _has_left(request):
        # What a stream meets then: it has done what it could.
        return web.Response(status=_CLIENT_LEFT), Outcome(Action.ACK)
    if is_fault_of_body(error, request):
        error = InvalidRequest(400, UNREADABLE)
    action = Action.RETRY if isinstance(error, Retry) else Action.REJECT
    return _failed(outcome, error), Outcome(action, error, delay=outcome.delay)


def _has_left(request: web.BaseRequest) -> bool:
    """Whether the client has; clients of the handler's own raise the same."""
    return request.transport is None or request.transport.is_closing()


def _failed(outcome: Outcome, error: Exception) -> web.Response:
    if isinstance(error, InvalidRequest):
        return problem(error.status, str(error), parts=error.parts, headers=error.headers)
    if isinstance(error, Reject):
        return problem(422, error.reason)
    if isinstance(error, Retry):
        seconds = outcome.delay if error.after is None else error.after
        return problem(503, error.reason, headers={"Retry-After": str(math.ceil(seconds))})
    if isinstance(error, HandlerTimeout):
        return problem(504)
    return problem(500)


def _returned(value: object, status: int) -> web.StreamResponse:
    if isinstance(value, BaseModel) and status not in BODILESS:
        # The most frequent one; asking an abstract class such as the next takes half a µs.
        body = value.__pydantic_serializer__.to_json(value, by_alias=True)
        return web.Response(body=body, status=status, headers=_JSON)
    if isinstance(value, web.StreamResponse):
        return value
    if type(value) is tuple:
        value, status = _with_status(value)
    elif value is None and status == 200:
        status = 204
    if value is None or status in BODILESS:
        return web.Response(status=status)
    # Text is JSON as well; only bytes go as they are.
    body, content_type = (to_json(value), JSON) if isinstance(value, str) else encode(value)
    return web.Response(body=body, status=status, headers={"Content-Type": content_type})


def _with_status(value: tuple[Any, ...]) -> tuple[Any, int]:
    if len(value) == 2 and _is_status(value[1]):
        return value
    raise TypeError(
        f"a view returned a tuple of {len(value)}: write (body, status) with a status of 200 to "
        "599, or a list for a JSON array"
    )


def _is_status(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in STATUSES


def is_event_stream(request: web.Request) -> bool:
    """Whether a stream of Server-Sent Events is being sent in answer."""
    asked = "text/event-stream" in request.headers.get("Accept", "")
    return asked and request.writer.output_size > 0
