"""The views of the API: the processes, what operators do with them, and audit records."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar

from aiohttp import web
from pydantic import Field, ValidationError

from workerkit.console.access import OPERATOR
from workerkit.console.commands import ADMIN_ACTIONS
from workerkit.console.live import Live
from workerkit.console.model import (
    AuditRecord,
    Command,
    CommandReport,
    FleetView,
    Me,
    Operator,
    Role,
)
from workerkit.console.reports import ProcessReport
from workerkit.console.sources import Agent
from workerkit.errors import ConnectionLost, InvalidRequest, WorkerkitError
from workerkit.http.view import HTTPView
from workerkit.interceptor import Call, Interceptor
from workerkit.safe_text import Redact, cleaner, one_line

API = "/api/v1"

Execute = Callable[[Command, Operator], Awaitable[CommandReport]]
Links = Callable[[web.Request], Mapping[str, str]]


class ConsoleView(HTTPView, abstract=True):
    """Base of all views of the API.

    Attributes:
        role: That a client needs.
        problems: Statuses of its errors, beside those that every view has.
    """

    timeout: ClassVar[float | None] = 60.0
    max_body = 64 * 1024
    # Clients on this machine need no token unless one is set.
    security = ["token", {}]
    role: ClassVar[Role] = "view"
    problems: ClassVar[Mapping[int, str]] = {}


class MeView(ConsoleView):
    """The client itself."""

    name = "me"
    routes = [f"{API}/me"]

    def __init__(self, me: Callable[[Operator], Me], links: Links) -> None:
        self._me = me
        self._links = links

    async def get(self, request: web.Request) -> Me:
        """Who the client is, and what it may do."""
        me = self._me(operator_of(request))
        return me.model_copy(update={"links": dict(self._links(request))})


class FleetStateView(ConsoleView):
    """All processes."""

    name = "fleet"
    routes = [f"{API}/fleet"]

    def __init__(self, view: Callable[[], Awaitable[FleetView]]) -> None:
        self._view = view

    async def get(self) -> FleetView:
        """The state of all processes."""
        return await self._view()


class LiveView(ConsoleView):
    """All processes, as a stream."""

    name = "live"
    routes = [f"{API}/live"]
    timeout = None
    problems = {503: "There are too many clients, or the process stops"}

    def __init__(self, live: Live) -> None:
        self._live = live

    async def get(self, request: web.Request) -> web.StreamResponse:
        """The state of all processes, every 2 s, as Server-Sent Events with the name `fleet`."""
        return await self._live.respond(request)


class ProcessView(ConsoleView):
    """This process."""

    name = "process"
    routes = [f"{API}/process"]

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def get(self) -> ProcessReport:
        """The state of this process alone."""
        return self._agent.report()


class CommandView(ConsoleView):
    """Changes of running processes."""

    name = "commands"
    routes = [f"{API}/commands"]
    role = "operate"

    def __init__(self, execute: Execute) -> None:
        self._execute = execute

    async def post(self, command: Command, request: web.Request) -> CommandReport:
        """Change one, some or all processes, until they end.

        Log levels and draining need the role admin, the others operate.
        """
        operator = operator_of(request)
        if command.action in ADMIN_ACTIONS:
            require_admin(operator)
        return await self._execute(command, operator)


class AuditView(ConsoleView):
    """What operators have done."""

    name = "audit"
    routes = [f"{API}/audit"]

    def __init__(self, records: Callable[[], Sequence[AuditRecord]]) -> None:
        self._records = records

    async def get(
        self, limit: Annotated[int, Field(ge=1, le=1000)] = 1000
    ) -> Sequence[AuditRecord]:
        """What operators have done through this process, the newest first."""
        return self._records()[:limit]


def operator_of(request: web.Request) -> Operator:
    """Return who sent a request."""
    return request[OPERATOR]


def require_admin(operator: Operator) -> None:
    """Check that an operator has the role admin.

    Raises:
        InvalidRequest: It has another one.
    """
    if operator.role != "admin":
        raise InvalidRequest(403, f"this needs the role admin; yours is {operator.role}")


def problems_of_errors(redact: Redact | None) -> Interceptor:
    """Return an interceptor that turns errors of what views call into problems.

    | error | status |
    |---|---|
    | with a status, such as those about dead letters | that |
    | `KeyError` | 404 |
    | `ValueError` | 422 |
    | `ConnectionLost` | 502 |
    """
    clean = cleaner(redact)

    @asynccontextmanager
    async def intercept(call: Call) -> AsyncIterator[None]:
        try:
            yield
        except InvalidRequest:
            raise
        except ConnectionLost as error:
            raise InvalidRequest(502, one_line(clean(str(error)))) from error
        except WorkerkitError as error:
            status = getattr(error, "status", None)
            if not isinstance(status, int) or status not in range(400, 600):
                raise
            raise InvalidRequest(status, one_line(clean(str(error)))) from error
        except KeyError as error:
            text = error.args[0] if error.args else ""
            raise InvalidRequest(404, one_line(clean(str(text)))) from error
        except ValueError as error:
            if isinstance(error, ValidationError | UnicodeError):
                raise  # An error in a program; its text contains the input.
            raise InvalidRequest(422, one_line(clean(str(error)))) from error

    return intercept
