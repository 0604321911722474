"""What is counted, what it is called, and how Prometheus reads it."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families as read
from pydantic import ValidationError

from tests.records import errors
from tests.streams import consuming
from tests.waiting import eventually
from workerkit import (
    Action,
    BrokerBlocked,
    InvalidBody,
    MessageTooLarge,
    PublishError,
    PublishOutcomeUnknown,
    PublishRefused,
    PublishTimeout,
    Reject,
    RequestExpired,
    Runner,
    Settled,
    SSEConsumer,
    Unroutable,
    WorkerSettings,
)
from workerkit.app.watchdog import Watchdog
from workerkit.config.load import load_settings
from workerkit.config.sections import MetricsSettings
from workerkit.delivery import Delivery, Outcome
from workerkit.health import Health, Part, Readiness
from workerkit.observe import ConnectionEvent, Published, Unhandled, notify, notify_event
from workerkit.ops import server as ops
from workerkit.ops.counting import METRICS
from workerkit.ops.metrics import Metrics
from workerkit.testing import fake_message, sse_server

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
ORDERS = {"consumer": "OrderPlaced", "source": "orders"}


class Request(Delivery):
    """A request that was answered, as the observer sees it."""

    def __init__(
        self,
        method: str = "GET",
        status: int = 200,
        request_size: int | None = 0,
        response_size: int | None = 0,
    ) -> None:
        super().__init__(b"")
        self.method = method
        self.status = status
        self.request_size = request_size
        self.response_size = response_size
        self.seconds = 0.75


def made(readiness: Readiness | None = None, **settings: Any) -> Metrics:
    """Metrics of a process that has just begun."""
    return Metrics(MetricsSettings(**settings), readiness or Readiness())


def settled(
    action: Action = Action.ACK,
    *,
    error: Exception | None = None,
    seconds: float = 0.0,
    lost: bool = False,
    delivery: Delivery | None = None,
    source: str = "orders",
) -> Settled:
    """Return the record of one delivery for an observer."""
    outcome = Outcome(action, error)
    told = delivery or fake_message(b"x")
    return Settled("OrderPlaced", source, told, outcome, action, seconds, lost)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample, None where there is none."""
    return metrics.registry.get_sample_value(name, labels)


@pytest.mark.parametrize("action", list(Action))
def test_deliveries_are_counted_by_outcome(action: Action) -> None:
    """Each delivery counts once, under its consumer, its source and what was done with it."""
    metrics = made()

    metrics(settled(action))
    metrics(settled(action))

    assert value(metrics, "workerkit_deliveries_total", **ORDERS, outcome=action.value) == 2


def test_expired_requests_are_counted_as_such() -> None:
    """They are acknowledged, but not as what was handled; other failures that are dropped are."""
    metrics = made()

    metrics(settled(error=RequestExpired("late")))
    metrics(settled(error=KeyError("dropped")))
    metrics(settled())

    assert value(metrics, "workerkit_deliveries_total", **ORDERS, outcome="expired") == 1
    assert value(metrics, "workerkit_deliveries_total", **ORDERS, outcome="ack") == 2


def test_all_collected_values_are_counted() -> None:
    """Reading at any moment gives what was observed until then, also from another thread."""
    metrics = made(buckets=(0.1, 1.0))
    name = "workerkit_handler_seconds"
    stop = Event()
    read: list[float | None] = []

    def reading() -> None:
        while not stop.is_set():
            read.append(value(metrics, f"{name}_count", **ORDERS))

    thread = Thread(target=reading)
    for number in range(3_000):
        metrics(settled(seconds=(0.05, 0.1, 0.5, 2.0)[number % 4]))
        if number == 0:
            thread.start()
    stop.set()
    thread.join()

    assert value(metrics, f"{name}_count", **ORDERS) == 3_000
    assert value(metrics, f"{name}_bucket", **ORDERS, le="0.1") == 1_500
    assert value(metrics, f"{name}_bucket", **ORDERS, le="1.0") == 2_250
    assert value(metrics, f"{name}_sum", **ORDERS) == pytest.approx(2.65 * 750)
    known = [each for each in read if each is not None]
    assert known == sorted(known)


def test_requests_that_no_view_has_got_are_counted() -> None:
    """Under the route that they were meant for, and without one where there is none."""
    metrics = made()

    for status, size in ((404, 10), (404, 20), (401, None)):
        route = "/orders" if status == 401 else ""
        metrics.unhandled(Unhandled(route, "BREW", status, 0.5, 7, size))

    missing = {"route": "", "method": "other", "status": "404"}
    refused = {"route": "/orders", "method": "other", "status": "401"}
    assert value(metrics, "workerkit_http_request_seconds_count", **missing) == 2
    assert value(metrics, "workerkit_http_response_size_bytes_sum", **missing) == 30
    assert value(metrics, "workerkit_http_request_seconds_sum", **refused) == 0.5
    assert value(metrics, "workerkit_http_request_size_bytes_sum", **refused) == 7
    assert value(metrics, "workerkit_http_response_size_bytes_count", **refused) is None


def test_consumers_of_one_source_are_told_apart() -> None:
    """For any order of their deliveries."""
    metrics = made()
    record = settled()

    for consumer in ("one", "two", "one", "one"):
        metrics(record._replace(consumer=consumer))

    for consumer, count in (("one", 3), ("two", 1)):
        labels = {"consumer": consumer, "source": "orders"}
        assert value(metrics, "workerkit_deliveries_total", **labels, outcome="ack") == count
        assert value(metrics, "workerkit_handler_seconds_count", **labels) == count


def test_a_lost_delivery_is_counted_as_lost_only() -> None:
    """What could not be settled is neither an ack nor a dead letter: it comes again."""
    metrics = made()

    metrics(settled(Action.DEAD_LETTER, error=KeyError("x"), lost=True))

    assert value(metrics, "workerkit_deliveries_total", **ORDERS, outcome="lost") == 1
    assert value(metrics, "workerkit_deliveries_total", **ORDERS, outcome="dead_letter") is None
    assert value(metrics, "workerkit_dead_letters_total", **ORDERS, error="KeyError") is None


@pytest.mark.parametrize(
    ("action", "name"),
    [
        (Action.RETRY, "workerkit_retries_total"),
        (Action.DEAD_LETTER, "workerkit_dead_letters_total"),
    ],
)
@pytest.mark.parametrize(
    ("error", "label"),
    [
        (KeyError("order 7"), "KeyError"),
        (InvalidBody("no JSON"), "InvalidBody"),
        (Reject("too many"), "Reject"),
        (None, ""),
    ],
)
def test_retries_and_dead_letters_are_counted_by_error(
    action: Action, name: str, error: Exception | None, label: str
) -> None:
    """The class of the error tells them apart, never its text, which may be anything."""
    metrics = made()

    metrics(settled(action, error=error))

    assert value(metrics, name, **ORDERS, error=label) == 1


def test_handler_seconds_are_sorted_into_buckets() -> None:
    """A value on a bound is below it; buckets are cumulated, and the last one has no bound."""
    metrics = made(buckets=(0.1, 1, 10))

    for seconds in (0.05, 0.1, 0.5, 100.0):
        metrics(settled(seconds=seconds))

    bounds = ("0.1", "1.0", "10.0", "+Inf")
    name = "workerkit_handler_seconds"
    counts = [value(metrics, f"{name}_bucket", **ORDERS, le=bound) for bound in bounds]
    assert counts == [2, 3, 3, 4]
    assert value(metrics, f"{name}_count", **ORDERS) == 4
    assert value(metrics, f"{name}_sum", **ORDERS) == pytest.approx(100.65)


def test_the_age_is_measured_where_it_is_wanted_and_there_is_a_timestamp() -> None:
    """From the message's timestamp to its settlement; a sender whose clock is ahead counts as 0."""
    metrics = made(age=True)
    now = datetime.now(UTC)

    metrics(settled(delivery=fake_message(b"x", timestamp=now - timedelta(seconds=30))))
    metrics(settled(delivery=fake_message(b"x", timestamp=now + timedelta(seconds=30))))
    metrics(settled(delivery=fake_message(b"x")))

    age = "workerkit_delivery_age_seconds"
    assert value(metrics, f"{age}_count", **ORDERS) == 2
    assert value(metrics, f"{age}_sum", **ORDERS) == pytest.approx(30, abs=20)


def test_the_age_is_not_measured_by_default() -> None:
    """Properties are not even decoded for it."""
    metrics = made()
    message = fake_message(b"x", timestamp=datetime.now(UTC))

    metrics(settled(delivery=message))

    assert value(metrics, "workerkit_delivery_age_seconds_count", **ORDERS) is None
    assert "properties" not in vars(message)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "confirmed"),
        (Unroutable("x"), "unroutable"),
        (PublishRefused("x"), "refused"),
        (MessageTooLarge("x"), "too_large"),
        (PublishTimeout("x"), "timeout"),
        (PublishOutcomeUnknown("x", "id"), "unknown"),
        (BrokerBlocked("x", "id"), "blocked"),
    ],
)
def test_publishes_are_counted_by_outcome(error: PublishError | None, outcome: str) -> None:
    """Each publish counts once, and how long it took is measured."""
    metrics = made()

    metrics.published(Published("default", "", "orders", "id", 10, 0.25, error))

    found = value(metrics, "workerkit_publishes_total", connection="default", outcome=outcome)
    assert found == 1
    assert value(metrics, "workerkit_publish_seconds_sum", connection="default") == 0.25


def test_connections_are_counted_by_name_and_role() -> None:
    """Made, failed and lost."""
    metrics = made()
    record = ConnectionEvent("default", "consumers", "/", 1)

    metrics.connection_failed(record)
    metrics.connection_failed(record)
    metrics.connected(record)
    metrics.connection_lost(record)

    names = ("connection_failures", "connections", "connection_losses")
    role = {"connection": "default", "role": "consumers"}
    assert [value(metrics, f"workerkit_{name}_total", **role) for name in names] == [2, 1, 1]


def test_the_state_of_a_consumer_is_one_of_four() -> None:
    """Exactly one of its series is 1, and the process is ready when all consumers are."""
    part = Part()
    readiness = Readiness([Health("OrderPlaced", [part], in_flight=lambda: 3)], started=True)
    metrics = made(readiness)

    def states() -> list[float | None]:
        names = ("starting", "waiting", "ready", "stopping")
        name = "workerkit_consumer_state"
        return [value(metrics, name, consumer="OrderPlaced", state=each) for each in names]

    before = [*states(), value(metrics, "workerkit_ready")]
    part.ready()
    after = [*states(), value(metrics, "workerkit_ready")]

    assert (before, after) == ([1, 0, 0, 0, 0], [0, 0, 1, 0, 1])
    assert value(metrics, "workerkit_in_flight", consumer="OrderPlaced") == 3


def test_the_age_of_the_last_event_is_read_off_the_parts() -> None:
    """A stream notes when its last event came; where none has come there is no sample."""
    parts = [Part(source="/v2/events", last_event=monotonic() - 60), Part(source="/v2/other")]
    metrics = made(Readiness([Health("Deployments", parts)]))

    def age(source: str) -> float | None:
        name = "workerkit_last_event_age_seconds"
        return value(metrics, name, consumer="Deployments", source=source)

    assert age("/v2/events") == pytest.approx(60, abs=5)
    assert age("/v2/other") is None


async def test_an_event_stream_is_measured() -> None:
    """The transport of event streams keeps its parts and calls up to date."""

    def shown(runner: Runner) -> dict[str, Any]:
        _, page = ops.ready(Readiness(list(runner.health), started=True))
        told: dict[str, Any] = page["consumers"]["Deployments"]["streams"]["/events"]
        return told

    gate = asyncio.Event()
    called = asyncio.Event()

    class Deployments(SSEConsumer):
        connection = "server"
        routes = ["/events"]

        async def handle(self, body: str) -> None:
            called.set()
            await gate.wait()

    async with sse_server() as server, consuming(server, Deployments) as runner:
        metrics = made(Readiness(list(runner.health)))
        await server.send("one", route="/events")
        await called.wait()
        age = value(
            metrics,
            "workerkit_last_event_age_seconds",
            consumer="Deployments",
            source="/events",
        )
        in_flight = value(metrics, "workerkit_in_flight", consumer="Deployments")
        gate.set()
        await eventually(lambda: shown(runner)["cursor"] == "1")
        stream = shown(runner)

    assert age == pytest.approx(0.0, abs=5.0)
    assert in_flight == 1
    assert stream.pop("last_event_age") == pytest.approx(0.0, abs=5.0)
    assert stream == {"connected": True, "cursor": "1", "cursor_stored": True}


def test_requests_are_counted_by_route_method_and_status() -> None:
    """With their seconds, and with the sizes of both bodies."""
    metrics = made()
    request = Request("PUT", 201, 20, 300)

    metrics(settled(delivery=request, source="/orders/{order_id}", seconds=0.5))

    labels = {"route": "/orders/{order_id}", "method": "PUT", "status": "201"}
    assert value(metrics, "workerkit_http_request_seconds_count", **labels) == 1
    assert value(metrics, "workerkit_http_request_seconds_sum", **labels) == 0.75
    assert value(metrics, "workerkit_http_request_size_bytes_sum", **labels) == 20
    assert value(metrics, "workerkit_http_response_size_bytes_sum", **labels) == 300


def test_a_stream_has_no_size() -> None:
    """A response of unknown size is counted, but its size is not."""
    metrics = made()

    metrics(settled(delivery=Request(request_size=None, response_size=None), source="/live"))

    labels = {"route": "/live", "method": "GET", "status": "200"}
    assert value(metrics, "workerkit_http_request_seconds_count", **labels) == 1
    assert value(metrics, "workerkit_http_request_size_bytes_count", **labels) is None
    assert value(metrics, "workerkit_http_response_size_bytes_count", **labels) is None


def test_methods_that_clients_invent_are_one() -> None:
    """Labels stay few, whatever is sent."""
    metrics = made()

    metrics(settled(delivery=Request("BREW", 405), source="/"))
    metrics(settled(delivery=Request("STIR", 405), source="/"))

    labels = {"route": "/", "method": "other", "status": "405"}
    assert value(metrics, "workerkit_http_request_seconds_count", **labels) == 2


async def test_the_lag_of_the_loop_is_measured() -> None:
    """The watchdog's timer tells how late it came."""
    metrics = made()
    watchdog = Watchdog(seconds=0.02, lagged=metrics.lagged)

    watchdog.start()
    await eventually(lambda: value(metrics, "workerkit_loop_lag_seconds_count"))
    watchdog.stop()

    assert value(metrics, "workerkit_loop_lag_seconds_sum") is not None


def test_the_prefix_is_a_setting() -> None:
    """All names begin with it."""
    metrics = made(prefix="acme_shop")

    metrics(settled())

    assert value(metrics, "acme_shop_deliveries_total", **ORDERS, outcome="ack") == 1


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As lists with commas or as JSON, like all lists."""
    monkeypatch.setenv("WORKERKIT_METRICS__BUCKETS", "0.1,1,10")
    monkeypatch.setenv("WORKERKIT_METRICS__PREFIX", "shop")

    metrics = WorkerSettings().metrics

    assert (metrics.buckets, metrics.prefix) == ((0.1, 1.0, 10.0), "shop")


@pytest.mark.parametrize(
    "wrong",
    [
        {"buckets": ()},
        {"buckets": (1, 1)},
        {"buckets": (2, 1)},
        {"buckets": (0,)},
        {"buckets": (float("inf"),)},
        {"prefix": ""},
        {"prefix": "my-shop"},
        {"path": "metrics"},
        {"path": "/{name}"},
    ],
    ids=str,
)
def test_settings_that_prometheus_would_not_take(wrong: dict[str, Any]) -> None:
    """They are refused at the start, not when Prometheus comes."""
    with pytest.raises(ValidationError):
        MetricsSettings.model_validate(wrong)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("10,1", ": should be in ascending order, each once"),
        ("[10, 1]", ": should be in ascending order, each once"),
        ("1,soon", " at [1] is 'soon': should be a valid number"),
    ],
)
def test_a_fault_of_a_list_names_its_variable(
    text: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is written with commas or as JSON."""
    monkeypatch.setenv("WORKERKIT_METRICS__BUCKETS", text)

    _, faults = load_settings(WorkerSettings, WorkerSettings)

    assert len(faults) == 1
    assert faults[0].startswith(f"WORKERKIT_METRICS__BUCKETS{fault}")


def test_everything_that_is_collected_is_declared() -> None:
    """Names, kinds and labels are those of the catalogue, and nothing of it is missing."""
    readiness = Readiness([Health("A", [Part(last_event=0.0)], role=lambda: "leader")])
    metrics = made(readiness, age=True)
    message = fake_message(b"x", timestamp=datetime.now(UTC))

    metrics(settled(delivery=message))
    metrics(settled(delivery=Request(), source="/orders"))
    for action in (Action.RETRY, Action.DEAD_LETTER):
        metrics(settled(action))
    metrics.published(Published("default", "", "orders", "id", 10, 0.25))
    connection = ConnectionEvent("default", "consumers", "/", 1)
    metrics.connected(connection)
    metrics.connection_failed(connection)
    metrics.connection_lost(connection)
    metrics.lagged(0.1)

    collected = {}
    for family in metrics.collect():
        labels = set(family.samples[0].labels) - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        collected[name] = family.type, labels
    declared = {f"workerkit_{each.name}": (each.kind, set(each.labels)) for each in METRICS}
    assert declared == collected


def test_the_table_of_the_docs_is_the_catalogue() -> None:
    """Whoever changes the catalogue copies what this test prints into the page."""
    rows = ["| metric | type | labels | |", "|---|---|---|---|"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `workerkit_{each.name}` | {each.kind} | {labels} | {each.text} |")

    print(*rows, sep="\n")
    assert "\n".join(["", *rows, ""]) in DOCS.read_text()


def test_two_processes_in_one_interpreter_do_not_clash() -> None:
    """Each has a registry of its own."""
    one, other = made(), made()

    one(settled())

    assert value(one, "workerkit_deliveries_total", **ORDERS, outcome="ack") == 1
    assert value(other, "workerkit_deliveries_total", **ORDERS, outcome="ack") is None


def test_the_page_has_what_users_count_and_what_python_uses() -> None:
    """Users take prometheus_client's own classes; process, platform and gc come with it."""
    counter = prometheus_client.Counter("shop_booked", "Orders booked.", ["country"])
    counter.labels("de").inc(3)

    try:
        body, content_type = ops.metrics(made().registry, "")
    finally:
        prometheus_client.REGISTRY.unregister(counter)

    families = {family.name: family for family in read(body.decode())}
    assert [s.value for s in families["shop_booked"].samples if s.name.endswith("_total")] == [3]
    expected = {"process_cpu_seconds", "process_resident_memory_bytes", "python_gc_collections"}
    assert expected <= set(families)
    assert "workerkit_deliveries" in families
    assert content_type.startswith("text/plain; version=0.0.4")


def test_the_page_is_open_metrics_for_those_who_ask() -> None:
    """By the header Accept, as Prometheus sends it."""
    metrics = made()
    metrics(settled(seconds=0.2))
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

    body, content_type = ops.metrics(metrics.registry, accept)

    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert 'workerkit_handler_seconds_bucket{consumer="OrderPlaced"' in body.decode()
    assert body.endswith(b"# EOF\n")


def test_labels_are_escaped() -> None:
    """A queue may be called anything."""
    metrics = made()

    metrics(settled(source='a "b"\n\\c'))
    body, _ = ops.metrics(metrics.registry, "")

    [family] = [each for each in read(body.decode()) if each.name == "workerkit_deliveries"]
    assert family.samples[0].labels["source"] == 'a "b"\n\\c'


class Listener:
    """An observer of everything, which may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.told: list[object] = []
        self.error = error

    def __call__(self, record: Settled) -> None:
        self._note(record)

    def published(self, record: Published) -> None:
        """As its name says."""
        self._note(record)

    def _note(self, record: object) -> None:
        self.told.append(record)
        if self.error is not None:
            raise self.error


def test_an_observer_is_told_what_it_has_a_method_for() -> None:
    """A plain function gets deliveries and nothing else."""
    listener = Listener()
    deliveries: list[Settled] = []
    observers: list[Callable[[Settled], object]] = [deliveries.append, listener]
    published = Published("default", "", "orders", "id", 10, 0.25)

    notify_event(observers, "published", published)
    notify_event(observers, "connected", ConnectionEvent("default", "consumers", "/", 1))
    notify(observers, settled())

    assert [type(each) for each in listener.told] == [Published, Settled]
    assert [type(each) for each in deliveries] == [Settled]


def test_an_observer_that_raises_is_told_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged each time, and the other observers are called."""
    failing, sound = Listener(ValueError("full")), Listener()
    published = Published("default", "", "orders", "id", 10, 0.25)

    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            notify_event([failing, sound], "published", published)

    assert errors(caplog) == ["observer failed", "observer failed"]
    assert (failing.told, sound.told) == ([published] * 2, [published] * 2)
