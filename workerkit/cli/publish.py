"""The command `workerkit publish`."""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from workerkit.amqp.destination import Destination
from workerkit.amqp.outgoing import DELAY_HEADER, encode_message
from workerkit.amqp.properties import Properties
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.session import connect
from workerkit.cli.application import is_url, settings_of
from workerkit.cli.parameters import Container, Json, Traceback, faults, quiet
from workerkit.cli.terminal import progress
from workerkit.config.settings import WorkerSettings
from workerkit.config.variables import Variables
from workerkit.errors import (
    BrokerRefused,
    ConnectionLost,
    PublishError,
    PublishRefused,
    PublishTimeout,
    RunError,
)
from workerkit.observe import ConnectionEvent, Settled


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
    as_json: Json = False,
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
    print(json.dumps({"message_id": message_id}) if as_json else message_id)


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
        async with progress(lambda: f"waiting for the broker to accept the message to {to}"):
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


def _pairs(headers: list[str]) -> Iterator[tuple[str, str]]:
    for number, each in enumerate(headers, 1):
        name, separator, value = each.partition("=")
        if not name or not separator:
            # The error does not quote the value, which may be a token.
            raise typer.BadParameter(f"header {number}: write name=value", param_hint="--header")
        yield name, value
