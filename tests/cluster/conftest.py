"""Fixtures for tests on three nodes. `make test` leaves this directory out: it takes minutes.

* `cluster`: three nodes for the whole session. Each test gets it whole, and may break it.
* `vhost`: a fresh virtual host on it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from secrets import token_hex

import pytest

from tests.cluster.figures import FIGURES, table
from tests.rabbit import missing
from tests.rabbit_cluster import RabbitCluster
from tests.rabbit_versions import installation


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[RabbitCluster]:
    """Three nodes, in the state in which the last test left them."""
    if sentence := missing():
        pytest.fail(sentence, pytrace=False)
    # Until then 3.10 takes a frozen node for a healthy one: 60 s by default.
    conf = "net_ticktime = 8\n" if installation().version < (4,) else ""
    with RabbitCluster(conf=conf) as cluster:
        yield cluster


@pytest.fixture
async def cluster(whole_cluster: RabbitCluster) -> AsyncIterator[RabbitCluster]:
    """Three running nodes, which are repaired after the test."""
    yield whole_cluster
    await asyncio.to_thread(whole_cluster.heal)


@pytest.fixture
async def vhost(cluster: RabbitCluster) -> AsyncIterator[str]:
    """Name of a virtual host that only this test uses."""
    name = f"test-{token_hex(6)}"
    await asyncio.to_thread(cluster.add_vhost, name)
    yield name
    await asyncio.to_thread(cluster.heal)
    await asyncio.to_thread(cluster.nodes[0].delete_vhost, name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures as the table in docs/clusters.md."""
    if FIGURES:
        terminalreporter.section("figures")
        terminalreporter.write_line(table(FIGURES))
