"""Delays and limits of retries. Pure: no clock, no I/O."""

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, WrapValidator

from workerkit.delivery import Outcome
from workerkit.errors import LONGEST_DELAY

LADDER = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds that `Retry` may wait where no policy has a step for it; beyond that, whole hours."""

SHORTEST_DELAY = 0.001


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The number and the delays of retries after the handler failed.

    There is one attempt more than delays. After the last one, and at once after an exception
    that another attempt cannot fix, the delivery is dead-lettered.

    Attributes:
        delays: Seconds before the second attempt, the third one...; 0 is an immediate retry, in
            which the delivery stays unsettled.
        fatal: Exceptions that another attempt cannot fix.
        only: If given, all other exceptions are fatal.
        jitter: Share of a delay that is random: it is drawn from `[(1 - jitter) d, d]`.

    Raises:
        ValueError: A number is out of range, or something is not an exception class.
    """

    delays: tuple[float, ...]
    fatal: tuple[type[Exception], ...] = ()
    only: tuple[type[Exception], ...] = ()
    jitter: float = 0.2

    def __post_init__(self) -> None:
        given: object = self.delays
        if given is None or isinstance(given, str | int | float):
            raise ValueError(f"delays is {given!r}: write a tuple, such as (0, 5, 60)")
        for delay in self.delays:
            check_delay("delays", delay)
        object.__setattr__(self, "delays", tuple(map(float, self.delays)))
        for name in ("fatal", "only"):
            object.__setattr__(self, name, _classes(name, getattr(self, name)))
        if not (_is_number(self.jitter) and 0 <= self.jitter <= 1):
            raise ValueError(f"jitter is {self.jitter!r}: it must be 0 to 1")

    @property
    def tries(self) -> int:
        """The maximum number of calls of `handle`, the first one included."""
        return len(self.delays) + 1

    @property
    def steps(self) -> tuple[float, ...]:
        """Its different delays but for zero, the shortest first."""
        return tuple(sorted({delay for delay in self.delays if delay}))

    @property
    def most_in_place(self) -> int:
        """Calls of `handle` in a row, at most, before the delivery is let go of."""
        longest = run = 1
        for delay in self.delays:
            run = 1 if delay else run + 1
            longest = max(longest, run)
        return longest

    def covers(self, error: Exception) -> bool:
        """Return whether another attempt may succeed after *error*."""
        if isinstance(error, self.fatal):
            return False
        return not self.only or isinstance(error, self.only)


def growing_pause(failures: int, first: float = 1.0, longest: float = 30.0) -> float:
    """Return the seconds to wait after this number of failures in a row; they double each time.

    Args:
        failures: At least 1.
        first: The pause after one failure.
        longest: No pause is longer.
    """
    return min(longest, first * 2.0 ** min(failures - 1, 30))


def next_delay(
    policy: RetryPolicy | None, attempt: int, asked: float | None = None
) -> float | None:
    """Return the seconds until the next attempt; None if there is none.

    Args:
        policy: Without one the number of attempts is unlimited, with the default delays.
        attempt: The number of the failed attempt, from 1.
        asked: Seconds that the handler requested; they are rounded up to a delay, 49 days at most.
    """
    if policy is not None and attempt >= policy.tries:
        return None
    if asked is not None:
        return _rounded_up(policy, asked)
    if policy is not None:
        return policy.delays[attempt - 1]
    return LADDER[min(attempt, len(LADDER)) - 1]


def pause(outcome: Outcome, policy: RetryPolicy | None) -> float:
    """Return the seconds until the next attempt, with jitter unless the handler gave them."""
    jitter = 0.0 if policy is None or outcome.exact else policy.jitter
    return outcome.delay * (1.0 - jitter * random.random())


def check_delay(name: str, seconds: Any) -> None:
    """Check a delay.

    Raises:
        ValueError: It is negative, no number, or shorter or longer than a queue can hold a message.
    """
    found = _is_number(seconds) and (seconds == 0 or SHORTEST_DELAY <= seconds <= LONGEST_DELAY)
    if not found:
        raise ValueError(
            f"{name} has {seconds!r}: write 0, or {SHORTEST_DELAY} to {LONGEST_DELAY:.0f} seconds"
        )


@dataclass(frozen=True, slots=True)
class RetryTuning:
    """The parts of a policy that an operator can set; the class sets the exceptions.

    Attributes:
        delays, jitter: As in `RetryPolicy`; None keeps the value of the class.
    """

    delays: tuple[Annotated[float, Field(ge=0, le=LONGEST_DELAY)], ...] | None = None
    jitter: Annotated[float, Field(ge=0, le=1)] | None = None

    def over(self, policy: RetryPolicy | None) -> RetryPolicy:
        """Return the policy of the class with these values.

        Raises:
            ValueError: The class has no policy, and without delays there is none.
        """
        if policy is None and self.delays is None:
            raise ValueError("the class has no retry, so RETRY__DELAYS has to be set as well")
        base = policy or RetryPolicy(())
        return RetryPolicy(
            base.delays if self.delays is None else self.delays,
            base.fatal,
            base.only,
            base.jitter if self.jitter is None else self.jitter,
        )


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)


def _as_it_is(found: Any, validate: Any) -> Any:
    if isinstance(found, list | tuple | int | float):
        raise ValueError("write RetryPolicy(delays=(0, 5, 60))")
    return found if isinstance(found, RetryPolicy) else validate(found)


if TYPE_CHECKING:
    Retries = RetryPolicy | None
else:
    # A class gives a policy. An operator gives parts of one, which are laid over it.
    Retries = Annotated[RetryTuning | None, WrapValidator(_as_it_is)]


def _rounded_up(policy: RetryPolicy | None, seconds: float) -> float:
    steps: list[float] = sorted(policy.delays) if policy is not None else []
    for step in (*steps, *LADDER):
        if step >= seconds:
            return step
    return min(LADDER[-1] * math.ceil(seconds / LADDER[-1]), LONGEST_DELAY)


def _classes(name: str, found: Any) -> tuple[type[Exception], ...]:
    classes = (found,) if isinstance(found, type) else tuple(found)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, Exception)):
            raise ValueError(f"{name} has {each!r}: write exception classes, such as (KeyError,)")
    return classes
