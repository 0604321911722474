"""The contract: how RabbitMQ 3.10 behaves, and the embedded broker with it.

Each row of the table is a scenario and what it observes. A row that is green on RabbitMQ says that
the expectation is right; a row that is green on both says that the embedded broker keeps to it.
"""

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
)
from tests.contract.site import Row, Site

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
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_both_brokers_behave_alike(row: Row, site: Site) -> None:
    """The scenario observes what the table expects."""
    observed = await row.scenario(site)

    assert observed == row.expected


def test_the_table_is_complete() -> None:
    """No two rows have one name, and every scenario says what it shows."""
    assert len({row.name for row in TABLE}) == len(TABLE) >= 80
    assert all(row.scenario.__doc__ for row in TABLE)
