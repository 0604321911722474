"""Run the in-process broker from the command line."""

import asyncio
import json
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, get_args

from dependency_injector import containers, providers
from pydantic import SecretStr, TypeAdapter
from pydantic.errors import PydanticUserError

from workerkit.amqp.consumer import AMQPOptions
from workerkit.cli.application import read_settings
from workerkit.codec import STRUCTURED, is_cloud_event, is_protobuf
from workerkit.config.connections import AMQPSettings
from workerkit.config.settings import DEFAULT_CONNECTION
from workerkit.embedded import EmbeddedBroker
from workerkit.errors import ConfigurationError
from workerkit.runner import Runner

DEFAULT_PORT = 5673
"""Not RabbitMQ's port, because RabbitMQ may run on the same machine."""

_MOST_LEVELS = 10
_VALUES: Mapping[str, object] = {
    "string": "text",
    "boolean": True,
    "array": [],
    "null": None,
}


@contextmanager
def embedded_broker(
    container: containers.Container, package: str, only: Sequence[str]
) -> Iterator[None]:
    """Run a broker inside the block, and point the default connection of *container* at it.

    Print its URL first, then a command that publishes to a queue of *package*. If `DEFAULT_PORT`
    is in use, the broker gets another port.

    Raises:
        StartError: The settings or the package are wrong.
    """
    settings = read_settings(container)
    with ExitStack() as stack:
        try:
            broker = stack.enter_context(EmbeddedBroker.in_thread(DEFAULT_PORT))
        except ConfigurationError:
            broker = stack.enter_context(EmbeddedBroker.in_thread())
        connection = AMQPSettings(url=SecretStr(broker.url))
        changed = settings.with_amqp({**settings.amqp, DEFAULT_CONNECTION: connection})
        stack.enter_context(container.providers["settings"].override(providers.Object(changed)))
        declared = Runner(container, packages=[package], only=only).assemble().declared
        queues = [
            (each.options.vhost or "/", queue.name, *_typed(each.options, each.signature.body))
            for each in declared
            if isinstance(each.options, AMQPOptions)
            and each.options.connection.casefold() == DEFAULT_CONNECTION
            for queue in each.options.queues
        ]
        for vhost in {vhost for vhost, *_ in queues} - {"/"}:
            broker.add_vhost(vhost)
        print(f"embedded broker at {broker.url}", flush=True)
        print("for demos and tests only; all messages are lost when it stops")
        if queues:
            vhost, name, body, *labels = queues[0]
            url = broker.url if vhost == "/" else broker.url_of(vhost)
            if is_cloud_event(body):
                labels += ["--content-type", STRUCTURED]
            command = publish_command(url, name, example(body), *labels)
            print(f"to publish: {command}", flush=True)
        yield


def publish_command(url: str, queue: str, body: str, *more: str) -> str:
    """Return a command line that publishes a message to a queue."""
    return shlex.join(("workerkit", "publish", url, queue, body, *more))


def _typed(options: AMQPOptions, body: Any) -> tuple[Any, ...]:
    """Return the type of a body, and the arguments of `workerkit publish` that name it."""
    if options.types is None:
        return (body,)
    name, body = next(iter(options.types.items()))
    kind, _, header = options.type_from.partition(":")
    if kind == "type":
        return body, "--type", name
    if kind in ("header", "cloudevents"):
        return body, "--header", f"{header or 'cloudEvents:type'}={name}"
    return (body,)


def example(body: Any) -> str:
    """Return a body that decodes as the type *body*, built from its JSON schema.

    It has only the fields without a default.
    """
    if body in (bytes, str):
        return "text"
    if is_protobuf(body):
        return ""  # The message without any field.
    if is_cloud_event(body):
        return _event(*get_args(body))
    try:
        schema = TypeAdapter(body).json_schema()
    except PydanticUserError:
        return "{}"
    return json.dumps(_value(schema, schema.get("$defs", {}), _MOST_LEVELS))


def _event(type_: Any = Any) -> str:
    """Return a CloudEvent in structured mode with data of this type."""
    attributes = {"specversion": "1.0", "id": "1", "source": "/example", "type": "example"}
    if is_protobuf(type_):
        return json.dumps(attributes)
    is_text = type_ in (bytes, str)
    data = example(type_) if is_text else json.loads(example(type_))
    return json.dumps({**attributes, "data": data})


def _value(schema: Mapping[str, Any], definitions: Mapping[str, Any], levels: int) -> Any:
    """Return a value that is valid for a schema."""
    if not levels:  # A type that contains itself.
        return None
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for keyword in ("examples", "enum"):
        if schema.get(keyword):
            return schema[keyword][0]
    for keyword in ("const", "default"):
        if keyword in schema:
            return schema[keyword]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return _value(options[0], definitions, levels - 1)
    kind = schema.get("type", "object")
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    if kind != "object":
        return _VALUES[kind]
    fields = schema.get("properties", {})
    return {
        name: _value(fields[name], definitions, levels - 1)
        for name in schema.get("required", ())
        if name in fields
    }


def serve(port: int, behaves_as: str) -> None:
    """Run a broker until SIGTERM or SIGINT; print its URL first.

    Raises:
        ConfigurationError: The port is in use, or *behaves_as* is an unknown version.
    """
    asyncio.run(_serve(port, behaves_as))


async def _serve(port: int, behaves_as: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with EmbeddedBroker(port, behaves_as=behaves_as) as broker:
        print(broker.url, flush=True)
        await stop.wait()
