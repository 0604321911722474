"""The models of the part of the API for dead letters."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from workerkit.console.reports import Count, Model

Key = Annotated[str, Field(min_length=1, max_length=64)]


class _Request(Model):
    """Base of what clients send: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LetterQueue(Model):
    """A queue with dead letters.

    Attributes:
        queue: The queue where the messages failed.
        connection: The name of the connection in the settings.
        vhost: The virtual host.
        broker: The address of the broker, without a password.
        name: The name of the dead-letter queue.
        consumers: The consumers that read `queue`.
        count: The number of dead letters; None if that is unknown.
        problem: Why it cannot be read; empty if it can.
    """

    queue: str
    connection: str
    vhost: str
    broker: str = ""
    name: str
    consumers: Sequence[str] = ()
    count: int | None = None
    problem: str = ""


class QueueRef(_Request):
    """The queue that a request is about.

    Attributes:
        queue: The queue where the messages failed.
        vhost: None for that of the connection.
    """

    queue: Annotated[str, Field(min_length=1, max_length=255)]
    connection: Annotated[str, Field(max_length=255)] = "default"
    vhost: Annotated[str, Field(max_length=255)] | None = None


class LetterFilter(_Request):
    """Conditions for dead letters; all that are given have to hold.

    Attributes:
        group: The id of a group.
        consumer: The name of the consumer.
        error: The class of the exception.
        text: A part of the reason or of the traceback, in any case of letters.
        message_id: The message id.
        header: `name`, or `name=value`; the value may be a part.
        since: Failed at this time or later.
        until: Failed at this time or earlier.
    """

    group: Key | None = None
    consumer: Annotated[str, Field(max_length=255)] | None = None
    error: Annotated[str, Field(max_length=255)] | None = None
    text: Annotated[str, Field(max_length=1000)] | None = None
    message_id: Annotated[str, Field(max_length=255)] | None = None
    header: Annotated[str, Field(max_length=1000)] | None = None
    since: datetime | None = None
    until: datetime | None = None


class Letter(Model):
    """One dead letter, as a row.

    Attributes:
        key: Identifies it; two messages that are equal in all parts have the same.
        position: Its place in the queue when it was read, from 0.
        group: The id of its group.
        error: The class of the exception.
        reason: The text of the exception.
        place: The innermost line of the application, such as `orders.py:12`; may be empty.
        replays: How often it was replayed before.
        size: Bytes of the body.
        excerpt: The beginning of the body.
    """

    key: str
    position: int
    group: str
    message_id: str | None = None
    consumer: str | None = None
    error: str | None = None
    reason: str | None = None
    place: str = ""
    attempt: int | None = None
    replays: int = 0
    failed_at: datetime | None = None
    first_failed_at: datetime | None = None
    size: int = 0
    content_type: str | None = None
    exchange: str = ""
    routing_key: str = ""
    excerpt: str = ""


class LetterPage(Model):
    """Some dead letters of a queue, the oldest first.

    Attributes:
        next: The position to continue at; None at the end.
        scanned: The number of messages that were read for this page.
        count: The number of messages in the queue.
    """

    letters: Sequence[Letter]
    next: int | None = None
    scanned: int
    count: int


class LetterGroup(Model):
    """Dead letters with the same consumer, error and innermost line of the application.

    Attributes:
        reason: Of the last one.
        first, last: When the first and the last of them failed.
        counts: The number in each interval of `LetterGroups`.
    """

    id: str
    consumer: str | None
    error: str | None
    place: str
    reason: str | None = None
    count: int
    first: datetime | None = None
    last: datetime | None = None
    counts: Sequence[int] = ()


class LetterGroups(Model):
    """The groups of a queue, the largest first.

    Attributes:
        start: The start of the first interval; None without a time in any of them.
        interval: Seconds of each interval.
        others: Dead letters of groups beyond the largest number of groups.
        count: The number of messages in the queue.
    """

    groups: Sequence[LetterGroup]
    start: datetime | None = None
    interval: float = 0.0
    others: int = 0
    scanned: int
    count: int


class BodyAsModel(Model):
    """The body as the consumer's `handle` would get it.

    Attributes:
        type: The name of the type; empty if it is unknown.
        value: The value as JSON, or its `repr`; None if the body is invalid.
        errors: Why the body is invalid, one sentence each.
        problem: Why that is unknown, as when the consumer is not in this process.
    """

    type: str = ""
    value: str | None = None
    errors: Sequence[str] = ()
    problem: str = ""


class LetterDetail(Letter):
    """All of one dead letter.

    Attributes:
        headers: Its headers, with values as JSON.
        properties: Its other properties.
        text: The body as text; None if it is no text.
        pretty: The body as indented JSON; None if it is none.
        hex: The beginning of the body as a hex dump.
        base64: The whole body, if it is not larger than the limit for editing; None otherwise.
        truncated: Whether `text`, `pretty` or `hex` are not complete.
        original: The body before it was edited the first time, as text; None if it was not.
    """

    headers: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    traceback: str | None = None
    text: str | None = None
    pretty: str | None = None
    hex: str = ""
    base64: str | None = None
    truncated: bool = False
    original: str | None = None
    model: BodyAsModel = BodyAsModel()


class LetterSelection(_Request):
    """The dead letters that a request is about: either keys, or a filter, or all of them.

    Attributes:
        keys: Of single dead letters.
        filter: Those that match.
        everything: All that are in the queue when the request begins.
    """

    keys: Annotated[list[Key], Field(min_length=1, max_length=1000)] | None = None
    filter: LetterFilter | None = None
    everything: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [self.keys is not None, self.filter is not None, self.everything]
        if sum(given) != 1:
            raise ValueError("should have one of keys, filter and everything")
        return self


class Edit(_Request):
    """Changes of one dead letter before it is replayed.

    Attributes:
        body: The new body as text; None keeps it.
        base64: The new body in base64, instead of `body`.
        headers: Headers to set, by name; None as a value removes one.
        content_type: The new content type; None keeps it.
    """

    body: str | None = None
    base64: str | None = None
    headers: dict[Annotated[str, Field(min_length=1, max_length=255)], Any] | None = None
    content_type: Annotated[str, Field(max_length=255)] | None = None


class ReplayRequest(_Request):
    """Return dead letters to the queue where they failed.

    Batches grow: 1, 10, 100, 1000. After each, the job waits and stops if one of them failed again.

    Attributes:
        rate: The largest number of messages in a second; None for no limit.
        wait: Seconds to wait after each batch for failures.
        edit: Only with exactly one key.
    """

    queue: QueueRef
    selection: LetterSelection
    rate: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] | None = None
    wait: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 2.0
    edit: Edit | None = None


class DeleteRequest(_Request):
    """Delete dead letters.

    Attributes:
        confirm: The number of dead letters that the client expects to delete. If more match, none
            is deleted.
    """

    queue: QueueRef
    selection: LetterSelection
    confirm: Annotated[int, Field(ge=1)]


class Job(Model):
    """A replay or a deletion.

    Attributes:
        state: `stopped` by an operator or because messages failed again, `failed` by an error.
            `undoable` is a deletion that can still be undone.
        text: What happened, for people.
        total: The number of dead letters that match; None before that is known.
        done: The number that was replayed or deleted.
        failed_again: The number of replayed messages that are dead letters again.
        undo_until: When a deletion becomes final; None if it cannot be undone.
        user: Who started it.
    """

    id: str
    kind: Literal["replay", "delete"]
    queue: QueueRef
    state: Literal["running", "done", "stopped", "failed", "undoable", "undone"]
    text: str = ""
    total: int | None = None
    done: Count = 0
    failed_again: Count = 0
    started: datetime
    ended: datetime | None = None
    undo_until: datetime | None = None
    user: str = ""
