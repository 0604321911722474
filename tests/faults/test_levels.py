"""The level of the log record for each result of a delivery, as error trackers use it."""

import asyncio
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from pydantic import BaseModel

from tests.application import Recorder, running
from tests.client import Client
from tests.serving import serving
from tests.streams import consuming
from tests.waiting import eventually
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    HTTPView,
    PeriodicTask,
    Queue,
    Reject,
    Retry,
    RetryPolicy,
    SSEConsumer,
    SSEEvent,
)
from workerkit.logs import TextFormatter
from workerkit.testing import sse_server

ONCE = RetryPolicy(delays=(0,), jitter=0)


class Tracker(logging.Handler):
    """A handler like those of error trackers: each record at ERROR is an event."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def levels(self, *messages: str) -> list[tuple[str, str]]:
        """Return level and error class of each record above DEBUG with one of these messages."""
        return [
            (each.levelname, str(vars(each).get("error")).partition(":")[0])
            for each in self.records
            if each.getMessage() in messages and each.levelno > logging.DEBUG
        ]

    @property
    def events(self) -> list[str]:
        """Return the class of the exception of each event, or "" without a traceback."""
        found = []
        for each in self.records:
            if each.levelno < logging.ERROR or "event loop" in each.getMessage():
                continue
            error = each.exc_info[1] if each.exc_info else None
            # A timeout is not raised by code of the user; its cause has the place.
            cause = error if error is None or error.__traceback__ else error.__cause__
            found.append("" if cause is None else type(error).__name__)
        return found


@pytest.fixture
def tracker(caplog: pytest.LogCaptureFixture) -> Iterator[Tracker]:
    """A tracker that receives all events of a test."""
    tracker = Tracker()
    root = logging.getLogger()
    caplog.set_level(logging.DEBUG, "workerkit")
    root.addHandler(tracker)
    yield tracker
    root.removeHandler(tracker)


class Order(BaseModel):
    id: int


class Orders(AMQPConsumer):
    """A consumer that fails in the way that its message requests."""

    queues = ["orders"]
    retry = ONCE

    async def handle(self, body: dict[str, str], message: AMQPMessage) -> None:
        match body["do"]:
            case "fail":
                raise KeyError("no such order")
            case "fail once":
                if message.attempt == 1:
                    raise KeyError("not yet")
            case "reject":
                raise Reject("sold out")
            case "drop":
                message.reject(requeue=False)
            case "again":
                if message.attempt == 1:
                    raise Retry("later", after=0)


@pytest.mark.parametrize(
    ("body", "records", "events"),
    [
        (b'{"do": "nothing"}', [], []),
        (b'{"do": "fail"}', [("WARNING", "KeyError"), ("ERROR", "KeyError")], ["KeyError"]),
        (b'{"do": "fail once"}', [("WARNING", "KeyError")], []),
        (b'{"do": "reject"}', [("ERROR", "Reject")], ["Reject"]),
        (b'{"do": "drop"}', [("ERROR", "None")], [""]),
        (b'{"do": "again"}', [("WARNING", "Retry")], []),
        (b"no JSON", [("ERROR", "InvalidBody")], ["InvalidBody"]),
    ],
)
async def test_fp1_a_message_is_an_event_after_its_last_attempt(
    url: str,
    client: Client,
    tracker: Tracker,
    body: bytes,
    records: list[tuple[str, str]],
    events: list[str],
) -> None:
    """A retry is a WARNING; a dead letter and a dropped message are one ERROR with a traceback."""
    recorder = Recorder()
    await client.declare("orders")
    async with running(url, Orders, recorder=recorder):
        await client.send("orders", body)
        await eventually(lambda: recorder.actions and recorder.actions[-1] != "retry")

    assert tracker.levels("not handled") == records
    assert tracker.events == events


@pytest.mark.parametrize(
    ("action", "level"),
    [(Action.REQUEUE, "WARNING"), (Action.REJECT, "ERROR"), (Action.ACK, "ERROR")],
)
async def test_fp1_a_failed_message_without_a_retry_policy(
    url: str, client: Client, tracker: Tracker, action: Action, level: str
) -> None:
    """It is an ERROR unless the message is requeued."""
    recorder = Recorder()

    class Failing(AMQPConsumer):
        queues = ["orders"]
        on_exception = action

        async def handle(self, body: bytes) -> None:
            raise KeyError("no")

    await client.declare("orders")
    await client.send("orders", b"x")
    async with running(url, Failing, recorder=recorder):
        await eventually(lambda: recorder.actions)

    assert tracker.levels("not handled")[0] == (level, "KeyError")
    assert tracker.events == ["KeyError"] * (level == "ERROR")


async def test_fp1_a_failed_batch_is_one_event(url: str, client: Client, tracker: Tracker) -> None:
    """A failed call is one WARNING per attempt and one ERROR, with the number of messages."""
    recorder = Recorder()

    class Audit(AMQPConsumer):
        queues = ["orders"]
        batch_size = 5
        batch_interval = 30.0
        retry = ONCE

        async def handle(self, orders: list[Order]) -> None:
            raise KeyError("no table")

    await client.declare("orders")
    await client.send("orders", b'{"id": 1}', b'{"id": "?"}', *[b'{"id": 3}'] * 3)
    async with running(url, Audit, recorder=recorder):
        await eventually(lambda: recorder.actions.count("dead_letter") == 5)

    assert sorted(tracker.events) == ["InvalidBody", "KeyError"]
    assert sorted(tracker.levels("not handled")) == [
        ("ERROR", "InvalidBody"),
        ("ERROR", "KeyError"),
        ("WARNING", "KeyError"),
    ]
    records = [each for each in tracker.records if each.getMessage() == "not handled"]
    batch = [vars(each)["batch"] for each in records if "batch" in vars(each)]
    assert batch == [4] * 8
    assert len(records) == 9
    assert [each for each in records if each.levelno == logging.DEBUG and each.exc_info] == []


async def test_fp1_a_dead_letter_that_cannot_be_written(
    url: str, client: Client, tracker: Tracker
) -> None:
    """It is an ERROR with the reason; the message is requeued with a WARNING."""
    recorder = Recorder()

    class Failing(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            raise Reject("never")

    await client.declare("orders")
    await client.declare("orders.dlq", x_max_length=0, x_overflow="reject-publish")
    async with running(url, Failing, recorder=recorder, ready=True):
        await client.send("orders", b"x")
        await eventually(lambda: recorder.actions)

    assert tracker.levels("not handled")[0] == ("WARNING", "Reject")
    assert tracker.events[0] == "PublishRefused"


@pytest.mark.parametrize(
    ("action", "messages"),
    [
        (Action.DEAD_LETTER, ["message is too large to be read"]),
        (Action.REJECT, ["not handled"]),
        (Action.ACK, ["not handled"]),
    ],
)
async def test_fp1_a_message_that_is_too_large_is_one_event(
    url: str, client: Client, tracker: Tracker, action: Action, messages: list[str]
) -> None:
    """With the reason, for each value of `on_invalid`."""
    recorder = Recorder()

    class Strict(AMQPConsumer):
        queues = [Queue("orders", dead_letter_exchange="", dead_letter_routing_key="dead")]
        on_invalid = action

        async def handle(self, body: bytes) -> None: ...

    amqp = {"default": {"url": url, "max_message_size": 10}}
    async with running(url, Strict, recorder=recorder, amqp=amqp):
        await client.send("orders", b"x" * 11)
        await eventually(lambda: recorder.actions)

    found = [each.getMessage() for each in tracker.records if each.levelno >= logging.ERROR]
    assert [each for each in found if "event loop" not in each] == messages
    assert tracker.events == ["InvalidBody"]


async def test_fp1_events_of_a_stream(tracker: Tracker) -> None:
    """An event that is tried again is a WARNING; one that is skipped is an ERROR."""
    recorder = Recorder()

    class Failing(SSEConsumer):
        connection = "server"
        routes = ["/events"]
        retry = ONCE

        async def handle(self, event: SSEEvent[str]) -> None:
            raise KeyError("no")

    async with sse_server() as server, consuming(server, Failing, recorder=recorder):
        await server.send("a")
        await eventually(lambda: "reject" in recorder.actions)

    assert tracker.levels("not handled") == [("WARNING", "KeyError"), ("ERROR", "KeyError")]
    assert tracker.events == ["KeyError"]


class Failing(HTTPView):
    """A view that fails in the way that its path requests."""

    routes = ["/do/{what}"]
    timeout = 0.2

    async def get(self, what: str, number: int = 0) -> None:
        match what:
            case "fail":
                raise KeyError("no")
            case "reject":
                raise Reject("sold out")
            case "retry":
                raise Retry("later", after=1)
            case "late":
                await asyncio.Event().wait()
            case "gone":
                raise web.HTTPGone
            case "gateway":
                raise web.HTTPBadGateway
            case "down":
                raise web.HTTPServiceUnavailable


@pytest.mark.parametrize(
    ("what", "status", "level", "message"),
    [
        ("well", 204, "DEBUG", "request handled"),
        ("well?number=x", 422, "INFO", "request refused"),
        ("reject", 422, "INFO", "request refused"),
        ("gone", 410, "DEBUG", "request handled"),
        ("retry", 503, "WARNING", "request failed"),
        ("down", 503, "WARNING", "request failed"),
        ("fail", 500, "ERROR", "request failed"),
        ("gateway", 502, "ERROR", "request failed"),
        ("late", 504, "ERROR", "request failed"),
    ],
)
async def test_fp1_fp17_a_request_is_logged_in_words_of_http(
    tracker: Tracker, what: str, status: int, level: str, message: str
) -> None:
    """Method, route and status; errors of clients are INFO, failures of the server ERROR."""
    async with serving(Failing) as client:
        answer = await client.get(f"/do/{what}", headers={"X-Request-ID": "r-1"})

    assert answer.status == status
    [record] = [each for each in tracker.records if each.getMessage().startswith("request ")]
    told = vars(record)
    assert (record.levelname, record.getMessage()) == (level, message)
    assert [told[name] for name in ("consumer", "method", "route", "status", "request_id")] == [
        "Failing",
        "GET",
        "/do/{what}",
        status,
        "r-1",
    ]
    assert {"action", "delivery", "source"}.isdisjoint(told)
    assert len(tracker.events) == (level == "ERROR")
    assert "" not in tracker.events


@pytest.mark.parametrize(("method", "level"), [("raises", "ERROR"), ("returns nothing", "ERROR")])
async def test_fp1_a_middleware_that_fails_is_an_event(
    tracker: Tracker, method: str, level: str
) -> None:
    """Its 500 is one ERROR."""

    @web.middleware
    async def broken(request: web.Request, handler: Any) -> Any:
        if method == "raises":
            raise KeyError("no")

    async with serving(Failing, middlewares=[broken]) as client:
        answer = await client.get("/do/well")

    assert answer.status == 500
    assert tracker.events == ["KeyError" if method == "raises" else ""]


class Cleanup(PeriodicTask):
    every = 100.0
    retry = ONCE

    async def handle(self) -> None:
        raise KeyError("no")


async def test_fp1_fp17_a_run_is_logged_in_words_of_schedules(tracker: Tracker) -> None:
    """Schedule, scheduled time and attempt; a failure of the last attempt is an ERROR."""
    recorder = Recorder()
    async with running("amqp://127.0.0.1:1", Cleanup, recorder=recorder, ready=False):
        await eventually(lambda: "reject" in recorder.actions)

    assert tracker.levels("run failed") == [("WARNING", "KeyError"), ("ERROR", "KeyError")]
    assert tracker.events == ["KeyError"]
    told = [vars(each) for each in tracker.records if each.getMessage() == "run failed"]
    assert [each["attempt"] for each in told] == [1, 2]
    assert {each["schedule"] for each in told} == {"every 100 s"}
    assert {each["scheduled"][-1] for each in told} == {"Z"}
    assert [each.get("action") for each in told] == ["retry", None]
    assert {"delivery", "source"}.isdisjoint(told[0])


async def test_fp17_a_run_is_named_by_its_scheduled_time(tracker: Tracker) -> None:
    """Scheduled times are multiples of the interval, so they identify a run."""

    class Often(PeriodicTask):
        every = 0.05

        async def handle(self) -> None: ...

    recorder = Recorder()
    async with running("amqp://127.0.0.1:1", Often, recorder=recorder, ready=False):
        await eventually(lambda: len(recorder.settled) > 3)

    times: list[Any] = [each.delivery.scheduled for each in recorder.settled]  # type: ignore[attr-defined]
    steps = [(later - times[0]).total_seconds() / 0.05 for later in times[1:]]
    assert [abs(step - round(step)) < 0.2 for step in steps] == [True] * len(steps)
    assert "run finished" in {each.getMessage() for each in tracker.records}


async def test_fp1_an_attempt_to_connect_is_one_line(tracker: Tracker) -> None:
    """A failure of the network or the peer is a text, without a traceback of the library."""

    class Stream(SSEConsumer):
        url = "http://127.0.0.1:1"

        async def handle(self, data: str) -> None: ...

    def failed() -> dict[str, logging.LogRecord]:
        return {each.name: each for each in tracker.records if each.msg == "connection failed"}

    async with running("amqp://127.0.0.1:1", Orders, Stream, ready=False):
        await eventually(lambda: len(failed()) == 2)
        for each in failed().values():
            line = TextFormatter().format(each)
            assert re.fullmatch(r'\S+ ERROR .*: \[Errno 111\] Connection refused"', line)
