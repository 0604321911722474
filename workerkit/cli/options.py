"""What several commands have in common: options, and how faults are told."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from workerkit import logs
from workerkit.errors import StartError
from workerkit.escaping import escape_lines, mask_passwords
from workerkit.places import formatted
from workerkit.runner import complain

Container = Annotated[
    str | None,
    typer.Option(help="module:attribute; PACKAGE.container:Container by default."),
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where a fault was found.")]


@contextmanager
def faults(traceback: bool) -> Iterator[None]:
    """Write each fault on a line of its own, and exit as its kind wants."""
    try:
        yield
    except StartError as error:
        if traceback:
            print(escape_lines(mask_passwords(formatted(error))).rstrip(), file=sys.stderr)
        else:
            complain(error.faults)
        raise typer.Exit(error.exit_code) from None


def quiet() -> None:
    """Log nothing: what goes wrong is said once, by the error that ends the command."""
    logs.quiet_libraries()
    logging.getLogger("workerkit").setLevel(logging.CRITICAL)
