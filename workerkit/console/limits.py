"""Limits of what other processes report. Whoever can publish to the broker can write a report."""

from datetime import UTC, datetime
from math import isfinite
from typing import Any, TypeVar

from workerkit.console.reports import Model, ProcessReport

MOST_ITEMS = 10_000
"""Consumers, queues, routes and the like of one process, together."""

LONGEST_ID = 64

_LARGEST = 2**53  # Beyond it, JavaScript does not tell two numbers apart.
_LONGEST_TEXT = 2_000

AnyModel = TypeVar("AnyModel", bound=Model)


class TooLarge(Exception):
    """A report has too many items."""


def limited(report: ProcessReport) -> tuple[ProcessReport, int]:
    """Return a report that can be merged with others, and the number of its items.

    Long texts are cut, numbers are finite, and all times have a time zone.

    Raises:
        TooLarge: It has too many items, or its id is too long for a command.
    """
    if len(report.id) > LONGEST_ID:
        raise TooLarge(f"a process has an id of {len(report.id)} characters")
    limits = _Limits()
    return limits.model(report), limits.items


class _Limits:
    """Limits one report.

    Attributes:
        items: The number of models in it so far.
    """

    def __init__(self) -> None:
        self.items = 0

    def model(self, model: AnyModel) -> AnyModel:
        """Return a model with limited values; the same one if they are."""
        self.items += 1
        if self.items > MOST_ITEMS:
            raise TooLarge(f"a process reports more than {MOST_ITEMS} consumers, queues and routes")
        changed = {
            name: limited
            for name, value in vars(model).items()
            if (limited := self._value(value)) is not value
        }
        return model.model_copy(update=changed) if changed else model

    def _value(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            return value if len(value) <= _LONGEST_TEXT else value[:_LONGEST_TEXT]
        if kind is int:
            return value if -_LARGEST <= value <= _LARGEST else _LARGEST
        if kind is float:
            return value if isfinite(value) else 0.0
        if kind is datetime:
            return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        if kind is list or kind is tuple:
            return self._values(value)
        return self.model(value) if isinstance(value, Model) else value

    def _values(self, values: Any) -> Any:
        if len(values) > MOST_ITEMS:
            raise TooLarge(f"a process reports a list of {len(values)} values")
        limited = [self._value(each) for each in values]
        same = all(one is other for one, other in zip(limited, values, strict=True))
        return values if same else limited
