"""How transports describe their consumers and publishers for the AsyncAPI document."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from workerkit.config.settings import WorkerSettings
from workerkit.transport import Declared

Extensions = Mapping[str, Any]
"""Fields that AsyncAPI does not have; each name begins with `x-`."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server, without credentials.

    Attributes:
        name: A short one; servers that differ get different keys in the document.
        host: With its port.
        path: Such as the virtual host of a broker; empty for none.
    """

    name: str
    host: str
    protocol: str
    version: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Where messages are sent to, or come from.

    Attributes:
        key: The same for each description of one channel; the first one is used.
        name: For people, and for the key in the document.
        address: None if it is not known, or is no valid address; the bindings have the exact name.
        parameters: A description of each name in braces in the address.
        bindings: By protocol.
    """

    key: tuple[str, ...]
    name: str
    address: str | None
    servers: tuple[Server, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)
    bindings: Mapping[str, Any] = field(default_factory=dict)
    extensions: Extensions = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One kind of message.

    Attributes:
        type: The type of its body.
        content_type: None for the one that goes with the type.
        headers: The schema of its headers; None if nothing is known about them.
        correlated: Whether it has a correlation id.
    """

    name: str
    type: Any
    content_type: str | None = None
    headers: Mapping[str, Any] | None = None
    correlated: bool = False
    bindings: Mapping[str, Any] = field(default_factory=dict)
    extensions: Extensions = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something that a consumer does with messages of a channel.

    Attributes:
        name: That of the consumer, unless it does more than one thing.
        replies: The messages with which it replies; none if it does not reply.
        bindings: By protocol.
    """

    name: str
    action: Literal["receive", "send"]
    channel: Channel
    messages: tuple[Message, ...]
    replies: tuple[Message, ...] = ()
    bindings: Mapping[str, Any] = field(default_factory=dict)
    extensions: Extensions = field(default_factory=dict)


@runtime_checkable
class DescribesReceiving(Protocol):
    """A transport that describes what its consumers receive."""

    def receives(self, declared: Declared, settings: WorkerSettings) -> Iterable[Operation]:
        """Return an operation for each source of a consumer."""


@runtime_checkable
class DescribesPublishing(Protocol):
    """A transport that describes what classes of any kind publish with it."""

    def publish_faults(self, declared: Declared, settings: WorkerSettings) -> Iterable[str]:
        """Return the faults of the destinations in `publishes`, a sentence each."""

    def sends(self, declared: Declared, settings: WorkerSettings) -> Iterable[Operation]:
        """Return an operation for each destination in `publishes`."""
