"""Fixtures for every test, such as a private RabbitMQ node.

* `rabbit`: one node for the whole session. Leave it as it was found: other tests use it.
* `vhost`: a fresh virtual host on that node, deleted afterwards. Creating one takes 7 ms.
* `broker`: a node for one test, which may kill, freeze or alarm it. Starting one takes 4 s.

Nothing is skipped: without RabbitMQ these tests fail, and say what to install.
"""

import gc
import logging
from collections.abc import Iterator
from secrets import token_hex

import pytest
from hypothesis import HealthCheck, settings

from tests.rabbit import PrivateRabbit, missing

# The same examples each time, so that a test that fails is about what has changed, and no clock:
# machines are busy. `pytest --hypothesis-profile=default` looks further.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


# Each worker of pytest-xdist takes the next file: one that takes a minute must not be the last.
_LONGEST = (
    "test_wheel test_outages test_soak test_topology_command test_field_handshakes"
    " test_dead_letters_command test_rabbit test_stopping test_field_singleton"
    " test_field_first_publish test_field_many test_killed test_contract test_field_channels"
    " test_field_seams test_overdue test_docs_types test_demo test_docs_site test_field_stream"
    " test_moves test_http_openapi test_field_ordering test_consumer test_replies test_tls"
    " test_burst test_ops test_blocked_loop test_embedded_command test_processes test_tutorial"
    " test_suites test_template_database test_template_page test_console_fleet test_console_page"
    " test_console_letters test_console_desk"
).split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files: the longest first."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """Take what exists now out of garbage collections: many tests collect, which costs 0.1 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Restore the loggers, which a command called inside a test has silenced."""
    ours = logging.getLogger("workerkit")
    level = ours.level
    yield
    ours.setLevel(level)


@pytest.fixture(scope="session")
def rabbit() -> Iterator[PrivateRabbit]:
    """The node that tests share."""
    _require()
    with PrivateRabbit() as node:
        yield node


@pytest.fixture
def vhost(rabbit: PrivateRabbit) -> Iterator[str]:
    """Name of a virtual host that only this test uses; `rabbit.url(vhost)` is its address."""
    name = f"test-{token_hex(6)}"
    rabbit.add_vhost(name)
    yield name
    rabbit.delete_vhost(name)


@pytest.fixture
def broker() -> Iterator[PrivateRabbit]:
    """A node that only this test uses."""
    _require()
    with PrivateRabbit() as node:
        yield node


def _require() -> None:
    if sentence := missing():
        pytest.fail(sentence, pytrace=False)
