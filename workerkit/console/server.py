"""The console on the ops port: its API, its live stream and its page."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from importlib.resources.abc import Traversable
from inspect import Parameter
from typing import Any, Literal, Protocol

from aiohttp import hdrs, web

from workerkit.codec import BUILT_IN
from workerkit.config.sections import OpenAPISettings
from workerkit.config.settings import WorkerSettings
from workerkit.console.access import Access
from workerkit.console.audit import Audit
from workerkit.console.letter_views import LetterDesk, desk_views
from workerkit.console.live import MOST_CLIENTS, Live
from workerkit.console.model import Command, CommandReport, FleetView, Me, Operator, Role
from workerkit.console.page import FILES, PageFiles
from workerkit.console.sources import Agent
from workerkit.console.views import (
    API,
    AuditView,
    CommandView,
    ConsoleView,
    FleetStateView,
    Links,
    LiveView,
    MeView,
    ProcessView,
    problems_of_errors,
)
from workerkit.http import openapi
from workerkit.http.listener import max_connections
from workerkit.http.page import OPENAPI, PAGE, api_pages
from workerkit.http.request import HTTPRequest
from workerkit.http.routes import Routes
from workerkit.http.view import HTTPOptions
from workerkit.observe import log_settled
from workerkit.options import resolve
from workerkit.problem_details import PROBLEM
from workerkit.safe_text import Redact
from workerkit.signature import Unresolved
from workerkit.tasks import run_all
from workerkit.transport import Context, Declared
from workerkit.version import __version__

log = logging.getLogger(__name__)

DOCUMENT = f"{API}{OPENAPI}"
DOCS = f"{API}{PAGE}"

_CLOSE_DEADLINE = 5.0
_OTHER_CONNECTIONS = 16  # That are left for probes and Prometheus, whatever number of tabs is open.
_TOKEN = {"type": "http", "scheme": "bearer", "description": "OPS__TOKEN, or that of another role"}
_PROBLEMS = {
    401: "The client needs a token, or its token is wrong",
    403: "The client may not do this",
    415: "The body has another content type",
    421: "The request is for another host",
    429: "The client has sent too many wrong tokens",
}


class FleetOverview(Protocol):
    """Shows and changes all processes.

    Attributes:
        app: The name of the application.
        interval: Seconds between two views.
    """

    app: str
    interval: float

    async def view(self) -> FleetView:
        """Return the current view."""

    async def execute(self, command: Command, operator: Operator) -> CommandReport:
        """Have a command executed by the processes that it names, or by all."""

    async def close(self) -> None:
        """Close the sources."""


class Console:
    """What the ops port serves for the console.

    Args:
        agent: Reports on this process; None if it runs no consumers.
        redact: The container's.
        folder: The files of the page; None for those of the package.
        guessable: People have chosen the tokens; see `Access`.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        overview: FleetOverview,
        desk: LetterDesk,
        audit: Audit,
        agent: Agent | None,
        redact: Redact | None,
        folder: Traversable | None = None,
        *,
        guessable: bool = True,
    ) -> None:
        self._settings = settings
        self._overview = overview
        self._desk = desk
        self._audit = audit
        self._agent = agent
        self._redact = redact
        self._page = PageFiles(folder)
        self._access = Access(settings.ops, self._variable, guessable=guessable)
        connections = max_connections(settings.ops.max_connections, "ops")
        left = max(connections - _OTHER_CONNECTIONS, connections // 2, 1)
        self._live = Live(overview.view, overview.interval, min(MOST_CLIENTS, left))
        self._routes = Routes()
        self._roles: dict[str, Role | None] = {DOCUMENT: None, DOCS: None}
        self._views: list[ConsoleView] = []
        self._handlers: dict[tuple[str, str], Callable[[web.Request], Awaitable[Any]]] = {}
        self._mounting = asyncio.Lock()
        self._is_mounted = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def live(self) -> Live:
        """The live stream."""
        return self._live

    @property
    def links(self) -> Mapping[str, str]:
        """Its pages beside that at the root, with their texts."""
        return {DOCS: "the API of the console", DOCUMENT: "the same as an OpenAPI document"}

    @property
    def middlewares(self) -> Sequence[Any]:
        """The middlewares of the port."""
        return [self._access.middleware(self._role_of)]

    def add_routes(self, application: web.Application, links: Links) -> None:
        """Add the API and the files of the page to an application.

        Signatures are read at the first request, because most processes get none: that takes 25 ms.

        Args:
            links: Returns the pages of the port that a client may see.
        """
        self._views = list(self._create_views(links))
        for view in self._views:
            for route in view.routes:
                self._roles[route] = view.role
                resource = application.router.add_resource(route)
                for verb in _verbs(view):
                    resource.add_route(verb, partial(self._respond, (route, verb)))
        for path, page in api_pages(self._document, API).items():
            self._handlers[path, hdrs.METH_GET] = page
            application.router.add_get(path, partial(self._respond, (path, hdrs.METH_GET)))
        application.router.add_get(FILES, self._page.file)

    async def document(self, request: web.Request) -> web.Response:
        """Respond with the page."""
        return await self._page.document(request)

    def enable(self, addresses: Sequence[Any]) -> None:
        """Note where the port listens.

        Args:
            addresses: Of its sockets, as `getsockname` returns them.
        """
        self._access.enable(addresses)
        self._page.enable(addresses if self._access.is_open else ())

    async def close(self) -> None:
        """End the live streams, stop the jobs, and close connections."""
        await self._live.close()
        calls = {"dead letters": self._desk.close(), "overview": self._overview.close()}
        for name, text in (await run_all(calls, _CLOSE_DEADLINE)).items():
            log.warning("console: not closed cleanly", extra={"what": name, "reason": text})
        self._routes.close()

    def _variable(self, field: str) -> str:
        prefix = self._settings.model_config.get("env_prefix", "")
        return f"{prefix}OPS__{field}".upper()

    def _role_of(self, request: web.Request) -> Role | None:
        """Return the role that a request needs; that to look also where there is nothing."""
        resource = request.match_info.route.resource
        return self._roles.get("" if resource is None else resource.canonical, "view")

    async def _respond(self, key: tuple[str, str], request: web.Request) -> web.StreamResponse:
        """Respond to a request for the API.

        Args:
            key: The route and the verb.
        """
        if not self._is_mounted:
            async with self._mounting:
                if not self._is_mounted:
                    await self._mount()
        response: web.StreamResponse = await self._handlers[key](request)
        return response

    async def _mount(self) -> None:
        endpoints = []
        for view in self._views:
            declared = declared_view(view, self._redact)
            endpoints.append(self._routes.endpoint(declared, view))
            await asyncio.sleep(0)  # Other callbacks of the event loop run in between.
        application = web.Application()
        self._routes.add(application, endpoints, self._context)
        for route in application.router.routes():
            assert route.resource is not None
            self._handlers[route.resource.canonical, route.method] = route.handler
        self._is_mounted = True

    def _create_views(self, links: Links) -> Iterator[ConsoleView]:
        yield MeView(self._me, links)
        yield FleetStateView(self._overview.view)
        yield LiveView(self._live)
        if self._agent is not None:
            yield ProcessView(self._agent)
        yield CommandView(self._execute)
        yield AuditView(self._audit.records)
        yield from desk_views(self._desk, self._overview.view)

    async def _execute(self, command: Command, operator: Operator) -> CommandReport:
        report = await self._overview.execute(command, operator)
        target = command.consumer or f"{len(command.processes or ()) or 'all'} processes"
        self._audit(operator, command.action, target, report.text)
        return report

    def _me(self, operator: Operator) -> Me:
        mode: Literal["read", "operate"] = (
            "read" if self._settings.ops.console == "read" else "operate"
        )
        return Me(operator=operator, mode=mode, app=self._overview.app, version=__version__)

    def _document(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        described = self._routes.declared
        found = openapi.document(
            described,
            OpenAPISettings(
                title=f"The console of {self._overview.app}",
                version=__version__,
                security_schemes={"token": _TOKEN},
            ),
        )
        for each in described:
            assert issubclass(each.consumer, ConsoleView)
            for route in each.consumer.routes:
                _describe(found["paths"][route], each.consumer)
        return found

    @cached_property
    def _context(self) -> Context:
        # Failures are logged; those of the console are not counted as those of views.
        return Context(
            settings=self._settings,
            observers=[log_settled],
            publisher=None,
            cursors=None,
            middlewares=(),
            redact=self._redact,
            codecs=BUILT_IN,
            changed=lambda: None,
            keep=self._keep,
        )

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Run a coroutine. One that raises does not stop the process: a client may cause it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("console: a request failed", exc_info=error, extra={"task": task.get_name()})


def _verbs(view: ConsoleView) -> Iterator[str]:
    if hasattr(view, "get"):
        yield from (hdrs.METH_GET, hdrs.METH_HEAD)
    if hasattr(view, "post"):
        yield hdrs.METH_POST


def declared_view(view: ConsoleView, redact: Redact | None) -> Declared:
    """Return the declaration of a view that exists already."""
    kind = type(view)
    # The live stream lasts for hours, and has no such errors.
    interceptors = () if kind is LiveView else (problems_of_errors(redact),)
    options = replace(resolve(HTTPOptions, kind, view.name, {}), interceptors=interceptors)
    signatures = kind.signatures(options, HTTPRequest, _nothing)
    return Declared(kind, options, signatures, lambda: view)


def _nothing(parameter: Parameter, type_: Any) -> Any:
    """Provide nothing: views of the console get all they need in their constructors."""
    raise Unresolved(f"{parameter.name} cannot be read from a request")


def _describe(item: dict[str, Any], view: type[ConsoleView]) -> None:
    """Add the errors of a view to its operations in the document, and what the stream sends."""
    problem = {"$ref": "#/components/schemas/problem-json"}
    for operation in item.values():
        responses = operation["responses"]
        for status, text in {**_PROBLEMS, **view.problems}.items():
            body = {PROBLEM: {"schema": problem}}
            responses.setdefault(str(status), {"description": text, "content": body})
        if view is LiveView:
            responses["200"] = {"description": "Events", "content": {"text/event-stream": {}}}
            responses.pop("4XX", None)
        operation["x-role"] = view.role
