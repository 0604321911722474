"""The metrics of several processes as one page."""

from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, Summary
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from workerkit.config.sections import MetricsSettings
from workerkit.health import Health, Part, Readiness
from workerkit.ops.counting import METRICS_OF_PARENT
from workerkit.ops.metrics import Metrics
from workerkit.ops.server import OPEN_METRICS
from workerkit.processes.sums import Sums


class OneProcess:
    """Metrics of an application in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.booked = Counter("booked", "Orders.", ["country"], registry=self.registry)
        self.price = Histogram("price", "Prices.", buckets=[1, 10], registry=self.registry)
        self.size = Summary("size", "Sizes.", registry=self.registry)
        self.open = Gauge("open", "Orders.", ["process"], registry=self.registry)
        self.cpu = Counter("process_cpu_seconds", "CPU.", registry=self.registry)
        readiness = Readiness([Health("Orders", [Part()], in_flight=lambda: 2)], started=True)
        self.registry.register(Metrics(MetricsSettings(), readiness))

    def page(self) -> str:
        """Return what its parent reads."""
        return choose_encoder(OPEN_METRICS)[0](self.registry).decode()


def samples(sums: Sums, accept: str = OPEN_METRICS) -> dict[str, float]:
    """Return each sample of the page, by its name and labels."""
    parse: Callable[[str], Iterator[Metric]] = text_string_to_metric_families
    return {
        " ".join([each.name, *(f"{k}={v}" for k, v in sorted(each.labels.items()))]): each.value
        for family in parse(sums.page(accept)[0].decode())
        for each in family.samples
        if not each.name.endswith("_created")
    }


def test_what_is_counted_is_summed_and_what_is_measured_is_not() -> None:
    """A gauge has a label for the process; that of the application gets another name."""
    one, two = OneProcess(), OneProcess()
    for process in (one, two):
        process.booked.labels("de").inc(2)
        process.price.observe(5)
        process.size.observe(3)
        process.cpu.inc(1.5)
        process.open.labels("import").set(4)
    two.booked.labels("fr").inc()
    sums = Sums("workerkit")

    sums.update(101, 1, one.page())
    sums.update(102, 2, two.page())
    found = samples(sums)

    expected = {
        "booked_total country=de": 4,
        "booked_total country=fr": 1,
        "price_bucket le=1.0": 0,
        "price_bucket le=10.0": 2,
        "price_bucket le=+Inf": 2,
        "price_sum": 10,
        "size_count": 2,
        "size_sum": 6,
        "process_cpu_seconds_total process=1": 1.5,
        "process_cpu_seconds_total process=2": 1.5,
        "open exported_process=import process=1": 4,
        "workerkit_in_flight consumer=Orders": 4,
        "workerkit_consumer_state consumer=Orders process=2 state=starting": 1,
        "workerkit_ready": 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert "workerkit_ready process=1" not in found


def test_no_sum_falls_when_a_process_ends() -> None:
    """Its counts stay, what it measured does not; the next one counts from zero."""
    sums, one = Sums("workerkit"), OneProcess()
    one.booked.labels("de").inc(7)
    one.price.observe(5)
    sums.update(101, 1, one.page())

    sums.retire(101)
    ended = samples(sums)
    sums.update(103, 1, OneProcess().page())
    sums.retire(104)  # It never responded.
    next_ = samples(sums)

    for found in (ended, next_):
        assert found["booked_total country=de"] == 7
        assert found["price_count"] == 1
    assert "process_cpu_seconds_total process=1" not in ended


def test_a_page_that_cannot_be_read_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The application may have metrics that OpenMetrics does not allow; the last ones stay."""
    sums, one = Sums("workerkit"), OneProcess()
    one.booked.labels("de").inc(7)
    sums.update(101, 1, one.page())

    read = sums.update(101, 1, "# TYPE booked counter\nbooked_total seven\n# EOF\n")

    assert not read
    assert samples(sums)["booked_total country=de"] == 7
    [record] = caplog.records
    assert record.message == "metrics of a process are not valid: keeping the previous ones"


def test_while_a_process_is_replaced_the_newer_one_is_measured() -> None:
    """Two processes have the same number then."""
    sums, old, new = Sums("workerkit"), OneProcess(), OneProcess()
    old.cpu.inc(100)
    new.cpu.inc(1)

    sums.update(101, 1, old.page())
    sums.update(102, 1, new.page())

    assert samples(sums)["process_cpu_seconds_total process=1"] == 1


def test_the_newest_exemplar_stays() -> None:
    """With the sum of the counts of its bucket."""
    sums, one, two = Sums("workerkit"), OneProcess(), OneProcess()
    one.price.observe(5, {"trace_id": "older"})
    two.price.observe(6, {"trace_id": "newer"})

    sums.update(102, 2, two.page())
    sums.update(101, 1, one.page())
    page = sums.page(OPEN_METRICS)[0].decode()

    assert 'price_bucket{le="10.0"} 2.0 # {trace_id="newer"} 6.0' in page


def test_what_the_parent_measures() -> None:
    """The metrics of the table, in the plain format as well."""
    sums = Sums("shop")
    sums.up, sums.restarts, sums.ready = {1: True, 2: False}, {2: 3}, True

    page, content_type = sums.page("text/plain")

    assert content_type.startswith("text/plain")
    assert [each.name for each in METRICS_OF_PARENT] == ["process_up", "process_restarts_total"]
    for line in (
        'shop_process_up{process="2"} 0.0',
        'shop_process_restarts_total{process="2"} 3.0',
        "shop_ready 1.0",
    ):
        assert line in page.decode().splitlines()
