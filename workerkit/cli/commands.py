"""The commands of `workerkit`. Those that need more than a few lines have a module of their own."""

import dataclasses
import json
import sys
from typing import Annotated, Any

import typer

from workerkit.app.asyncapi import document as asyncapi_document
from workerkit.cli.application import assembled
from workerkit.cli.broker import serve
from workerkit.cli.console import console
from workerkit.cli.dead_letters import commands as dead_letters
from workerkit.cli.listing import lines_of, print_tables, rows_of
from workerkit.cli.new import new
from workerkit.cli.parameters import All, Container, Group, Json, Package, Traceback, faults
from workerkit.cli.probe import probe
from workerkit.cli.publish import publish
from workerkit.cli.run import run
from workerkit.cli.settings import inventory, line_of, print_variables
from workerkit.cli.shell import shell
from workerkit.cli.terminal import is_for_people
from workerkit.cli.top import top
from workerkit.cli.topology import commands as topology
from workerkit.embedded import LATEST
from workerkit.errors import StartError
from workerkit.http.openapi import document
from workerkit.http.view import HTTPView
from workerkit.version import __version__

app = typer.Typer(
    cls=Group,
    help="Run class-based consumers of RabbitMQ, event streams, HTTP and schedules.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(topology.app, name="topology")
app.command()(run)
app.command()(publish)
app.command()(new)
app.command()(shell)
app.command()(console)
app.command()(top)


@app.callback(invoke_without_command=True)
def workerkit(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Run class-based consumers of RabbitMQ, event streams, HTTP and schedules."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def broker(
    port: Annotated[int, typer.Option(help="The port to listen on; 0 picks a free one.")] = 5672,
    behaves_as: Annotated[
        str, typer.Option(help="The RabbitMQ version to imitate: 3.10, 4.0 or 4.3.")
    ] = LATEST,
    traceback: Traceback = False,
) -> None:
    """Run an in-process broker for demos and tests, until SIGTERM or SIGINT.

    Its URL is the first line of the output.
    """
    with faults(traceback):
        serve(port, behaves_as)


@app.command("list")
def list_(
    package: Package,
    container: Container = None,
    all_values: All = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """List the consumers of PACKAGE with their options, and the source of each value."""
    with faults(traceback):
        rows = list(rows_of(assembled(package, container)))
    if as_json:
        print(json.dumps(rows, indent=2))
    elif is_for_people():
        print_tables(rows, all_values=all_values)
    else:
        for row in rows:
            print(*lines_of(row), sep="\n")


@app.command()
def check(
    package: Package,
    container: Container = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Report every problem in PACKAGE, without opening a connection."""
    result: dict[str, Any] = {"package": package, "consumers": [], "problems": [], "warnings": []}
    with faults(traceback):
        try:
            assembly = assembled(package, container)
        except StartError as error:
            if as_json:
                print(json.dumps({**result, "problems": list(error.faults)}, indent=2))
            raise
    for warning in assembly.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    declared = assembly.declared
    if as_json:
        names = [each.options.name for each in declared]
        found = {**result, "consumers": names, "warnings": assembly.warnings}
        print(json.dumps(found, indent=2))
        return
    print(f"{package}: {len(declared)} consumer{'s' if len(declared) > 1 else ''}, no problems")


@app.command()
def settings(
    package: Package,
    container: Container = None,
    all_values: All = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """List every environment variable that PACKAGE reads, with its value and source."""
    with faults(traceback):
        rows = inventory(assembled(package, container))
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    elif is_for_people():
        print_variables(rows, all_values=all_values)
    else:
        print(*map(line_of, rows), sep="\n")


@app.command()
def openapi(package: Package, container: Container = None, traceback: Traceback = False) -> None:
    """Print the OpenAPI document of the HTTP views of PACKAGE."""
    with faults(traceback):
        assembly = assembled(package, container)
    views = [each for each in assembly.declared if issubclass(each.consumer, HTTPView)]
    print(json.dumps(document(views, assembly.settings.http.openapi), indent=2))


@app.command()
def asyncapi(package: Package, container: Container = None, traceback: Traceback = False) -> None:
    """Print the AsyncAPI document of what the consumers of PACKAGE receive and publish."""
    with faults(traceback):
        assembly = assembled(package, container)
    print(json.dumps(asyncapi_document(assembly), indent=2))


@app.command(
    "probe",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def probe_(context: typer.Context) -> None:
    """Check whether a running worker is live, ready or started; exit code 0, or 69 if not."""
    raise typer.Exit(probe(context.args))
