"""The messages that the processes of one application send each other, as JSON."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic_core import from_json

from workerkit.console.model import Command, CommandResult, Operator
from workerkit.console.reports import Model, ProcessReport

LARGEST = 1024 * 1024
"""Bytes of a message."""

LARGEST_REQUEST = 128 * 1024
"""Bytes of a message that is no report."""

_OF_REPORT = frozenset({"version", "kind", "process", "request", "report"})

Id = Annotated[str, Field(max_length=64)]


class Message(Model):
    """What processes send each other.

    Attributes:
        version: Of this format.
        process: The id of the sender.
        request: The id of the request, also in its answers.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: Literal[1] = 1
    kind: Literal["ask", "report", "command", "result", "hello", "bye"]
    process: Id = ""
    request: Id = ""
    report: ProcessReport | None = None
    command: Command | None = None
    operator: Operator | None = None
    result: CommandResult | None = None


def encoded(message: Message) -> bytes:
    """Return a message as JSON."""
    return message.model_dump_json(exclude_none=True).encode()


def decoded(body: bytes) -> Message:
    """Return a message.

    Raises:
        ValueError: It is none. The text has nothing of what was sent.
    """
    try:
        # Pydantic copies the whole input for each fault in JSON, and only refers to it in objects.
        found = from_json(body)
    except ValueError:
        raise ValueError(f"no JSON, {len(body)} bytes") from None
    if not isinstance(found, dict):
        raise ValueError(f"no object, {len(body)} bytes")
    if len(body) > LARGEST_REQUEST:
        found = {name: value for name, value in found.items() if name in _OF_REPORT}
    try:
        return Message.model_validate(found)
    except ValidationError as error:
        raise ValueError(f"{error.error_count()} errors in {len(body)} bytes") from None


def shortened(report: ProcessReport) -> Iterator[ProcessReport]:
    """Yield a report, then shorter and shorter ones."""
    yield report
    report = report.model_copy(update={"failures": (), "connections": ()})
    yield report
    without = {"routes": (), "bounds": (), "counts": ()}
    short = [each.model_copy(update=without) for each in report.consumers]
    yield report.model_copy(update={"consumers": short})
    reason = "its report is too large to show its consumers"
    yield report.model_copy(update={"consumers": (), "reasons": (reason,)})
