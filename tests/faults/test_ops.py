"""The ops server of a worker during failures: responses to probes and Prometheus."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families as read

from tests.application import Recorder
from tests.application import running as running_here
from tests.client import Client
from tests.command import Application, running, workerkit, write_package
from tests.consumers import collector
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import AMQPConsumer, Publisher
from workerkit.config.sections import OpsSettings
from workerkit.observe import ConnectionEvent, Published

CONSUMERS = """
    import asyncio, time
    from pathlib import Path

    from workerkit import AMQPConsumer, Reject

    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: str) -> None:
            print("handling", body, flush=True)
            if body == "slow":
                while not Path("gate").exists():
                    await asyncio.sleep(0.01)
            if body == "block":
                time.sleep(1.0)
                while not Path("gate").exists():
                    time.sleep(0.01)
            if body == "bad":
                raise Reject("bad")
            print("handled", body, flush=True)
"""
PUBLISHER = """
    from contextlib import suppress

    from workerkit import PeriodicTask, Publisher, PublishError

    class Beat(PeriodicTask):
        every = 0.1

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self) -> None:
            with suppress(PublishError):
                await self.publisher.publish(b"x", "nobody", timeout=0.5)
"""
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"


class Ops:
    """A client of the ops server of a process."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def asks(self, page: str, timeout: float = 20.0) -> tuple[int, Any]:
        """Return status and body of a response."""
        limit = aiohttp.ClientTimeout(timeout)
        async with self._session.get(f"{self.url}/health/{page}", timeout=limit) as answer:
            return answer.status, await answer.json()

    async def statuses(self) -> tuple[int, int, int]:
        """Return the statuses of liveness, readiness and startup."""
        live, ready, startup = [await self.asks(each) for each in ("live", "ready", "startup")]
        return live[0], ready[0], startup[0]

    async def gets(self, path: str) -> int:
        """Return the status of a page."""
        async with self._session.get(f"{self.url}{path}") as answer:
            return answer.status

    async def samples(self, path: str = "/metrics") -> dict[tuple[str, str], float]:
        """Return all metrics, by name and values of the labels, which are sorted by name."""
        async with self._session.get(f"{self.url}{path}") as answer:
            text = await answer.text()
        return {
            (sample.name, ",".join(sample.labels.values())): sample.value
            for family in read(text)
            for sample in family.samples
        }

    async def counts(self, name: str, labels: str) -> dict[tuple[str, str], float]:
        """Wait until a metric has been counted, and return all metrics."""
        samples: dict[tuple[str, str], float] = {}

        async def counted() -> float:
            samples.update(await self.samples())
            return samples.get((name, labels), 0)

        await eventually(counted, what=f"{name} of {labels}")
        return samples


@asynccontextmanager
async def worker(
    directory: Path, url: str, consumers: str = CONSUMERS, **variables: str
) -> AsyncIterator[tuple[Application, Ops]]:
    """Run the consumers with an ops server, on a port that the system has chosen."""
    package = write_package(directory, consumers=consumers)
    given: dict[str, Any] = {
        "WORKERKIT_AMQP__DEFAULT__URL": url,
        "WORKERKIT_OPS__ENABLED": "true",
        "WORKERKIT_OPS__PORT": "0",
        **variables,
    }
    async with running(package, cwd=directory, **given) as application:
        printed = await application.says("ops server at")
        async with aiohttp.ClientSession() as session:
            yield application, Ops(printed.removeprefix("ops server at "), session)


async def is_ready(ops: Ops) -> None:
    """Wait for the gate."""

    async def ready() -> bool:
        return (await ops.asks("ready"))[0] == 200

    await eventually(ready)


async def test_a1_a_worker_whose_broker_is_down_is_alive_and_not_ready(tmp_path: Path) -> None:
    """It is so from the first attempt on, and the page has the reason."""
    async with worker(tmp_path, NOWHERE) as (_, ops):
        statuses = await ops.statuses()

        async def body() -> Any:
            _, found = await ops.asks("ready")
            return found if "refused" in json.dumps(found) else None

        shown = await eventually(body)
        samples = await ops.samples()

    assert statuses == (200, 503, 503)
    assert shown["status"] == "not ready"
    assert shown["consumers"]["OrderPlaced"]["state"] == "waiting"
    assert "guest:guest" not in json.dumps(shown)
    assert samples["workerkit_connection_failures_total", "default,consumers"] >= 1
    assert samples["workerkit_ready", ""] == 0


async def test_what_a_worker_has_done_is_counted(url: str, client: Client, tmp_path: Path) -> None:
    """The worker is ready and started, and each message is counted with its action."""
    async with worker(tmp_path, url) as (application, ops):
        await is_ready(ops)
        await client.send("orders", b"1", b"2", b"bad")

        await application.says("handled 2")
        samples = await ops.counts("workerkit_deliveries_total", "OrderPlaced,dead_letter,orders")
        statuses = await ops.statuses()

    assert statuses == (200, 200, 200)
    assert samples["workerkit_deliveries_total", "OrderPlaced,ack,orders"] == 2
    assert samples["workerkit_dead_letters_total", "OrderPlaced,Reject,orders"] == 1
    assert samples["workerkit_handler_seconds_count", "OrderPlaced,orders"] == 3
    assert samples["workerkit_connections_total", "default,consumers"] == 1
    assert samples["workerkit_consumer_state", "OrderPlaced,ready"] == 1
    assert samples["process_cpu_seconds_total", ""] > 0


async def test_f2_a_worker_that_stops_is_not_ready(
    url: str, client: Client, tmp_path: Path
) -> None:
    """Not ready immediately on SIGTERM, and alive until the handler has ended."""
    async with worker(tmp_path, url) as (application, ops):
        await is_ready(ops)
        await client.send("orders", b"slow")
        await application.says("handling slow")
        application.send(signal.SIGTERM)

        async def draining() -> Any:
            status, body = await ops.asks("ready")
            return body if status == 503 else None

        shown = await eventually(draining)
        samples = await ops.samples()
        live, _ = await ops.asks("live")
        ended = any("handled slow" in line for line in application.out)
        (tmp_path / "gate").touch()
        code = await application.ended()

    assert shown["reasons"][0] == "stopping"
    assert samples["workerkit_in_flight", "OrderPlaced"] == 1
    assert (live, ended, code) == (200, False, 0)


async def test_c6_probes_of_a_worker_whose_loop_is_blocked_time_out(
    url: str, client: Client, tmp_path: Path
) -> None:
    """There is no response while the handler blocks; metrics have the duration."""
    async with worker(tmp_path, url) as (application, ops):
        await is_ready(ops)
        await client.send("orders", b"block")
        await application.says("handling block")
        port = ops.url.rpartition(":")[2]

        probed = await asyncio.to_thread(
            workerkit, "probe", "live", "--port", port, "--timeout", "0.3", cwd=tmp_path
        )
        (tmp_path / "gate").touch()
        await application.says("handled block")
        afterwards, _ = await ops.asks("live")

        async def lagged() -> bool:
            samples = await ops.samples()
            late = samples["workerkit_loop_lag_seconds_count", ""]
            return late > samples["workerkit_loop_lag_seconds_bucket", "0.25"]

        await eventually(lagged)

    assert (probed.returncode, probed.stderr) == (
        69,
        f"live: no response from 127.0.0.1:{port}: timed out\n",
    )
    assert afterwards == 200


async def test_a_consumer_that_lost_its_broker_has_still_started(
    rabbit: PrivateRabbit, url: str, tmp_path: Path
) -> None:
    """Readiness follows the broker, startup stays 200; the connections are counted."""
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        worker(tmp_path, proxy.url(url)) as (_, ops),
    ):
        await is_ready(ops)
        proxy.refuse()
        proxy.drop()
        await ops.counts("workerkit_connection_failures_total", "default,consumers")
        statuses = await ops.statuses()
        await proxy.accept()
        await is_ready(ops)
        samples = await ops.samples()

    assert statuses == (200, 503, 200)
    assert samples["workerkit_connections_total", "default,consumers"] == 2
    assert samples["workerkit_connection_losses_total", "default,consumers"] == 1


async def test_e3_a_worker_whose_publishers_are_blocked_is_not_ready(
    rabbit: PrivateRabbit, url: str, tmp_path: Path
) -> None:
    """As long as the alarm lasts. Its consumers are ready, and its publishes are counted."""
    async with worker(tmp_path, url, PUBLISHER) as (_, ops):
        await is_ready(ops)
        await ops.counts("workerkit_publishes_total", "default,unroutable")
        rabbit.memory_alarm(on=True)

        async def blocked() -> Any:
            status, body = await ops.asks("ready")
            return body if status == 503 else None

        try:
            shown = await eventually(blocked)
            samples = await ops.counts("workerkit_publishes_total", "default,blocked")
        finally:
            rabbit.memory_alarm(on=False)
        await is_ready(ops)

    assert shown["reasons"] == ["connection default: the broker blocks publishers"]
    assert shown["consumers"] == {"Beat": {"state": "ready", "reason": ""}}
    assert samples["workerkit_publishes_total", "default,unroutable"] >= 1
    assert samples["workerkit_connections_total", "default,publisher"] == 1


class Trail(Recorder):
    """An observer that records connections and publishes."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[str, str]] = []

    def connected(self, record: ConnectionEvent) -> None:
        """Record the role of the connection."""
        self.records.append(("connected", record.role))

    def published(self, record: Published) -> None:
        """Record the routing key."""
        self.records.append(("published", record.routing_key))


async def test_an_observer_of_the_container_is_notified_of_connections_and_publishes(
    url: str, client: Client
) -> None:
    """It has methods with these names; the metrics count as well."""

    class Forward(AMQPConsumer):
        queues = ["incoming"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, body: bytes) -> None:
            await self.publisher.publish(body, "outgoing")

    trail = Trail()
    await client.declare("incoming", "outgoing")

    async with running_here(url, Forward, recorder=trail) as runner:
        await client.send("incoming", b"x")
        await eventually(lambda: trail.actions == ["ack"])
        assert runner.metrics is not None
        confirmed = runner.metrics.registry.get_sample_value(
            "workerkit_publishes_total", {"connection": "default", "outcome": "confirmed"}
        )

    assert sorted(trail.records) == [
        ("connected", "consumers"),
        ("connected", "publisher"),
        ("published", "outgoing"),
    ]
    assert confirmed == 1


@contextmanager
def unused_port() -> Iterator[int]:
    """Reserve a port without listening on it: no other process can use it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


async def test_running_in_a_test_opens_no_port(url: str) -> None:
    """Not even one that is set: several applications may run in the process of a test."""
    consumer, _ = collector("orders")

    # Listening there would fail.
    with unused_port() as port:
        async with running_here(url, consumer, ops={"port": port}):
            with pytest.raises(OSError, match="Connect call failed"):
                await asyncio.open_connection("127.0.0.1", port)


async def test_a_busy_default_port_is_a_warning(tmp_path: Path) -> None:
    """Two workers on one machine: the second one runs, and logs how to set a port."""
    package = write_package(tmp_path, consumers=CONSUMERS)
    variables: dict[str, Any] = {
        "WORKERKIT_AMQP__DEFAULT__URL": NOWHERE,
        "WORKERKIT_OPS__ENABLED": "true",
    }

    # A socket of this test instead of a first worker: other tests use that port for a moment, too,
    # and then the first worker would run without it when the second one starts.
    def listener() -> socket.socket | None:
        with suppress(OSError):
            return socket.create_server(("127.0.0.1", OpsSettings().port))
        return None

    taken = await eventually(listener, 60.0)
    assert taken is not None
    with taken:
        async with running(package, cwd=tmp_path, **variables) as second:
            warning = await second.says("no ops server")
            await second.says("connection failed")

    assert "WARNING" in warning
    assert "variable=WORKERKIT_OPS__PORT" in warning
    assert 'reason="Address already in use"' in warning


async def test_a_busy_port_that_was_set_ends_the_start(tmp_path: Path) -> None:
    """Probes need that port: exit 1, and the variable is named."""
    package = write_package(tmp_path, consumers=CONSUMERS)

    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        done = await asyncio.to_thread(
            workerkit, "run", package, cwd=tmp_path, WORKERKIT_OPS__PORT=str(port)
        )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"WORKERKIT_OPS__PORT: no ops server at http://127.0.0.1:{port}: Address already in use;"
        " set another port"
    )


async def test_a_host_of_another_machine_ends_the_start(tmp_path: Path) -> None:
    """The error names the variable of the host."""
    package = write_package(tmp_path, consumers=CONSUMERS)

    done = await asyncio.to_thread(
        workerkit, "run", package, cwd=tmp_path, WORKERKIT_OPS__HOST="192.0.2.1"
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("WORKERKIT_OPS__HOST: no ops server at")


async def test_a_worker_without_an_ops_server(tmp_path: Path) -> None:
    """With OPS__ENABLED=false no port is opened or logged."""
    package = write_package(tmp_path, consumers=CONSUMERS)
    variables: dict[str, Any] = {
        "WORKERKIT_AMQP__DEFAULT__URL": NOWHERE,
        "WORKERKIT_OPS__ENABLED": "false",
    }

    # Listening there would fail, and so would the start.
    with unused_port() as port:
        variables["WORKERKIT_OPS__PORT"] = str(port)
        async with running(package, cwd=tmp_path, **variables) as application:
            await application.says("connection failed")
            with pytest.raises(OSError, match="Connect call failed"):
                await asyncio.open_connection("127.0.0.1", port)
            assert not [line for line in application.err if "ops server" in line]


async def test_without_metrics_there_is_no_page(tmp_path: Path) -> None:
    """The health pages are served."""
    async with worker(tmp_path, NOWHERE, WORKERKIT_METRICS__ENABLED="false") as (_, ops):
        live, _ = await ops.asks("live")
        page = await ops.gets("/metrics")

    assert (live, page) == (200, 404)


async def test_the_path_and_the_prefix_of_metrics_are_settings(tmp_path: Path) -> None:
    """The path, and the beginning of the names."""
    variables = {
        "WORKERKIT_METRICS__PATH": "/internal/metrics",
        "WORKERKIT_METRICS__PREFIX": "acme",
    }

    async with worker(tmp_path, NOWHERE, **variables) as (_, ops):
        samples = await ops.samples("/internal/metrics")
        page = await ops.gets("/metrics")

    assert samples["acme_ready", ""] == 0
    assert page == 404
