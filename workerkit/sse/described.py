"""Describe consumers of event streams for the AsyncAPI document."""

from collections.abc import Iterator

from workerkit.asyncapi import Channel, Message, Operation, Server
from workerkit.codec import is_verbatim
from workerkit.config.connections import SSESettings
from workerkit.sse.consumer import SSEOptions
from workerkit.transport import Declared

_BINDING = {"bindingVersion": "0.3.0"}
_JSON = "application/json"
_TEXT = "text/plain"


def stream_operations(declared: Declared, server: SSESettings) -> Iterator[Operation]:
    """Yield an operation for each stream of a consumer.

    Args:
        server: The one that it reads from.
    """
    options = declared.options
    assert isinstance(options, SSEOptions)
    messages = tuple(_messages(declared, options))
    for route in options.routes:
        url = server.address(route)
        name = options.name if len(options.routes) == 1 else f"{options.name}.{url.path}"
        host = f"{url.host_subcomponent}:{url.port}"
        server_name = options.connection if options.url is None else host
        yield Operation(
            name=name,
            action="receive",
            # The query may contain secrets.
            channel=Channel(
                key=("stream", host, route),
                name=url.path,
                address=url.raw_path,
                servers=(Server(server_name, host, url.scheme),),
                bindings={"http": {}},
            ),
            messages=messages,
            bindings={"http": {"method": options.verb, **_BINDING}},
        )


def _messages(declared: Declared, options: SSEOptions) -> Iterator[Message]:
    types = declared.consumer.body_types()
    for name in options.events or (None,):
        type_ = types.get(name, declared.signature.body) if name else declared.signature.body
        yield Message(
            name=name or options.name,
            type=type_,
            content_type=_TEXT if is_verbatim(type_) else _JSON,
            extensions={"x-event": name} if name else {},
        )
