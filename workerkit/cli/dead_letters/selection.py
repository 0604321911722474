"""Which dead letters a command is about."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from workerkit.amqp.dead_letters import Evidence, moment
from workerkit.amqp.message import AMQPMessage
from workerkit.options import folded

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_NEVER = datetime.min.replace(tzinfo=UTC)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters, all of which a message has to pass; of several values one has to fit.

    Attributes:
        errors: The class of the exception; of a nested one the last part is enough.
        consumers: Its name, which compares as environment variables do.
        since: It failed then or later; what does not say when it failed is left out.
        message_ids: Its id.
    """

    errors: Sequence[str] | None = None
    consumers: Sequence[str] | None = None
    since: datetime | None = None
    message_ids: Sequence[str] | None = None

    def __bool__(self) -> bool:
        return bool(str(self))

    def __str__(self) -> str:
        told = {
            "error": " or ".join(self.errors or ()),
            "consumer": " or ".join(self.consumers or ()),
            "since": self.since and f"{self.since:%Y-%m-%d %H:%M:%S} UTC",
            "id": " or ".join(self.message_ids or ()),
        }
        return ", ".join(f"{name} {value}" for name, value in told.items() if value)

    def matches(self, message: AMQPMessage[Any]) -> bool:
        """Whether *message* is one of them."""
        if self.message_ids and message.message_id not in self.message_ids:
            return False
        found = Evidence.of(message)
        return (
            (not self.errors or _is_error(self.errors, found.error))
            and (not self.consumers or _is_consumer(self.consumers, found.consumer))
            and (self.since is None or (found.failed_at or _NEVER) >= self.since)
        )


def since(text: str, now: datetime) -> datetime:
    """The time that somebody means with `2026-01-31T12:00`, or with an age such as `2h`.

    Args:
        text: ISO 8601, in UTC unless it says otherwise, or a number of s, m, h, d or w.

    Raises:
        ValueError: It is neither.
    """
    found = moment(text)
    if age := _AGE.fullmatch(text):
        try:
            found = now - timedelta(**{_UNITS[age[2]]: float(age[1])})
        except OverflowError:
            found = None
    if found is None:
        raise ValueError(f"{text!r}: write a time such as 2026-01-31T12:00, or an age such as 2h")
    return found


def _is_error(asked: Sequence[str], found: str | None) -> bool:
    return found is not None and (found in asked or found.rpartition(".")[2] in asked)


def _is_consumer(asked: Sequence[str], found: str | None) -> bool:
    return found is not None and folded(found) in map(folded, asked)
