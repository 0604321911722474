"""Filters that select dead letters."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from workerkit.amqp.dead_letters import Evidence, moment
from workerkit.amqp.message import AMQPMessage

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_since(text: str, now: datetime) -> datetime:
    """Return the time that `2026-01-31T12:00` means, or an age such as `2h`.

    Args:
        text: ISO 8601, in UTC unless it has an offset, or a number of s, m, h, d or w.

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


def _parse_option(text: str) -> datetime:
    try:
        return parse_since(text, datetime.now(UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters, which are options of the commands.

    A message passes if it passes each filter that is given. A filter with several values passes a
    message that has any of them.

    Attributes:
        errors: The class of the exception; of a nested class, the last part is enough.
        consumers: The consumer's name, compared like names in environment variables.
        since: The message failed then or later. A message without a time of failure does not pass.
        message_ids: The message id.
    """

    errors: Annotated[
        list[str] | None,
        typer.Option(
            "--error", help="Only messages with this exception; repeatable.", metavar="CLASS"
        ),
    ] = None
    consumers: Annotated[
        list[str] | None,
        typer.Option(
            "--consumer", help="Only messages of this consumer; repeatable.", metavar="NAME"
        ),
    ] = None
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=_parse_option,
            metavar="TIME",
            help="Only messages that failed since: ISO 8601 in UTC, or an age such as 2h.",
        ),
    ] = None
    message_ids: Annotated[
        list[str] | None,
        typer.Option("--id", help="Only messages with this message id; repeatable.", metavar="ID"),
    ] = None

    def __bool__(self) -> bool:
        return bool(str(self))

    def __str__(self) -> str:
        values = {
            "error": " or ".join(self.errors or ()),
            "consumer": " or ".join(self.consumers or ()),
            "since": self.since and f"{self.since:%Y-%m-%d %H:%M:%S} UTC",
            "id": " or ".join(self.message_ids or ()),
        }
        return ", ".join(f"{name} {value}" for name, value in values.items() if value)

    def matches(self, message: AMQPMessage[Any]) -> bool:
        """Return whether *message* passes all filters."""
        if self.message_ids and message.message_id not in self.message_ids:
            return False
        found = Evidence.of(message)
        return (
            (not self.errors or any(map(found.is_error, self.errors)))
            and (not self.consumers or any(map(found.is_of, self.consumers)))
            and (self.since is None or found.failed_since(self.since))
        )
