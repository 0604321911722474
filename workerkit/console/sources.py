"""Where the console finds processes, and how it sends them commands."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from workerkit.console.model import Command, CommandResult, Operator
from workerkit.console.reports import ProcessReport


class Answers(NamedTuple):
    """What processes have answered.

    Attributes:
        reports: Of those that answered in time.
        silent: The ids of processes that are known and did not answer.
        problems: Why others are missing, one sentence each.
    """

    reports: Sequence[ProcessReport]
    silent: Sequence[str] = ()
    problems: Sequence[str] = ()


class Source(Protocol):
    """Reaches some processes: this one, those of the fleet, or those at some addresses."""

    async def reports(self) -> Answers:
        """Return the reports of all processes that answer within a second."""

    async def execute(self, command: Command, operator: Operator) -> Sequence[CommandResult]:
        """Have a command executed by those of its processes that this source knows.

        Returns:
            A result for each of them; for those that did not answer in time, one that says so.
        """

    async def close(self) -> None:
        """Close connections."""


class Agent(Protocol):
    """Reports on this process, and changes it.

    Attributes:
        id: Unique for each start of a process.
    """

    id: str

    def report(self) -> ProcessReport:
        """Return the report of this process."""

    async def execute(self, command: Command, operator: Operator) -> CommandResult:
        """Execute a command here, whatever processes it names; write an audit record."""
