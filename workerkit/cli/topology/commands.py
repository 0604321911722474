"""The commands `workerkit topology ...`.

They import what they need when they run, so that other commands start quickly.
"""

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer

from workerkit.cli.parameters import Json, Traceback, faults, quiet, spread
from workerkit.cli.terminal import is_for_people
from workerkit.cli.topology.needs import PackageNeeds, PackageOptions, needs_of
from workerkit.cli.topology.plan import DIFFERS, Plan, exit_code
from workerkit.config.variables import Variables
from workerkit.errors import ConfigurationError, RunError
from workerkit.safe_text import one_line

app = typer.Typer(
    help="Plan, create and export the queues, exchanges and bindings that PACKAGE needs.",
    no_args_is_help=True,
)

ManagementURL = Annotated[
    str | None,
    typer.Option(
        "--management-url",
        metavar="URL",
        help="RabbitMQ's management API; by default port 15672 of the broker's host.",
    ),
]
Version = Annotated[
    str,
    typer.Option(
        "--rabbitmq", metavar="VERSION", help="The version of RabbitMQ, such as 3.10 or 4.3."
    ),
]


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """The options of commands that compare what is needed with what a broker has."""

    management_url: ManagementURL = None
    as_json: Json = False
    traceback: Traceback = False


_LATEST = "4.3"
_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){0,2}")


@app.command()
@spread
def plan(
    *,
    options: PackageOptions,
    comparison: ComparisonOptions,
) -> None:
    """Compare what PACKAGE needs with what the broker has; change nothing.

    Exit code 0: nothing to do; 3: something is missing; 4: something differs; 5: not all is known.
    """
    _report(options, comparison, all_items=True)


@app.command()
@spread
def check(
    *,
    options: PackageOptions,
    comparison: ComparisonOptions,
) -> None:
    """Check that the broker has what PACKAGE needs; print only what is wrong.

    The exit codes are those of plan.
    """
    _report(options, comparison, all_items=False)


@app.command()
@spread
def apply(
    *,
    options: PackageOptions,
    comparison: ComparisonOptions,
) -> None:
    """Create what is missing; delete and change nothing.

    If something differs, create nothing; the exit code is 4.
    """
    with faults(comparison.traceback):
        package = needs_of(options)
        plans = _compared(package, comparison.management_url)
        differs = exit_code(plans) == DIFFERS
        if not differs:
            plans = asyncio.run(_apply(package, plans, comparison.management_url))
        _print(plans, comparison.as_json, all_items=False)
        if differs:
            raise _Differs("nothing was created, because something differs: see above")


class _Differs(RunError):
    exit_code = DIFFERS


@app.command()
@spread
def export(
    *,
    options: PackageOptions,
    rabbitmq: Version = _LATEST,
    vhosts: Annotated[
        bool,
        typer.Option("--vhosts", help="Define the virtual hosts as well, for an empty broker."),
    ] = False,
    traceback: Traceback = False,
) -> None:
    """Print definitions for `rabbitmqctl import_definitions`; connect to nothing."""
    from workerkit.amqp.definitions import definitions, without_type

    with faults(traceback):
        package, version = needs_of(options), _version(rabbitmq)
        found = definitions(package.every, version, vhosts=vhosts)
        try:
            printed = json.dumps(found, indent=2)
        except TypeError as error:
            raise RunError(f"an argument of a declaration cannot be exported: {error}") from error
        if untyped := without_type(package.every):
            variable = Variables(type(package.settings)).name(("amqp", "default", "queue_type"))
            print(
                one_line(
                    f"warning: the virtual host decides the type of {', '.join(untyped)}:"
                    f" set {variable}, or write Queue(..., type)"
                ),
                file=sys.stderr,
            )
    print(printed)


@app.command()
@spread
def permissions(
    *,
    options: PackageOptions,
    rabbitmq: Version = _LATEST,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Print the least permissions of each user as `rabbitmqctl set_permissions` lines."""
    from workerkit.cli.topology.grants import grants, grants_lines

    with faults(traceback):
        found = grants(needs_of(options), _version(rabbitmq))
    if as_json:
        print(json.dumps([each.as_json() for each in found], indent=2))
        return
    for line in grants_lines(found, rabbitmq):
        print(line)


def _report(options: PackageOptions, comparison: ComparisonOptions, *, all_items: bool) -> NoReturn:
    """Compare, print, and exit with the code of the result."""
    with faults(comparison.traceback):
        plans = _compared(needs_of(options), comparison.management_url)
        _print(plans, comparison.as_json, all_items=all_items)
    raise typer.Exit(exit_code(plans))


def _version(given: str) -> tuple[int, ...]:
    if not _VERSION.fullmatch(given):
        raise ConfigurationError(f"--rabbitmq is {given!r}: write a version, such as 3.10 or 4.3")
    return tuple(map(int, given.split(".")))


def _compared(package: PackageNeeds, url: str | None) -> list[Plan]:
    """Compare each connection of a package with its broker."""
    quiet()
    connections = sorted({each.connection for each in package.every})
    if url is not None and len(connections) > 1:
        raise ConfigurationError(
            "--management-url is the address of one broker: choose its connection with"
            f" --connection, one of {', '.join(connections)}"
        )
    return asyncio.run(_compare(package, url))


async def _compare(package: PackageNeeds, url: str | None) -> list[Plan]:
    from workerkit.cli.topology.broker import opened

    plans = []
    for needs in package.every:
        async with opened(needs, package.broker(needs), url) as broker:
            plans.append(await broker.compare())
    return plans


async def _apply(package: PackageNeeds, plans: Sequence[Plan], url: str | None) -> list[Plan]:
    from workerkit.cli.topology.broker import opened

    done = []
    for each in plans:
        async with opened(each.needs, package.broker(each.needs), url) as broker:
            done.append(await broker.apply(each))
    return done


def _print(plans: Sequence[Plan], as_json: bool, *, all_items: bool) -> None:
    from workerkit.cli.topology import text

    if as_json:
        found: list[dict[str, Any]] = [text.as_json(each) for each in plans]
        print(json.dumps(found, indent=2, default=str))
        return
    if is_for_people():
        text.print_tables(plans, all_items=all_items)
    else:
        for line in text.lines(plans, all_items=all_items):
            print(line)
    print(text.summary(plans))
