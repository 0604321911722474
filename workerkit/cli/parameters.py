"""Options that several commands share, and how errors are printed."""

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import wraps
from pathlib import Path
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


def packages(incomplete: str) -> list[str]:
    """Return the packages in the current directory that complete a name."""
    found = (path.parent.name for path in Path().glob("*/__init__.py"))
    return sorted(name for name in found if name.startswith(incomplete))


Package = Annotated[
    str, typer.Argument(help="The package with the consumers.", autocompletion=packages)
]
Container = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:NAME", help="The container; PACKAGE.container:Container by default."
    ),
]
Traceback = Annotated[
    bool, typer.Option("--traceback", help="Print a traceback with an error, for debugging.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
All = Annotated[
    bool,
    typer.Option("--all", help="Also values that are the default; a pipe gets them in any case."),
]


class Group(TyperGroup):
    """Commands whose usage errors are printed without credentials."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the arguments of the group."""
        with _without_credentials():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Parse the arguments of a command, and run it."""
        with _without_credentials():
            return super().invoke(ctx)


def spread(function: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of *function* that is a dataclass with the fields of that class.

    Commands that share options take them as one object: typer reads the fields, which are
    annotated like parameters of a command, and the function gets an instance.
    """
    groups: dict[str, Any] = {}
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            groups[name] = group
            parameters.update(inspect.signature(group).parameters)
        else:
            parameters[name] = parameter

    @wraps(function)
    def command(**values: Any) -> None:
        for name, group in groups.items():
            fields = inspect.signature(group).parameters
            values[name] = group(**{field: values.pop(field) for field in fields})
        function(**values)

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters.values()]
    )
    command.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    return command


@contextmanager
def _without_credentials() -> Iterator[None]:
    try:
        yield
    except _USAGE_ERROR as error:
        error.message = without_credentials(error.message)
        raise


@contextmanager
def faults(traceback: bool) -> Iterator[None]:
    """Print each error of the block on its own line, and exit with the code of its class."""
    try:
        yield
    except StartError as error:
        if traceback:
            print(escape_lines(mask_passwords(format_traceback(error))).rstrip(), file=sys.stderr)
        else:
            report_faults(error.faults)
        raise typer.Exit(error.exit_code) from None


def quiet() -> None:
    """Log nothing: the error that ends the command is the only report of a failure."""
    logs.quiet_libraries()
    logging.getLogger("workerkit").setLevel(logging.CRITICAL)
