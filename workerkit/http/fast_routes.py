"""Find the view of a request whose path is written as one of the routes is.

aiohttp's router takes a path apart and asks its resources one after the other, each in a coroutine
of its own. Where a route has no parts in braces a dictionary says the same, for 1.6 µs of CPU less
per request; all other requests stay aiohttp's.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from aiohttp import hdrs, web
from aiohttp.web_urldispatcher import PlainResource
from yarl import URL

Answer = Callable[[Any], Awaitable[web.StreamResponse]]


class _Match(web.UrlMappingMatchInfo):
    """One for all requests of a route. It is empty, and stays so."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        resource = self.route.resource
        path = "" if resource is None else resource.canonical
        raise TypeError(
            f"match_info of {path!r} is read-only; write into the request instead: request[...]"
        )

    __delitem__ = __ior__ = __setitem__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


_END = re.compile("[?#]")

Found = tuple[_Match, Answer]


def route_of(request: web.BaseRequest) -> str:
    """The route of a request as it is declared; empty where its path is that of none."""
    # What is no HTTP request was never compared with a route.
    match: web.UrlMappingMatchInfo | None = getattr(request, "_match_info", None)
    if match is None:
        return ""
    if match.route.resource is not None:
        return match.route.resource.canonical
    if not isinstance(match.http_exception, web.HTTPMethodNotAllowed) or not match.apps:
        return ""
    path = request.rel_url.raw_path
    for resource in match.apps[-1].router.resources():
        info = resource.get_info()
        pattern = info.get("pattern")
        if info.get("path") == path or (pattern is not None and pattern.fullmatch(path)):
            return resource.canonical
    return ""


_NOTHING: Mapping[str, Found] = {}


class _Asked(NamedTuple):
    """What the router looks at of a request."""

    method: str
    rel_url: URL


class FastRoutes:
    """The routes without parts in braces of an application that has no middlewares.

    Args:
        application: It gets no more routes.
        otherwise: Answers the requests that are not found here.
    """

    def __init__(self, application: web.Application, otherwise: Answer) -> None:
        self._application = application
        self._otherwise = otherwise
        self._known: dict[str, dict[str, Found]] = {}

    async def learn(self) -> None:
        """Ask the router once about each of them: another route may come before it."""
        router = self._application.router
        for route in router.routes():
            resource = route.resource
            # What follows a `?` or `#` is no path.
            if not isinstance(resource, PlainResource) or _END.search(path := resource.canonical):
                continue
            asked: Any = _Asked(route.method, URL.build(path=path, encoded=True))
            if (await router.resolve(asked)).route is route:
                match = _Match({}, route)
                match.add_app(self._application)
                match.freeze()
                handler: Any = route.handler
                self._known.setdefault(path, {})[route.method] = match, handler

    def respond(self, request: web.Request) -> Awaitable[web.StreamResponse]:
        """Answer a request."""
        found = self._known.get(request.raw_path, _NOTHING).get(request.method)
        if found is None or hdrs.EXPECT in request.headers:
            return self._otherwise(request)
        request._match_info, handler = found
        return handler(request)
