"""What several commands have in common: options, and how faults are told."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from workerkit import logs
from workerkit.describe import format_traceback
from workerkit.errors import StartError
from workerkit.runner import report_faults
from workerkit.safe_text import escape_lines, mask_passwords, without_credentials

# Newer versions of typer have a copy of click, older ones import it.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

Container = Annotated[
    str | None,
    typer.Option(help="module:attribute; PACKAGE.container:Container by default."),
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where a fault was found.")]


class Group(TyperGroup):
    """The commands; what is wrong with their arguments is written without credentials."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the arguments of the group."""
        with _without_credentials():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Parse the arguments of a command, and run it."""
        with _without_credentials():
            return super().invoke(ctx)


@contextmanager
def _without_credentials() -> Iterator[None]:
    try:
        yield
    except _USAGE_ERROR as error:
        error.message = without_credentials(error.message)
        raise


@contextmanager
def faults(traceback: bool) -> Iterator[None]:
    """Write each fault on a line of its own, and exit as its kind wants."""
    try:
        yield
    except StartError as error:
        if traceback:
            print(escape_lines(mask_passwords(format_traceback(error))).rstrip(), file=sys.stderr)
        else:
            report_faults(error.faults)
        raise typer.Exit(error.exit_code) from None


def quiet() -> None:
    """Log nothing: what goes wrong is said once, by the error that ends the command."""
    logs.quiet_libraries()
    logging.getLogger("workerkit").setLevel(logging.CRITICAL)
