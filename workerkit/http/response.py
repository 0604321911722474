"""Responses: to the outcome of a view, and to requests that no view could answer."""

import logging
import math
import re
from typing import Any

from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import BadHttpMethod, ContentEncodingError, LineTooLong
from pydantic import BaseModel
from pydantic_core import to_json

from workerkit.codec import JSON, encode
from workerkit.delivery import Action, Outcome
from workerkit.errors import HandlerTimeout, InvalidRequest, Reject, Retry
from workerkit.http.problem import EXPECTATIONS, exception_response, is_unknown_expectation, problem
from workerkit.http.raw_request import ACCEPTED, UNSUPPORTED, is_body_error
from workerkit.http.request import assign_id
from workerkit.http.return_type import BODILESS, STATUSES

log = logging.getLogger(__name__)

_JSON = {"Content-Type": JSON}
_CLIENT_CLOSED_REQUEST = 499  # nginx's status for it; no client ever gets it.
_UNREADABLE = "the body is malformed, truncated, or encoded wrongly"
# aiohttp's error quotes the line at which the parser stopped.
_REQUEST_LINE = re.compile(r"\n  b['\"][!#$%&'*+.^_`|~0-9A-Za-z-]+ \S+ HTTP/1\.[01]")


def outcome_response(
    outcome: Outcome, status: int, request: web.BaseRequest
) -> tuple[web.StreamResponse, Outcome]:
    """Create the response to a request, and return it with the outcome to report.

    | outcome | response |
    |---|---|
    | returned | its value as JSON; 204 for None |
    | an exception of aiohttp's | the exception itself |
    | the request is invalid | 400, 413, 415 or 422 |
    | `Reject` | 422 with its reason |
    | `Retry` | 503 with `Retry-After` |
    | the view took too long | 504 |
    | anything else | 500 |

    Args:
        status: Of a response that does not set one.

    Returns:
        The response, and the outcome to report: an exception of aiohttp's with a status below 500
        is a response like any other, and a value that cannot be serialized is a failure.
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
        # A stream whose client has disconnected: no failure.
        return web.Response(status=_CLIENT_CLOSED_REQUEST), Outcome(Action.ACK)
    if is_body_error(error, request):
        error = InvalidRequest(400, _UNREADABLE)
    action = Action.RETRY if isinstance(error, Retry) else Action.REJECT
    return _failed(outcome, error), Outcome(action, error, delay=outcome.delay)


def _has_left(request: web.BaseRequest) -> bool:
    """Return whether this client has disconnected: HTTP clients of a handler raise the same."""
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
        # The most frequent kind comes first: a check of an abstract class, such as the next one,
        # takes 0.5 µs.
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
    # A str becomes JSON as well; only bytes are sent as they are.
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
    """Return whether the response to this request is a stream of Server-Sent Events."""
    accepts_events = "text/event-stream" in request.headers.get("Accept", "")
    return accepts_events and request.writer.output_size > 0


def middleware_response(returned: object, request: web.BaseRequest) -> web.StreamResponse:
    """Return the response for what the outermost middleware returned or raised."""
    if isinstance(returned, web.HTTPException):
        return exception_response(returned, request.method)
    if isinstance(returned, web.StreamResponse):
        return returned
    log.error(
        "middleware failed: it has to return the response",
        extra={"path": request.path, "returned": type(returned).__qualname__},
    )
    return problem(500)


def error_response(
    request: web.BaseRequest, status: int, error: BaseException | None
) -> web.Response | web.StreamResponse:
    """Return the response to a malformed request, or for an exception that a middleware raised.

    Args:
        status: The one that aiohttp chose; 400 for a malformed request.
    """
    if status == 400:
        return malformed_response(request, error)
    if isinstance(error, Reject | Retry):
        return outcome_response(Outcome(Action.REJECT, error), status, request)[0]
    if is_unknown_expectation(error):
        return problem(417, EXPECTATIONS)
    if error is not None and (isinstance(error, ConnectionError) or is_body_error(error, request)):
        extra = {"client": request.remote, "error": type(error).__qualname__}
        log.info("the body cannot be read", extra=extra)
        return problem(400, _UNREADABLE)
    log.error("middleware failed", exc_info=error, extra={"path": request.path})
    return problem(status)


def malformed_response(request: web.BaseRequest, error: BaseException | None) -> web.Response:
    """Return the response to a malformed request; the connection is closed after it.

    Anybody on the network can send such a request, so it is logged at INFO.

    Args:
        error: The exception of aiohttp's parser.
    """
    assign_id(request)
    extra = {"client": request.remote, "error": type(error).__name__}
    if isinstance(error, ContentEncodingError) and "install" in error.message:
        log.info("unsupported content coding", extra=extra)
        response = problem(415, UNSUPPORTED, headers=ACCEPTED)
    elif isinstance(error, ContentEncodingError):
        log.info("the body cannot be read", extra=extra)
        response = problem(400, "the body does not match its Content-Encoding")
    elif isinstance(error, BadHttpMethod) and _REQUEST_LINE.search(error.message):
        log.info("unknown method", extra=extra)
        response = problem(501, "unknown method")
    else:
        log.info("malformed request", extra=extra)
        is_too_long = isinstance(error, LineTooLong)
        text = "a line of the head is too long" if is_too_long else "the request is malformed"
        response = problem(400, text)
    response.force_close()
    return response
