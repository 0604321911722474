"""Errors as RFC 9457 wants them: `application/problem+json`."""

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from aiohttp import web

from workerkit.http.request import REQUEST_ID
from workerkit.logs import request_id
from workerkit.safe_text import escape_json

PROBLEM = "application/problem+json"
# What aiohttp says of the same thing by itself.
_OF_THE_OLD_BODY = frozenset({"content-type", "content-length"})

_TOO_LONG, _TOO_MANY = "Maximum request body size", "Maximum number of form fields"
_UNKNOWN = "Unknown Expect"
EXPECTATIONS = "the header Expect may say 100-continue"


def problem(
    status: int,
    detail: str = "",
    *,
    parts: Iterable[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Make the answer to a request that was not done.

    Its members are `type`, `title`, `status`, `request_id`, and where there is something to say
    `detail` and `errors`.

    Args:
        detail: For the client: no secrets, nothing of what it sent.
        parts: As in `InvalidRequest`.
        headers: Beside that of the content type.
    """
    body: dict[str, Any] = {"type": "about:blank", "title": _title(status), "status": status}
    if detail:
        body["detail"] = detail
    if errors := [dict(each) for each in parts]:
        body["errors"] = errors
    if current := request_id.get():
        body["request_id"] = current
    told = {**(headers or {}), "Content-Type": PROBLEM}
    # Unlike `to_json` it takes lone surrogates, and what it writes is safe to show on a terminal.
    text = escape_json(json.dumps(body, separators=(",", ":")))
    response = web.Response(body=text.encode(), status=status, headers=told)
    if status == 408:
        # The rest may still come, and would be read as the next request.
        response.force_close()
    return response


def of_exception(error: web.HTTPException, method: str) -> web.Response:
    """Turn an exception of aiohttp's into an answer; one that brings a body of its own keeps it.

    Args:
        method: Of the request; `OPTIONS` of a route gets the methods that it has.
    """
    if isinstance(error, web.HTTPMethodNotAllowed):
        error.headers["Allow"] = allowed = ", ".join(sorted({*error.allowed_methods, "OPTIONS"}))
        if method == "OPTIONS":
            return web.Response(status=204, headers={"Allow": allowed})
    if isinstance(error, web.HTTPRequestEntityTooLarge) and _TOO_LONG in (error.text or ""):
        return problem(413, "the body is too large")
    if isinstance(error, web.HTTPRequestEntityTooLarge) and _TOO_MANY in (error.text or ""):
        return problem(413, "the form has too many fields")
    if isinstance(error, web.HTTPExpectationFailed) and _UNKNOWN in (error.text or ""):
        return problem(417, EXPECTATIONS)
    if error.status < 400 or error.text != f"{error.status}: {error.reason}":
        return _as_it_is(error)
    headers = {
        name: value for name, value in error.headers.items() if name.lower() not in _OF_THE_OLD_BODY
    }
    detail = "" if error.reason == _title(error.status) else error.reason
    return _with_cookies(problem(error.status, detail, headers=headers), error)


def is_unknown_expectation(error: BaseException | None) -> bool:
    """Whether aiohttp could not write that it does not know an `Expect`, because it is no UTF-8."""
    return isinstance(error, UnicodeEncodeError) and error.object.startswith(_UNKNOWN)


def last_answer(
    status: int, detail: str = "", *, headers: Mapping[str, str] | None = None
) -> tuple[bytes, bytes]:
    """Write a problem as head and body, for a connection that is closed after it.

    It needs no request. Without one, it gets an id of its own.
    """
    known = request_id.get()
    # A view may have set it to anything.
    sound = bool(known) and known.isascii() and known.isprintable()
    token = None if sound else request_id.set(uuid4().hex)
    answer = problem(status, detail)
    known = request_id.get()
    if token is not None:
        request_id.reset(token)
    assert isinstance(answer.body, bytes)
    lines = (
        f"HTTP/1.1 {status} {_title(status)}",
        f"Content-Type: {PROBLEM}",
        f"Content-Length: {len(answer.body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
        f"{REQUEST_ID}: {known}",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode(), answer.body


def _as_it_is(error: web.HTTPException) -> web.Response:
    # An exception may be raised again and again, an answer can be sent only once.
    response = web.Response(
        body=error.body, status=error.status, reason=error.reason, headers=error.headers
    )
    return _with_cookies(response, error)


def _with_cookies(response: web.Response, error: web.HTTPException) -> web.Response:
    # They are no headers before the answer is sent.
    if error.cookies:
        response.cookies.update(error.cookies)
    return response


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
