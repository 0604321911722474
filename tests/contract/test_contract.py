"""The contract: how RabbitMQ 3.10, 4.0 and 4.3 behave, and the embedded broker with them.

Each row of the table is a scenario and what it observes, on each version. A row that is green on
RabbitMQ says that the expectation is right, for the version of this run; a row that is green on the
embedded broker says that each of its modes keeps to it.
"""

from itertools import pairwise

import pytest

from tests.contract import (
    consuming,
    dead_letters,
    errors,
    exchanges,
    expiry,
    handshake,
    lifetimes,
    limits,
    publishing,
    queues,
    quorum,
    routing,
    settling,
    transactions,
    versions,
)
from tests.contract.environment import VERSIONS, Environment, Row
from tests.contract.rabbit import closest

TABLE = [
    *handshake.ROWS,
    *errors.ROWS,
    *exchanges.ROWS,
    *routing.ROWS,
    *queues.ROWS,
    *lifetimes.ROWS,
    *consuming.ROWS,
    *settling.ROWS,
    *publishing.ROWS,
    *transactions.ROWS,
    *expiry.ROWS,
    *limits.ROWS,
    *dead_letters.ROWS,
    *quorum.ROWS,
    *versions.ROWS,
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_both_brokers_behave_alike(row: Row, env: Environment) -> None:
    """The scenario observes what the table expects of the version."""
    observed = await row.scenario(env)

    assert observed == row.expected_of(env.broker.behaves_as)


def test_the_table_is_complete() -> None:
    """No two rows have one name, and every scenario says what it shows."""
    assert len({row.name for row in TABLE}) == len(TABLE) >= 80
    assert all(row.scenario.__doc__ for row in TABLE)


def test_fr24_a_version_that_differs_is_one_that_is_known() -> None:
    """`since` names versions of the contract, and only where they change something."""
    for row in TABLE:
        assert set(row.since) <= set(VERSIONS[1:]), row.name
        for before, version in pairwise(VERSIONS):
            if version in row.since:
                assert row.since[version] != row.expected_of(before), (row.name, version)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ((3, 10, 8), "3.10"),
        ((3, 13, 7), "3.10"),
        ((4, 0, 5), "4.0"),
        ((4, 2, 1), "4.0"),
        ((4, 3, 6), "4.3"),
        ((5, 0, 0), "4.3"),
    ],
)
def test_fr24_a_release_behaves_as_the_last_version_before_it(
    release: tuple[int, ...], version: str
) -> None:
    """The expectations of a version hold until the next one that differs."""
    assert closest(release) == version
