"""Policies: when there is another try, after how long, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit import Action, Retry, RetryPolicy
from workerkit.delivery import Outcome
from workerkit.errors import LONGEST_DELAY, HandlerTimeout
from workerkit.retry import LADDER, SHORTEST_DELAY, RetryTuning, next_delay, pause
from workerkit.testing import fake_message

POLICY = RetryPolicy(delays=(0, 5, 60))


@pytest.mark.parametrize(
    ("policy", "attempt", "asked", "expected"),
    [
        (POLICY, 1, None, 0),
        (POLICY, 2, None, 5),
        (POLICY, 3, None, 60),
        (POLICY, 4, None, None),
        (POLICY, 99, None, None),
        (RetryPolicy(delays=()), 1, None, None),
        # What a handler asks for is rounded up to a step of the policy...
        (POLICY, 1, 0, 0),
        (POLICY, 1, 0.1, 5),
        (POLICY, 1, 5, 5),
        (POLICY, 1, 5.1, 60),
        # ... else of the ladder, else to whole hours...
        (POLICY, 1, 61, 300),
        (POLICY, 1, 3601, 7200),
        (POLICY, 1, 1e12, LONGEST_DELAY),
        # ... and counts as a try.
        (POLICY, 3, 60, 60),
        (POLICY, 4, 60, None),
        # Without a policy there is no end, and nothing is in place.
        (None, 1, None, 1),
        (None, 2, None, 5),
        (None, 7, None, 3600),
        (None, 1_000, None, 3600),
        (None, 1, 0, 1),
        (None, 1_000, 61, 300),
    ],
)
def test_when_there_is_another_try(
    policy: RetryPolicy | None, attempt: int, asked: float | None, expected: float | None
) -> None:
    """A delay for each failed try but the last one."""
    assert next_delay(policy, attempt, asked) == expected


@given(
    st.lists(st.floats(SHORTEST_DELAY, LONGEST_DELAY), max_size=5),
    st.floats(0, LONGEST_DELAY),
)
def test_what_is_asked_for_is_never_cut_short(delays: list[float], asked: float) -> None:
    """Whatever a handler asks for, the next try does not come before."""
    found = next_delay(RetryPolicy(tuple(delays)), 0, asked)

    assert found is not None
    assert asked <= found <= LONGEST_DELAY


@given(st.floats(0, 1), st.floats(0.001, 1e6))
def test_jitter_makes_delays_shorter_only(jitter: float, delay: float) -> None:
    """A delay is drawn from `[(1 - jitter) d, d]`; what the handler asked for is not touched."""
    policy = RetryPolicy((), jitter=jitter)
    drawn = pause(Outcome(Action.RETRY, delay=delay), policy)
    asked = pause(Outcome(Action.RETRY, delay=delay, exact=True), policy)

    assert delay * (1 - jitter) * 0.999_999 <= drawn <= delay
    assert asked == delay


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"delays": 5}, "write a tuple"),
        ({"delays": "5"}, "write a tuple"),
        ({"delays": (-1,)}, "delays has -1"),
        ({"delays": (float("nan"),)}, "nan"),
        ({"delays": (0.0001,)}, "0.0001"),
        ({"delays": (LONGEST_DELAY + 1,)}, "seconds"),
        ({"delays": None}, "write a tuple"),
        ({"delays": (0, "x")}, "delays has 'x'"),
        ({"delays": (True,)}, "delays has True"),
        ({"delays": (1,), "jitter": 1.1}, "jitter is 1.1"),
        ({"delays": (1,), "jitter": "x"}, "jitter is 'x'"),
        ({"delays": (1,), "fatal": ("KeyError",)}, "fatal has 'KeyError'"),
        ({"delays": (1,), "only": (int,)}, "only has <class 'int'>"),
    ],
)
def test_what_is_no_policy(arguments: dict[str, Any], said: str) -> None:
    """The text names the argument, and what would be right."""
    with pytest.raises(ValueError, match=said):
        RetryPolicy(**arguments)


def test_one_exception_needs_no_tuple() -> None:
    """`fatal=KeyError` is meant as `fatal=(KeyError,)`."""
    assert RetryPolicy((1,), fatal=KeyError) == RetryPolicy((1,), fatal=(KeyError,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "covered", "fatal"),
    [
        (RetryPolicy((1,)), [KeyError, OSError], []),
        (RetryPolicy((1,), fatal=(LookupError,)), [OSError], [KeyError]),
        (RetryPolicy((1,), only=(OSError,)), [OSError, ConnectionError], [KeyError]),
        (
            RetryPolicy((1,), only=(OSError,), fatal=(ConnectionError,)),
            [OSError],
            [ConnectionError, KeyError],
        ),
    ],
)
def test_which_exceptions_are_worth_another_try(
    policy: RetryPolicy, covered: list[type[Exception]], fatal: list[type[Exception]]
) -> None:
    """Subclasses count; `fatal` wins over `only`."""
    assert [each for each in covered + fatal if policy.covers(each())] == covered


@pytest.mark.parametrize(
    ("delays", "most"), [((), 1), ((1,), 1), ((0,), 2), ((0, 0, 1, 0), 3), ((1, 0, 0, 0), 4)]
)
def test_tries_in_place(delays: tuple[float, ...], most: int) -> None:
    """Calls in a row without letting go of the message."""
    assert RetryPolicy(delays).most_in_place == most


def test_a_tuning_is_laid_over_the_policy_of_the_class() -> None:
    """What it does not say stays; the exceptions always do."""
    policy = RetryPolicy((1, 2), fatal=(KeyError,), jitter=0.5)

    assert RetryTuning(delays=(3,)).over(policy) == RetryPolicy((3,), (KeyError,), jitter=0.5)
    assert RetryTuning(jitter=0).over(policy) == RetryPolicy((1, 2), (KeyError,), jitter=0)
    assert RetryTuning(delays=(3,)).over(None) == RetryPolicy((3,))
    with pytest.raises(ValueError, match="RETRY__DELAYS has to be set"):
        RetryTuning(jitter=0).over(None)


@pytest.mark.parametrize("after", [-1, float("nan"), float("inf"), "x", True, 1e12])
def test_no_time_to_retry_after(after: Any) -> None:
    """Refused where it is written; no queue holds a message for longer than 49 days."""
    with pytest.raises(ValueError, match=r"after is .*: it must be 0 to 4294800 seconds"):
        Retry(after=after)
    with pytest.raises(ValueError, match="after is"):
        fake_message().retry(after=after)


def test_the_longest_time_to_retry_after() -> None:
    """As long as a queue can hold a message."""
    assert Retry(after=LONGEST_DELAY).after == LONGEST_DELAY


def test_a_handler_that_takes_too_long_may_be_tried_again_as_any_timeout() -> None:
    """`only=(TimeoutError,)` covers the consumer's own `timeout`."""
    policy = RetryPolicy((1,), only=(TimeoutError,))

    assert policy.covers(HandlerTimeout("Orders: handle took longer than 1 s"))
    assert str(HandlerTimeout("it took long")) == "it took long"


def test_the_seconds_have_a_name() -> None:
    """`Retry(60)` is most likely meant as seconds."""
    with pytest.raises(TypeError, match=r"write Retry\(after=60\)"):
        Retry(60)  # type: ignore[arg-type]


def test_the_ladder_is_that_of_the_documentation() -> None:
    """Seconds."""
    assert LADDER == (1, 5, 15, 60, 300, 900, 3600)
