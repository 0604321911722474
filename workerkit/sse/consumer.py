"""`SSEConsumer`, the base class of consumers of event streams, and its options."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr
from pydantic_core import from_json

from workerkit.codec import encode, is_struct
from workerkit.config.connections import check_stream_url
from workerkit.config.sections import Grace
from workerkit.consumer import Consumer
from workerkit.delivery import Action
from workerkit.named_types import Types
from workerkit.options import (
    OF_BATCHES,
    Concurrency,
    Options,
    Seconds,
    Settlement,
    unless_retried,
)
from workerkit.retry import Retries, RetryPolicy
from workerkit.sse.parser import MAX_EVENT_SIZE

Method = Literal["GET", "POST", "PUT"]

_LARGEST_BATCH = 65_535

# RFC 9110, section 9.2.2: repeating such a request has the same effect as one.
_IDEMPOTENT = frozenset({"GET", "PUT"})
_ROUTE = re.compile("/(?!/)")


def _as_routes(found: object) -> object:
    if isinstance(found, str):
        raise ValueError("write a list, such as ['/events']")
    if isinstance(found, Sequence):
        for each in found:
            if not (isinstance(each, str) and _ROUTE.match(each)) and tuple(found) != ("",):
                raise ValueError(f"a route begins with '/', unlike {each!r}")
        if len(set(found)) < len(found):
            raise ValueError("a route is listed twice")
    return found


def _as_names(found: object) -> object:
    if isinstance(found, str):
        raise ValueError("write a list, such as ['created'], or a dict of types by name")
    if isinstance(found, Mapping | Sequence) and not found:
        raise ValueError("no event would be handled: write names, or None for all events")
    return tuple(found) if isinstance(found, Mapping) else found


def _as_json(found: object) -> object:
    if found is None:
        return None
    # Pydantic would read any iterable as a list, such as the pairs that a model yields.
    record = (
        dataclasses.is_dataclass(found) or isinstance(found, BaseModel) or is_struct(type(found))
    )
    if isinstance(found, type) or not (record or isinstance(found, dict | list | tuple)):
        raise ValueError("write a dict, a list, a pydantic model or a dataclass")
    try:
        raw, _ = encode(found)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return from_json(raw)


def _upper(found: object) -> object:
    return found.upper() if isinstance(found, str) else found


Routes = Annotated[tuple[str, ...], BeforeValidator(_as_routes), Field(min_length=1)]
Body = Annotated[dict[str, Any] | list[Any] | None, BeforeValidator(_as_json)]
Names = Annotated[tuple[str, ...] | None, BeforeValidator(_as_names)]


def _checked(found: SecretStr) -> SecretStr:
    check_stream_url(found.get_secret_value())
    return found


URL = Annotated[SecretStr, AfterValidator(_checked)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SSEOptions(Options):
    """The options of an `SSEConsumer`.

    Attributes:
        connection: The name of a server in `settings.sse`.
        url: The URL of a server, instead of a connection.
        routes: Paths that are appended to the URL. Each is a stream that is read separately and
            has its own cursor. By default there is one stream, at the URL itself.
        events: Names of the events to handle, None for all; other events count as settled.
        method: By default POST if there is `json`, else GET.
        json: The body of the request: a dict, list, model or dataclass, encoded as by `publish`.
        done: The data of the event that ends a stream, such as "[DONE]"; it is not handled.
        reopen: Whether a stream is opened again when its connection is lost or has ended; by
            default if its method is idempotent. An event with the data of `done` ends the stream
            unless this is True.
        batch_size: Events of a full batch, if `handle` takes a list.
        batch_interval: Seconds that the first event of a batch waits for others.
        idle_timeout: Seconds without data after which the stream is reopened, 0 for no limit; None
            for the value of the connection.
        max_event_size: Characters of an event's data, line feeds included, and its name; a longer
            event is invalid.
        on_success: The action after `handle` has returned.
        on_invalid: The action for an event whose data does not match the type in `handle`.
        on_exception: The action for an event whose `handle` raised; `retry` takes precedence.
        retry: The policy for such an event; after its last attempt the stream continues.
    """

    concurrency: Concurrency = 1
    timeout: Seconds | None = 300.0
    connection: str = "default"
    url: URL | None = None
    routes: Routes = ("",)
    events: Names = None
    method: Annotated[Method, BeforeValidator(_upper)] | None = None
    json: Body = None
    done: str | None = None
    reopen: bool | None = None
    batch_size: Annotated[int, Field(ge=1, le=_LARGEST_BATCH)] = field(
        default=100, metadata=OF_BATCHES
    )
    batch_interval: Seconds = field(default=1.0, metadata=OF_BATCHES)
    idle_timeout: Grace | None = None
    max_event_size: Annotated[int, Field(ge=1)] = MAX_EVENT_SIZE
    on_success: Settlement = Action.ACK
    on_exception: Settlement = field(
        default=Action.REQUEUE, metadata=unless_retried(Action.DEAD_LETTER, Action.REJECT)
    )
    on_invalid: Settlement = Action.REJECT
    retry: Retries = None

    @property
    def verb(self) -> str:
        """The HTTP method of the request."""
        return self.method or ("GET" if self.json is None else "POST")

    @property
    def reopens(self) -> bool:
        """Whether a stream is opened again after its first event."""
        return self.verb in _IDEMPOTENT if self.reopen is None else self.reopen

    @property
    def room(self) -> int:
        """The number of waiting events of a stream from which no more are read."""
        return self.batch_size * (self.concurrency + 1) if self.batch else 2 * self.concurrency


class SSEConsumer(Consumer, abstract=True):
    """Base class of consumers, which handle the events of one or more streams of a server.

    ```python
    class Deployments(SSEConsumer):
        connection = "marathon"
        routes = ["/v2/events"]
        events = ["deployment_info", "deployment_success"]

        async def handle(self, event: SSEEvent[dict[str, Any]]) -> None: ...
    ```

    The first parameter of `handle` takes the data, decoded to its annotation, or the `SSEEvent`
    that contains the data. A class attribute with the name of an option sets it; see `SSEOptions`
    for all options. The cursor moves past an event when `handle` returns. When it raises, the same
    event is handled again after a pause.

    Attributes:
        events: Names; or types by name, of which `handle` takes a union.
    """

    options: ClassVar[type[Options]] = SSEOptions
    connection: ClassVar[str]
    url: ClassVar[str | None]
    routes: ClassVar[Sequence[str]]
    events: ClassVar[Sequence[str] | Types | None]
    method: ClassVar[str | None]
    json: ClassVar[Any]
    done: ClassVar[str | None]
    reopen: ClassVar[bool | None]
    batch_size: ClassVar[int]
    batch_interval: ClassVar[float]
    idle_timeout: ClassVar[float | None]
    max_event_size: ClassVar[int]
    on_success: ClassVar[Action]
    on_exception: ClassVar[Action]
    on_invalid: ClassVar[Action]
    retry: ClassVar[RetryPolicy | None]

    @classmethod
    def body_types(cls) -> Types:
        """Return the types in `events`; none if it only has names."""
        events: Any = getattr(cls, "events", None)
        return events if isinstance(events, Mapping) else {}

    async def headers(self) -> Mapping[str, str]:
        """Return headers of the next request, which replace those of the connection.

        It is called before each attempt to connect, so it can return tokens that expire. The
        attempt fails if it raises, or takes longer than the `connect_timeout` of the connection.
        """
        return {}
