"""The applications of other frameworks: their variables, and what their tasks note for the test."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
"""The directory to run a worker in, so that it finds its application."""


def variables(directory: Path, url: str, name: str) -> dict[str, str]:
    """Return the variables that an application reads.

    Args:
        directory: For the journal.
        url: The address of the broker.
        name: What the names of its queues begin with.
    """
    return {"AMQP_URL": url, "QUEUE": name, "JOURNAL": str(directory / "journal")}


def imported(module: str, variables: Mapping[str, str]) -> ModuleType:
    """Import an application anew, as a producer with these variables."""
    sys.modules.pop(module, None)
    with environment(variables):
        return import_module(module)


def note(line: str) -> None:
    """Write a line to the journal, from a task."""
    with Path(os.environ["JOURNAL"]).open("a") as journal:
        journal.write(f"{line}\n")


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, text in variables.items():
            patch.setenv(variable, text)
        yield
