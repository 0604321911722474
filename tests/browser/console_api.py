"""A server with the console's page and an API with sample data, for tests and for design.

Run it with `python -m tests.browser.console_api [--port 8085] [--token SECRET]`.
"""

import argparse
import asyncio
import math
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import ValidationError

from tests.browser.sample_letters import SampleLetters, json_of, responding
from workerkit.console.model import (
    AuditRecord,
    Command,
    CommandReport,
    CommandResult,
    ConnectionRow,
    ConsumerOfProcess,
    ConsumerRow,
    FleetView,
    Me,
    Operator,
    ProcessRow,
    QueueRow,
    Role,
    RouteRow,
    Totals,
)
from workerkit.console.reports import FailureReport, StreamReport, TaskReport
from workerkit.control import Ability

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
POINTS = 150
ABILITIES: Mapping[str, Sequence[Ability]] = {
    "amqp": ("pause", "concurrency", "prefetch"),
    "sse": ("pause", "concurrency"),
    "periodic": ("pause", "run"),
}
OPERATOR = web.RequestKey("operator", Operator)
PROCESSES = ("9f01", "9f02", "9f03", "9f04")

# name, kind, source, rate, p95, share that fails, concurrency, prefetch, attempts, waiting, dead
CONSUMERS: Sequence[tuple[str, str, str, float, float, float, int | None, int | None, int, int]] = (
    ("OrderPlaced", "amqp", "orders.placed", 84.0, 0.038, 0.004, 40, 80, 5, 12),
    ("PaymentCaptured", "amqp", "payments.captured", 41.0, 0.120, 0.031, 40, 40, 5, 187),
    ("InvoiceRequested", "amqp", "invoices", 6.2, 0.74, 0.0, 8, 16, 3, 3),
    ("EmailQueued", "amqp", "mail.outgoing", 132.0, 0.21, 0.012, 80, 160, 8, 1840),
    ("StockChanged", "amqp", "stock.changes", 310.0, 0.006, 0.0, 20, 200, 3, 0),
    ("SearchIndex", "amqp", "search.index", 58.0, 0.055, 0.0, 16, 64, 5, 41),
    ("AuditTrail", "amqp", "audit", 402.0, 0.002, 0.0, None, 500, 1, 0),
    ("LegacyImport", "amqp", "legacy.import", 0.0, 0.0, 0.0, 4, 4, 3, 5210),
    ("PriceFeed", "sse", "https://prices.example/stream", 22.0, 0.004, 0.0, 4, None, 3, 0),
    ("FraudSignals", "sse", "https://fraud.example/events", 0.8, 0.31, 0.02, 4, None, 5, 0),
    ("Orders", "http", "/orders", 64.0, 0.046, 0.002, None, None, 1, 0),
    ("CloseDay", "periodic", "every day at 23:30", 0.0, 4.2, 0.0, 1, None, 1, 0),
    ("RefreshRates", "periodic", "every 60 s", 0.02, 0.9, 0.0, 1, None, 1, 0),
)
ERRORS = (
    ("PaymentCaptured", "Timeout", "the payment provider did not answer within 5 s", "pay.py:88"),
    ("EmailQueued", "SMTPServerDisconnected", "Connection unexpectedly closed", "mail.py:41"),
    ("OrderPlaced", "InvalidBody", "lines.0.amount: Input should be greater than 0", ""),
    ("FraudSignals", "KeyError", "'score'", "fraud.py:17"),
)


class Refusal(Exception):
    """Answered as a problem."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}


class ConsoleApi:
    """Sample data of four processes, which change with time and with commands.

    Attributes:
        tokens: The role of each token; without any, everybody is admin.
        silent: The ids of processes that do not answer.
        down: Every request is answered with 503, and the streams end.
        failures: The last failures, the newest first.
        consumers: The names of the consumers that exist.
        commands: Those that were received.
    """

    def __init__(self, *, interval: float = 2.0, tokens: Mapping[str, Role] | None = None) -> None:
        self.interval = interval
        self.tokens = dict(tokens or {})
        self.mode = "operate"
        self.silent: set[str] = set()
        self.down = False
        self.has_metrics = True
        self.commands: list[Command] = []
        self.audit: list[AuditRecord] = []
        self.paused: dict[str, set[str]] = {"LegacyImport": set(PROCESSES)}
        self.values: dict[tuple[str, str, str], int] = {}
        self.levels = dict.fromkeys(PROCESSES, "INFO")
        self.draining: set[str] = set()
        self.rows = list(CONSUMERS)
        self.letters = SampleLetters()
        self.failures: list[FailureReport] = [self._failure(each) for each in range(0, 900, 37)]
        self._refused = 0
        self._started = datetime.now(UTC) - timedelta(hours=52, minutes=11)

    # ---- What it shows ----

    def fleet(self) -> FleetView:
        """Return all of it as of now."""
        now = datetime.now(UTC)
        consumers = [self._consumer(each, now) for each in self.rows]
        processes = [self._process(each, now, consumers) for each in PROCESSES]
        rates = [sum(each) for each in zip(*(row.rates for row in consumers), strict=True)]
        if rates and random.random() < 0.05 * self.interval:
            self.failures = [self._failure(0), *self.failures][:50]
        problems = [f"{each} does not answer." for each in sorted(self.silent)]
        return FleetView(
            app="shop",
            time=now,
            interval=self.interval,
            asked=len(PROCESSES),
            answered=len(PROCESSES) - len(self.silent),
            problems=problems,
            totals=Totals(
                handled=sum(row.handled for row in consumers),
                failed=sum(row.failed for row in consumers),
                retried=sum(row.retried for row in consumers),
                dead=sum(row.dead for row in consumers),
                in_flight=sum(row.in_flight for row in consumers),
                waiting=sum(queue.ready or 0 for row in consumers for queue in row.queues),
                letters=sum(queue.dead or 0 for row in consumers for queue in row.queues),
                processes=len(PROCESSES) - len(self.silent),
                rate=rates[-1] if rates else 0.0,
                rates=rates,
                failures=[
                    each * (0.011 + 0.05 * _wave("burst", now, index, 40) ** 12)
                    for index, each in enumerate(reversed(rates))
                ][::-1],
            ),
            consumers=consumers,
            processes=processes,
            connections=self._connections(),
            failures=self.failures,
        )

    def _consumer(self, row: Any, now: datetime) -> ConsumerRow:
        name, kind, source, rate, p95, failing, concurrency, prefetch, attempts, waiting = row
        paused = self.paused.get(name, set())
        part = 1 - len(paused) / len(PROCESSES)
        rates = [
            round(rate * part * (0.7 + 0.6 * _wave(name, now, index)), 2)
            for index in range(POINTS, 0, -1)
        ]
        p95s = [
            p95 * (0.8 + 0.5 * _wave(source, now, index)) if rates[-index] else None
            for index in range(POINTS, 0, -1)
        ]
        handled = int(rate * ((now - self._started).total_seconds() % 90_000 + 9000))
        per_process = [self._of_process(name, each, row, rates[-1]) for each in PROCESSES]
        failed = int(handled * failing)
        states = {each.state for each in per_process}
        state = "ready"
        if name == "FraudSignals":
            state = "waiting"
        elif states == {"paused"}:
            state = "paused"
        queue = QueueRow(
            name=source,
            connection="default",
            vhost="/",
            broker="amqp://rabbit.internal:5672",
            dead_letters=f"{source}.dead",
            ready=int(waiting * (0.8 + 0.4 * _wave(source, now, 3))),
            dead=self.letters.count(source),
        )
        return ConsumerRow(
            name=name,
            kind=kind,
            source=source,
            state=state,
            reason="connection refused; next attempt in 8 s" if state == "waiting" else "",
            paused=len(paused),
            abilities=ABILITIES.get(kind, ()),
            in_flight=sum(each.in_flight for each in per_process),
            concurrency=concurrency,
            prefetch=prefetch,
            attempts=attempts,
            handled=handled if self.has_metrics else 0,
            failed=failed,
            retried=int(failed * 0.9),
            dead=self.letters.count(source),
            rate=rates[-1],
            p95=p95s[-1],
            rates=rates,
            p95s=p95s,
            queues=[queue] if kind == "amqp" else [],
            streams=[
                StreamReport(
                    source=source,
                    state=state,
                    age=None if state == "waiting" else round(random.random() * 2, 1),
                    cursor="1733022231-17",
                )
            ]
            if kind == "sse"
            else [],
            routes=_routes(rates[-1], handled) if kind == "http" else [],
            task=self._task(source, now) if kind == "periodic" else None,
            processes=per_process,
        )

    def _of_process(self, name: str, process: str, row: Any, rate: float) -> ConsumerOfProcess:
        concurrency, prefetch = row[6], row[7]
        paused = process in self.paused.get(name, set())
        busy = 0 if paused else round(rate * row[4] / 4 * (0.8 + random.random() * 0.4))
        share = None if concurrency is None else max(1, concurrency // 4)
        return ConsumerOfProcess(
            process=process,
            state="paused" if paused else "waiting" if name == "FraudSignals" else "ready",
            reason="paused" if paused else "",
            paused=paused,
            in_flight=busy if share is None else min(busy, share),
            concurrency=self.values.get((name, process, "concurrency"), share),
            prefetch=self.values.get((name, process, "prefetch"), prefetch),
        )

    def _process(self, id_: str, now: datetime, consumers: Sequence[ConsumerRow]) -> ProcessRow:
        number = PROCESSES.index(id_) + 1
        return ProcessRow(
            id=id_,
            host=f"worker-{(number + 1) // 2}",
            pid=4100 + number,
            number=number,
            version="0.2.0",
            python="3.14.0",
            started=self._started + timedelta(minutes=17 * number),
            state="ready",
            draining=id_ in self.draining,
            log_level=self.levels[id_],
            has_metrics=self.has_metrics,
            lag=0.001 * number * (1 + _wave(id_, now, 0)),
            memory=int(88_000_000 + 9_000_000 * number * _wave(id_, now, 0)),
            responding=id_ not in self.silent,
            silent=12.0 if id_ in self.silent else 0.0,
            consumers=len(consumers),
            in_flight=sum(
                each.in_flight for row in consumers for each in row.processes if each.process == id_
            ),
        )

    def _task(self, schedule: str, now: datetime) -> TaskReport:
        last = now - timedelta(seconds=now.timestamp() % 60)
        return TaskReport(
            schedule=schedule,
            role="leader",
            last=last,
            last_ok=True,
            last_seconds=0.84,
            next=last + timedelta(seconds=60),
        )

    def _connections(self) -> list[ConnectionRow]:
        made = [
            ConnectionRow(
                process=process,
                name="default",
                role=role,
                vhost="/",
                connected=True,
                opened=2,
                lost=1,
            )
            for process in PROCESSES
            for role in ("consumers", "publisher")
        ]
        lost = {"opened": 3, "lost": 3, "failed": 7, "reason": "connection refused"}
        return [
            *made,
            *(
                ConnectionRow(process=each, name="FraudSignals", role="stream", **lost)  # type: ignore[arg-type]
                for each in PROCESSES[:1]
            ),
        ]

    def _failure(self, seconds: int) -> FailureReport:
        consumer, error, text, place = random.choice(ERRORS)
        return FailureReport(
            time=datetime.now(UTC) - timedelta(seconds=seconds),
            consumer=consumer,
            source=next((row[2] for row in CONSUMERS if row[0] == consumer), ""),
            action=random.choice(("retry", "retry", "dead letter")),
            error=error,
            text=text,
            place=place,
            delivery=f"msg-{random.randrange(10**8):08d}",
            attempt=random.randint(1, 5),
            trace_id=f"{random.getrandbits(128):032x}",
            process=random.choice(PROCESSES),
        )

    # ---- Commands ----

    def execute(self, command: Command, operator: Operator) -> CommandReport:
        """Change what is shown, in the processes that answer."""
        self.commands.append(command)
        results = []
        for id_ in command.processes or PROCESSES:
            number = PROCESSES.index(id_) + 1
            where = {"process": id_, "host": f"worker-{(number + 1) // 2}", "pid": 4100 + number}
            ok = id_ not in self.silent
            if ok:
                self._change(command, id_)
            text = f"{command.action} done" if ok else "did not answer within 2 s"
            results.append(CommandResult(**where, ok=ok, text=text))  # type: ignore[arg-type]
        answered = sum(each.ok for each in results)
        report = CommandReport(
            asked=len(results),
            answered=answered,
            text=f"{answered} of {len(results)} answered",
            results=results,
        )
        record = AuditRecord(
            time=datetime.now(UTC),
            user=operator.user,
            role=operator.role,
            address=operator.address,
            action=command.action,
            target=command.consumer or ", ".join(command.processes or ["all"]),
            result=report.text,
        )
        self.audit.insert(0, record)
        return report

    def _change(self, command: Command, process: str) -> None:
        name = command.consumer or ""
        match command.action:
            case "pause":
                self.paused.setdefault(name, set()).add(process)
            case "resume":
                self.paused.get(name, set()).discard(process)
            case "concurrency" | "prefetch":
                self.values[name, process, command.action] = int(command.value or 1)
            case "log_level":
                self.levels[process] = str(command.value)
            case "drain":
                self.draining.add(process)
            case "undrain":
                self.draining.discard(process)

    # ---- HTTP ----

    def application(self) -> web.Application:
        """Return the server."""
        application = web.Application(middlewares=[self._guard])
        get, post = application.router.add_get, application.router.add_post
        get("/", self._file)
        get("/console/{name}", self._file)
        get("/api/v1/me", self._me)
        get("/api/v1/fleet", responding(lambda query: self.fleet()))
        get("/api/v1/live", self._live)
        get("/api/v1/audit", responding(lambda query: self.audit))
        post("/api/v1/commands", self._command)
        self.letters.add_routes(application)
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            if request.path.startswith("/api/"):
                if self.down:
                    raise Refusal(503, "The process is stopping.")
                request[OPERATOR] = self._operator(request)
            response: web.StreamResponse = await handler(request)
            return response
        except Refusal as error:
            body = {"status": error.status, "title": "Refused", "detail": str(error)}
            return web.json_response(
                body,
                status=error.status,
                headers=error.headers,
                content_type="application/problem+json",
            )

    def _operator(self, request: web.Request) -> Operator:
        if not self.tokens:
            return Operator(user="loopback", role="admin", address=request.remote or "")
        if self._refused >= 3:
            raise Refusal(429, "Too many failures.", {"Retry-After": "30"})
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            self._refused += bool(token)
            raise Refusal(401, "A token is needed.", {"WWW-Authenticate": "Bearer"})
        role = self.tokens[token]
        return Operator(user=f"{role} token", role=role, address=request.remote or "")

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        found = files("workerkit.console").joinpath("page", name)
        if not found.is_file():
            raise Refusal(404, "No such file.")
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        headers["Referrer-Policy"], headers["X-Content-Type-Options"] = "no-referrer", "nosniff"
        return web.Response(
            text=found.read_text("utf-8"),
            headers=headers,
            content_type=TYPES[name.rpartition(".")[2]],
        )

    async def _me(self, request: web.Request) -> web.Response:
        links = {
            "/metrics": "metrics for Prometheus",
            "/docs": "the messages that the process receives and publishes",
            "/asyncapi.json": "the same as an AsyncAPI document",
            "/health/ready": "whether the process is ready",
        }
        return json_of(
            Me(
                operator=request[OPERATOR],
                mode=self.mode,  # type: ignore[arg-type]
                app="shop",
                version="0.2.0",
                links=links,
            )
        )

    async def _live(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while not self.down:
            data = self.fleet().model_dump_json()
            await response.write(f"event: fleet\ndata: {data}\n\n".encode())
            await asyncio.sleep(self.interval)
        return response

    async def _command(self, request: web.Request) -> web.Response:
        operator: Operator = request[OPERATOR]
        if operator.role == "view" or self.mode == "read":
            raise Refusal(403, "This needs the role operate.")
        try:
            command = Command.model_validate_json(await request.read())
        except ValidationError as error:
            raise Refusal(422, str(error.errors()[0]["msg"])) from None
        return json_of(self.execute(command, operator))


def _wave(name: str, now: datetime, back: int, length: float = 90.0) -> float:
    """Return a number from 0 to 1 that changes smoothly, with some noise."""
    step = int(now.timestamp() / 2) - back
    phase = sum(map(ord, name))
    noise = random.Random(step * 7919 + phase).random()
    slow = (
        0.5 + 0.3 * math.sin(step * 2 / length * 6.28 + phase) + 0.15 * math.sin(step / 7 + phase)
    )
    return max(0.0, min(1.0, slow + 0.12 * (noise - 0.5)))


def _routes(rate: float, handled: int) -> list[RouteRow]:
    return [
        RouteRow(
            route=route,
            method=method,
            requests=int(handled * part),
            errors=errors,
            rate=rate * part,
            p95=p95,
        )
        for route, method, part, errors, p95 in (
            ("/orders", "GET", 0.6, 0, 0.021),
            ("/orders", "POST", 0.3, 14, 0.087),
            ("/orders/{order_id}", "GET", 0.1, 2, 0.016),
        )
    ]


@asynccontextmanager
async def serving_console(api: ConsoleApi) -> AsyncIterator[str]:
    """Serve inside the block; yield the URL."""
    async with TestServer(api.application(), host="127.0.0.1") as server:
        yield str(server.make_url("")).rstrip("/")


def main() -> None:
    """Run it until Ctrl-C."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8085)
    parser.add_argument("--token")
    given = parser.parse_args()
    api = ConsoleApi(tokens={given.token: "admin"} if given.token else None)
    web.run_app(api.application(), host="127.0.0.1", port=given.port)


if __name__ == "__main__":
    main()
