"""What is logged of each delivery, and of an error in one line."""

import logging
from itertools import pairwise

import pytest

from workerkit import Action, Settled
from workerkit.delivery import Delivery, Outcome
from workerkit.describe import summarize_error, without_needless_traceback
from workerkit.errors import BrokerRefused, ConnectionLost
from workerkit.observe import log_settled
from workerkit.testing import fake_message


def logged(
    caplog: pytest.LogCaptureFixture, outcome: Outcome, *, lost: bool
) -> tuple[str, str, str]:
    """Level, message and action of the record of a delivery."""
    caplog.set_level(logging.DEBUG, "workerkit")
    log_settled(Settled("Orders", "orders", Delivery(b""), outcome, outcome.action, 0.1, lost))
    [record] = caplog.records
    return record.levelname, record.message, vars(record)["action"]


def test_handled(caplog: pytest.LogCaptureFixture) -> None:
    """What went well is for those who look for it."""
    assert logged(caplog, Outcome(Action.ACK), lost=False) == ("DEBUG", "handled", "ack")


def test_handled_while_the_connection_was_lost(caplog: pytest.LogCaptureFixture) -> None:
    """The record says that it was handled: only the acknowledgement has not arrived."""
    assert logged(caplog, Outcome(Action.ACK), lost=True) == (
        "WARNING",
        "handled, but not acknowledged: the connection was lost",
        "lost",
    )


@pytest.mark.parametrize("lost", [True, False])
def test_not_handled(caplog: pytest.LogCaptureFixture, lost: bool) -> None:
    """A handler that raised has not handled it, even if the connection was lost."""
    outcome = Outcome(Action.REQUEUE, KeyError("x"))

    level, message, _ = logged(caplog, outcome, lost=lost)

    assert (level, message) == ("WARNING", "not handled")


@pytest.mark.parametrize(("moved", "level"), [(True, "ERROR"), (False, "WARNING")])
def test_fp1_a_dead_letter_whose_original_comes_again(
    caplog: pytest.LogCaptureFixture, moved: bool, level: str
) -> None:
    """Where the copy has arrived it is given up, though its acknowledgement was lost."""
    delivery = fake_message(b"")
    delivery.moved = moved
    outcome = Outcome(Action.DEAD_LETTER, KeyError("x"))

    log_settled(Settled("Orders", "orders", delivery, outcome, outcome.action, 0.1, lost=True))

    assert [each.levelname for each in caplog.records] == [level]


@pytest.mark.parametrize(
    ("action", "level"),
    [
        (Action.ACK, "ERROR"),
        (Action.REJECT, "ERROR"),
        (Action.DEAD_LETTER, "ERROR"),
        (Action.RETRY, "WARNING"),
        (Action.REQUEUE, "WARNING"),
    ],
)
def test_fp1_what_is_not_tried_again_is_an_error(
    caplog: pytest.LogCaptureFixture, action: Action, level: str
) -> None:
    """With the exception, from which an error tracker takes the traceback."""
    error = KeyError("x")

    assert logged(caplog, Outcome(action, error), lost=False)[0] == level
    assert caplog.records[0].exc_info == (KeyError, error, None)


class Silent(Exception):
    """Fails to say what it is."""

    def __str__(self) -> str:
        raise ValueError("no text")


def test_not_handled_and_without_a_text(caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged all the same, with its class and traceback."""
    level, message, _ = logged(caplog, Outcome(Action.REQUEUE, Silent()), lost=False)

    assert (level, message) == ("WARNING", "not handled")
    assert vars(caplog.records[0])["error"].endswith("Silent")
    assert "Silent: <exception str() failed>" in caplog.text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConnectionLost("the broker is away"), "the broker is away"),
        (ConnectionLost(), "ConnectionLost"),
        (OSError(13, "no"), "PermissionError: [Errno 13] no"),
        (ValueError("one\ntwo"), "ValueError: one"),
        (Silent(), "Silent"),
    ],
)
def test_an_error_in_a_line(error: Exception, line: str) -> None:
    """Ours speak for themselves, of others the class says what they are."""
    assert summarize_error(error) == line


def test_fp1_a_traceback_is_for_what_nobody_foresaw() -> None:
    """It is left out only if each cause is an error of ours, of the system, or an expected one."""

    def caused_by(*causes: Exception) -> Exception:
        error: Exception = BrokerRefused("refused", 403)
        for outer, inner in pairwise((error, *causes)):
            outer.__cause__ = inner
        return error

    bug = caused_by(OSError("refused"), KeyError("capabilities"))
    assert without_needless_traceback(bug) is bug
    for error in (caused_by(TimeoutError(), ConnectionResetError()), caused_by(KeyError("x"))):
        brief = without_needless_traceback(error, LookupError)
        assert (type(brief), str(brief), vars(brief)) == (BrokerRefused, "refused", vars(error))
        assert (brief.__cause__, brief.__traceback__) == (None, None)
        assert brief is not error


@pytest.mark.parametrize(
    ("outcome", "fields"),
    [
        (Outcome(Action.RETRY, KeyError("x"), delay=5.0), {"attempt": 2, "delay": 5.0}),
        (Outcome(Action.RETRY, KeyError("x"), delay=0), {"attempt": 2, "delay": 0}),
        (Outcome(Action.REQUEUE, KeyError("x")), {"attempt": 2}),
        (Outcome(Action.DEAD_LETTER, KeyError("x")), {"attempt": 2}),
    ],
)
def test_the_attempt_that_failed(
    caplog: pytest.LogCaptureFixture, outcome: Outcome, fields: dict[str, object]
) -> None:
    """The record has its number, and when the next one begins."""
    delivery = fake_message(b"", attempt=2)

    log_settled(Settled("Orders", "orders", delivery, outcome, outcome.action, 0.1))

    [record] = caplog.records
    found = {name: vars(record)[name] for name in ("attempt", "delay") if name in vars(record)}
    assert found == fields
