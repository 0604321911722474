"""Cross-Origin Resource Sharing: which pages of other sites may use the views.

The protocol is that of the Fetch standard, section 3.2. It protects users of browsers; it does not
protect the views, which any other client can reach.
"""

import re
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from workerkit.config.sections import CORSSettings
from workerkit.http.problem import problem
from workerkit.http.request import assign_id

_ANY = "*"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PREFLIGHT_VARY = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class CORS:
    """Adds the headers to responses, and answers preflight requests."""

    def __init__(self, settings: CORSSettings) -> None:
        self._settings = settings
        self._any = _ANY in settings.origins
        self._methods = frozenset(settings.methods)
        self._headers = frozenset(each.lower() for each in settings.headers)
        self._exposed = ", ".join(settings.expose)
        patterns = [_pattern(each) for each in settings.origins]
        self._origins = re.compile("|".join(patterns))

    def add_headers(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Add the headers to a response, errors included; a second call has no effect."""
        headers = response.headers
        if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in headers:
            return
        if not self._any:
            # Also where the origin is not allowed, or missing: caches keep these responses apart.
            _vary(response, hdrs.ORIGIN)
        if (origin := self._allowed_origin(request)) is None:
            return
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        if self._settings.cookies:
            headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        if self._exposed and hdrs.ACCESS_CONTROL_EXPOSE_HEADERS not in headers:
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = self._exposed

    def answering(self, answer: Answer) -> Answer:
        """Return a function that answers preflight requests itself, and others with *answer*."""

        async def respond(request: web.Request) -> web.StreamResponse:
            is_preflight = (
                request.method == hdrs.METH_OPTIONS
                and hdrs.ORIGIN in request.headers
                and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
            )
            return self._preflight(request) if is_preflight else await answer(request)

        return respond

    def _preflight(self, request: web.Request) -> web.Response:
        """Return the answer to a browser that asks before it sends a request.

        It does not depend on the path: the request itself may still get a 404 or a 405.
        """
        assign_id(request)
        wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD, "")
        sent = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        names = [name for each in sent.split(",") if (name := each.strip())]
        refused = ""
        if self._allowed_origin(request) is None:
            refused = "pages of this origin may not use the server"
        elif wanted not in self._methods:
            refused = "pages of other origins may not use this method"
        elif any(not self._allows(name) for name in names):
            refused = "pages of other origins may not send one of these headers"
        if refused:
            return problem(403, refused, headers={str(hdrs.VARY): _PREFLIGHT_VARY})
        response = web.Response(status=204)
        response.headers[hdrs.VARY] = _PREFLIGHT_VARY
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = ", ".join(self._settings.methods)
        if names:
            # Not `*`, which does not include Authorization.
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = ", ".join(names)
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(self._settings.max_age)
        return response

    def _allowed_origin(self, request: web.BaseRequest) -> str | None:
        """Return the value of `Access-Control-Allow-Origin`; None for an origin without access."""
        # A head that aiohttp cannot parse has a plain dict instead of these headers, without any.
        if hdrs.ORIGIN not in request.headers or len(request.headers.getall(hdrs.ORIGIN)) != 1:
            return None
        if self._any:
            return _ANY
        origin = request.headers[hdrs.ORIGIN]
        return origin if self._origins.fullmatch(origin) else None

    def _allows(self, name: str) -> bool:
        if not _TOKEN.fullmatch(name):
            return False
        return _ANY in self._headers or name.lower() in self._headers


def _pattern(origin: str) -> str:
    """Return the regular expression of an origin; `*` stands for labels of a host name."""
    return re.escape(origin).replace(r"\*", r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


def _vary(response: web.StreamResponse, name: str) -> None:
    found = response.headers.getall(hdrs.VARY, [])
    names = [each.strip().lower() for line in found for each in line.split(",")]
    if name.lower() not in names and _ANY not in names:
        response.headers[hdrs.VARY] = ", ".join([*found, name])
