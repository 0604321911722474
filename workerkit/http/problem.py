"""Error responses according to RFC 9457: `application/problem+json`."""

from collections.abc import Iterable, Mapping
from uuid import uuid4

from aiohttp import web

from workerkit.http.request import REQUEST_ID
from workerkit.logs import request_id
from workerkit.problem_details import PROBLEM, problem_details, title_of

# Headers that describe aiohttp's own body of an error.
_BODY_HEADERS = frozenset({"content-type", "content-length"})

_TOO_LONG, _TOO_MANY = "Maximum request body size", "Maximum number of form fields"
_UNKNOWN = "Unknown Expect"
EXPECTATIONS = "the only known value of the header Expect is 100-continue"


def problem(
    status: int,
    detail: str = "",
    *,
    parts: Iterable[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Return an error response.

    Its members are `type`, `title`, `status`, `request_id`, and if they are not empty `detail` and
    `errors`.

    Args:
        detail: Text for the client, without secrets and without anything that the client sent.
        parts: As in `InvalidRequest`.
        headers: Of the response, in addition to the content type.
    """
    body = problem_details(status, detail, parts=parts, request_id=request_id.get())
    all_headers = {**(headers or {}), "Content-Type": PROBLEM}
    response = web.Response(body=body, status=status, headers=all_headers)
    if status == 408:
        # The rest may still arrive, and would be read as the next request.
        response.force_close()
    return response


def exception_response(error: web.HTTPException, method: str) -> web.Response:
    """Convert an exception of aiohttp into a response; a body that was set explicitly is kept.

    Args:
        method: Of the request; the response to `OPTIONS` lists the methods of the route.
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
        return _unchanged(error)
    headers = {
        name: value for name, value in error.headers.items() if name.lower() not in _BODY_HEADERS
    }
    detail = "" if error.reason == title_of(error.status) else error.reason
    return _with_cookies(problem(error.status, detail, headers=headers), error)


def is_unknown_expectation(error: BaseException | None) -> bool:
    """Return whether aiohttp failed to report an unknown `Expect` because it is not UTF-8."""
    return isinstance(error, UnicodeEncodeError) and error.object.startswith(_UNKNOWN)


def last_response(
    status: int, detail: str = "", *, headers: Mapping[str, str] | None = None
) -> tuple[bytes, bytes]:
    """Return the head and the body of an error response after which the connection is closed.

    It works without a request; then it has a new request id.
    """
    id_ = request_id.get()
    # A view may have set the id to any value.
    is_valid = bool(id_) and id_.isascii() and id_.isprintable()
    token = None if is_valid else request_id.set(uuid4().hex)
    response = problem(status, detail)
    id_ = request_id.get()
    if token is not None:
        request_id.reset(token)
    assert isinstance(response.body, bytes)
    lines = (
        f"HTTP/1.1 {status} {title_of(status)}",
        f"Content-Type: {PROBLEM}",
        f"Content-Length: {len(response.body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
        f"{REQUEST_ID}: {id_}",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode(), response.body


def _unchanged(error: web.HTTPException) -> web.Response:
    # An exception may be raised several times; a response can be sent only once.
    response = web.Response(
        body=error.body, status=error.status, reason=error.reason, headers=error.headers
    )
    return _with_cookies(response, error)


def _with_cookies(response: web.Response, error: web.HTTPException) -> web.Response:
    # Cookies become headers only when the response is sent.
    if error.cookies:
        response.cookies.update(error.cookies)
    return response
