"""Fixtures of the tests with other clients: brokers as processes, names, a journal of workers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from tests.clients.broker_process import BrokerProcess, broker_process


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker for all tests, whose queues have names of their own."""
    with broker_process(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def url(shared_broker: BrokerProcess) -> str:
    """The address of the shared broker."""
    return shared_broker.url


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker that only this test uses, and may restart."""
    with broker_process(tmp_path) as broker:
        yield broker


@pytest.fixture
def name() -> str:
    """A name for what a test declares on the shared broker."""
    return f"test-{token_hex(6)}"


@pytest.fixture
def journal(tmp_path: Path) -> Callable[[], list[str]]:
    """The lines that tasks have written to the file `journal`, of which `JOURNAL` is the path."""
    path = tmp_path / "journal"

    def lines() -> list[str]:
        return path.read_text().splitlines() if path.exists() else []

    return lines
