"""The tables of the settlement: what is done about a message, by its action and its queue."""

import pytest

from workerkit.amqp.settlement import COPY_FAILED, OVERSIZED, TABLE, QueueKind, Step, Steps
from workerkit.delivery import Action

ROWS: list[Steps] = [*TABLE.values(), *COPY_FAILED.values(), *OVERSIZED.values()]


def test_the_table_has_a_row_for_each_action() -> None:
    """No decision of a handler is without a step."""
    assert set(TABLE) == set(Action)


def test_each_step_that_publishes_a_copy_has_a_row_for_its_failure() -> None:
    """Copies are published for retries and dead letters."""
    assert set(COPY_FAILED) == {Step.RETRY, Step.DEAD_LETTER}


@pytest.mark.parametrize("row", ROWS)
def test_rows_have_a_step_for_each_kind_of_queue(row: Steps) -> None:
    """The columns are the kinds."""
    assert len(row) == len(QueueKind)


@pytest.mark.parametrize("kind", [QueueKind.AT_LIMIT, QueueKind.STREAM])
@pytest.mark.parametrize("row", ROWS)
def test_nothing_is_requeued_where_that_could_lose_it(row: Steps, kind: QueueKind) -> None:
    """A quorum queue at its delivery limit would drop the message; a stream takes none back."""
    assert row[kind] is not Step.REQUEUE


@pytest.mark.parametrize("row", ROWS)
def test_the_delivery_limit_matters_for_requeues_only(row: Steps) -> None:
    """So the settlement looks at the limit only before it requeues."""
    if row[QueueKind.QUEUE] is not Step.REQUEUE:
        assert row[QueueKind.AT_LIMIT] is row[QueueKind.QUEUE]


@pytest.mark.parametrize("kind", QueueKind)
def test_failed_copies_end_without_another_copy(kind: QueueKind) -> None:
    """A retry may become a dead letter, and a dead letter does not become a retry."""
    after_retry = COPY_FAILED[Step.RETRY][kind]
    after_dead_letter = COPY_FAILED[Step.DEAD_LETTER][kind]

    assert after_retry is not Step.RETRY
    assert after_dead_letter not in (Step.RETRY, Step.DEAD_LETTER)


@pytest.mark.parametrize("kind", [QueueKind.STREAM, QueueKind.PER_PROCESS])
def test_retries_are_made_in_place_where_a_copy_could_not_return(kind: QueueKind) -> None:
    """A copy in a stream reaches all consumers; the queue of one process is deleted with it."""
    assert TABLE[Action.RETRY][kind] is Step.IN_PLACE


@pytest.mark.parametrize("row", OVERSIZED.values())
def test_a_message_without_a_body_is_never_copied(row: Steps) -> None:
    """There is nothing to publish."""
    assert not {Step.RETRY, Step.DEAD_LETTER} & set(row)


@pytest.mark.parametrize("action", Action)
def test_only_dead_letters_need_a_broker(action: Action) -> None:
    """Without one they are rejected, also from the queue of one process."""
    expected = Action.REJECT if action is Action.DEAD_LETTER else action

    assert action.without_broker is expected
    if action is not Action.RETRY:
        assert TABLE[action][QueueKind.PER_PROCESS] == action.without_broker.value
