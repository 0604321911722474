"""The commands `workerkit run`, `check`, `publish` and others."""

import asyncio
import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated, Any

import typer

from workerkit.amqp.destination import Destination
from workerkit.amqp.outgoing import DELAY_HEADER, encode_message
from workerkit.amqp.properties import Properties
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.session import connect
from workerkit.app.assembly import Assembly
from workerkit.cli.application import is_url, load_container, settings_of
from workerkit.cli.broker import embedded_broker, serve
from workerkit.cli.dead_letters import commands as dead_letters
from workerkit.cli.listing import rows_of
from workerkit.cli.parameters import Container, Group, Traceback, faults, quiet
from workerkit.cli.probe import probe
from workerkit.cli.settings import inventory
from workerkit.config.settings import WorkerSettings
from workerkit.config.variables import Variables
from workerkit.container import WorkerContainer
from workerkit.embedded import LATEST
from workerkit.errors import (
    BrokerRefused,
    ConnectionLost,
    DeclarationError,
    PublishError,
    PublishRefused,
    PublishTimeout,
    RunError,
    StartError,
)
from workerkit.http.openapi import document
from workerkit.http.view import HTTPView
from workerkit.observe import ConnectionEvent, Settled
from workerkit.runner import Runner
from workerkit.safe_text import one_line
from workerkit.version import __version__


async def publish_once(
    settings: WorkerSettings, raw: bytes, properties: Properties, to: Destination, advice: str
) -> str:
    """Publish *raw*, wait until the broker has accepted it, and return the message id.

    Args:
        advice: Added to the error if no broker can be reached.

    Raises:
        PublishError: The broker did not accept it. If no server accepts the connection or the
            login, this is raised after one attempt for each server.
        ConfigurationError: The settings have no such connection.
    """
    quiet()
    publisher = Publisher()
    attempts = _Attempts()
    publisher.observers = [attempts]
    publisher.open(settings)
    publishing = asyncio.create_task(publisher.send(raw, properties, to))
    refusal = asyncio.create_task(_refusal(settings, to, attempts))
    try:
        await asyncio.wait([publishing, refusal], return_when=asyncio.FIRST_COMPLETED)
        if not publishing.done() and (error := refusal.result()) is not None:
            text = f"message to {to}: {error}"
            if isinstance(error, BrokerRefused):
                raise PublishRefused(text) from error
            raise PublishTimeout(f"{text}; {advice}") from error
        return await publishing
    finally:
        publishing.cancel()
        refusal.cancel()
        await asyncio.wait([publishing, refusal])
        await publisher.close()


def unreachable_advice(target: str, settings: WorkerSettings, connection: str) -> str:
    """Return advice for a user whose broker cannot be reached.

    Args:
        target: The package or the URL on the command line.
    """
    embedded = "`workerkit run PACKAGE --embedded-broker` starts a broker and prints its URL"
    if is_url(target):
        return f"check the URL; {embedded}"
    variable = Variables(type(settings)).name(("amqp", connection, "url"))
    return f"set {variable}, or write an amqp:// URL in place of {target!r}; {embedded}"


class _Attempts:
    """An observer that notices failed attempts to connect."""

    def __init__(self) -> None:
        self.failed = asyncio.Event()

    def __call__(self, record: Settled) -> None:
        """Do nothing: this process consumes nothing."""

    def connection_failed(self, record: ConnectionEvent) -> None:
        self.failed.set()


async def _refusal(
    settings: WorkerSettings, to: Destination, attempts: _Attempts
) -> ConnectionLost | None:
    """Wait for a failed attempt, try all servers once more, and return the error if all fail.

    A person at a terminal prefers an error over waiting for a broker to start.
    """
    await attempts.failed.wait()
    try:
        session = await connect(
            settings.connection(to.connection.casefold()), to.vhost, "publisher"
        )
    except ConnectionLost as error:
        return error
    await session.close()
    return None


app = typer.Typer(
    cls=Group,
    help="Run class-based consumers of RabbitMQ, event streams, HTTP and schedules.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(dead_letters.app, name="dead-letters")

Package = Annotated[str, typer.Argument(help="The package with the consumers.")]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Run only the consumer with this name; repeatable."),
]


class LogLevel(StrEnum):
    """The log levels of the option `--log-level`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@app.callback(invoke_without_command=True)
def workerkit(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Run class-based consumers of RabbitMQ, event streams, HTTP and schedules."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    package: Package,
    only: Only = None,
    container: Container = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            metavar="LEVEL",
            help="debug, info, warning or error; overrides LOG__LEVEL.",
            case_sensitive=False,
        ),
    ] = None,
    with_broker: Annotated[
        bool,
        typer.Option("--embedded-broker", help="Use an in-process broker, for demos."),
    ] = False,
    traceback: Traceback = False,
) -> None:
    """Run the consumers of PACKAGE until SIGTERM or SIGINT."""
    with faults(traceback), ExitStack() as stack:
        loaded = _loaded(package, container)
        if with_broker:
            stack.enter_context(embedded_broker(loaded, package, only or ()))
        runner = Runner(loaded, packages=[package], only=only or ())
        runner.run(traceback=traceback, log_level=log_level)


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
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    traceback: Traceback = False,
) -> None:
    """List the consumers of PACKAGE with their options, and the source of each value."""
    with faults(traceback):
        rows = list(rows_of(_assembled(package, container)))
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(one_line(f"{row['name']}  {row['kind']}  {row['source']}  ({row['class']})"))
        for option, value in row["options"].items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(one_line(f"    {option} = {text}  [{row['sources'][option]}]"))


@app.command()
def check(package: Package, container: Container = None, traceback: Traceback = False) -> None:
    """Report every problem in PACKAGE, without opening a connection."""
    with faults(traceback):
        assembly = _assembled(package, container)
    for warning in assembly.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    declared = assembly.declared
    print(f"{package}: {len(declared)} consumer{'s' if len(declared) > 1 else ''}, no problems")


@app.command()
def settings(
    package: Package,
    container: Container = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    traceback: Traceback = False,
) -> None:
    """List every environment variable that PACKAGE reads, with its value and source."""
    with faults(traceback):
        rows = inventory(_assembled(package, container))
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        print(one_line(f"{row.variable}={_text(row.value)}  ({row.type}, {row.source})"))


@app.command()
def openapi(package: Package, container: Container = None, traceback: Traceback = False) -> None:
    """Print the OpenAPI document of the HTTP views of PACKAGE."""
    with faults(traceback):
        assembly = _assembled(package, container)
    views = [each for each in assembly.declared if issubclass(each.consumer, HTTPView)]
    print(json.dumps(document(views, assembly.settings.http.openapi), indent=2))


@app.command()
def publish(
    target: Annotated[str, typer.Argument(help="A package, or an amqp:// URL.")],
    routing_key: Annotated[
        str, typer.Argument(help="The queue; with --exchange, the routing key.")
    ],
    body: Annotated[str, typer.Argument(help="The body; - reads standard input.")] = "-",
    exchange: Annotated[str, typer.Option(help="The exchange to publish to.")] = "",
    header: Annotated[
        list[str] | None, typer.Option(help="A header; repeatable.", metavar="K=V")
    ] = None,
    content_type: Annotated[str | None, typer.Option(help="For example application/json.")] = None,
    content_encoding: Annotated[
        str | None,
        typer.Option(help="gzip or deflate; compresses an uncompressed body."),
    ] = None,
    type_: Annotated[str | None, typer.Option("--type", help="The message type.")] = None,
    reply_to: Annotated[str | None, typer.Option(help="The queue for replies.")] = None,
    correlation_id: Annotated[str | None, typer.Option(help="Copied into replies.")] = None,
    connection: Annotated[str, typer.Option(help="A named connection.")] = "default",
    container: Container = None,
    traceback: Traceback = False,
) -> None:
    """Publish one message, wait for the broker to confirm it, and print its message id."""
    raw = sys.stdin.buffer.read() if body == "-" else body.encode(errors="surrogateescape")
    headers = dict(_pairs(header or []))
    with faults(traceback):
        chosen = settings_of(target, container)
        mandatory = not (exchange and DELAY_HEADER in headers)
        to = Destination(routing_key, exchange, connection, mandatory=mandatory)
        try:
            raw, properties = encode_message(
                raw,
                headers,
                correlation_id=correlation_id,
                content_type=content_type,
                content_encoding=content_encoding,
                type=type_,
                reply_to=reply_to,
            )
            properties.content_type = content_type  # The type of the bytes is unknown.
            advice = unreachable_advice(target, chosen, connection)
            message_id = asyncio.run(publish_once(chosen, raw, properties, to, advice))
        except (PublishError, TypeError, ValueError) as error:
            raise RunError(str(error)) from error
    print(message_id)


@app.command(
    "probe",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def probe_(context: typer.Context) -> None:
    """Check whether a running worker is live, ready or started; exit code 0, or 69 if not."""
    raise typer.Exit(probe(context.args))


def _pairs(headers: list[str]) -> Iterator[tuple[str, str]]:
    for number, each in enumerate(headers, 1):
        name, separator, value = each.partition("=")
        if not name or not separator:
            # The error does not quote the value, which may be a token.
            raise typer.BadParameter(f"header {number}: write name=value", param_hint="--header")
        yield name, value


def _text(value: Any) -> str:
    """Return a value as text for an environment variable."""
    if isinstance(value, dict) or (isinstance(value, list) and not all(map(_is_plain, value))):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _assembled(package: str, container: str | None) -> Assembly:
    return Runner(_loaded(package, container), packages=[package]).assemble()


def _loaded(package: str, container: str | None) -> Any:
    """Return the container; if it cannot be created, report modules that fail to import as well."""
    try:
        return load_container(package, container)
    except StartError as error:
        try:
            Runner(WorkerContainer(), packages=[package]).assemble()
        except StartError as more:
            own = f"cannot import {(container or f'{package}.container').partition(':')[0]}:"
            imports = [
                each
                for each in more.faults
                if each.startswith("cannot import") and not each.startswith(own)
            ]
            raise DeclarationError(*error.faults, *imports) from error
        raise
