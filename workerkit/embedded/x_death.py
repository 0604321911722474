"""Create dead letters with the header `x-death`. Pure."""

from itertools import takewhile

from workerkit.embedded.errors import Refusal
from workerkit.embedded.message import Message, routing_keys
from workerkit.embedded.table import Field, Table, number, text


def dead_letter(
    message: Message,
    queue: str,
    reason: str,
    now: int,
    exchange: str,
    routing_key: str | None,
    *,
    deliveries: int = 0,
    discards_client_deaths: bool = False,
) -> Message:
    """Return a message as it is published to a dead-letter exchange.

    Args:
        queue: The queue that dead-letters it.
        reason: `rejected`, `expired`, `maxlen` or `delivery_limit`.
        now: Seconds since 1970.
        exchange: The dead-letter exchange.
        routing_key: The dead-letter routing key of the queue; None keeps those of the message.
        deliveries: The delivery count that it keeps; see `counting`.
        discards_client_deaths: See `Behaviour`.
    """
    properties = message.read_properties()
    headers = dict(properties.headers or {})
    if discards_client_deaths and not message.dead_lettered:
        headers.pop("x-death", None)
    _record_first(headers, message, queue, reason)
    if discards_client_deaths:
        _set(headers, "x-last-death", message, queue, reason)
    death = _death(message, queue, reason, now, properties.expiration)
    headers["x-death"] = Field("array", _with_death(deaths(headers), death))
    if routing_key is not None and not discards_client_deaths:
        headers.pop("CC", None)
    properties.headers = headers
    properties.expiration = None
    changed = message.changed(properties)
    return Message(
        exchange,
        message.routing_key if routing_key is None else routing_key,
        changed.properties,
        message.body,
        dead_lettered=True,
        deliveries=deliveries,
    )


def deaths(headers: Table) -> list[Field]:
    """Return the entries of `x-death`, the last one first; other values are ignored."""
    field = headers.get("x-death")
    if field is None or field.type != "array":
        return []
    return [each for each in field.value if each.type == "table"]


def is_cycle(queue: str, headers: Table) -> bool:
    """Return whether a message would reach *queue* again without a rejection in between.

    Such a message is dropped, because expiry and limits would move it in a circle forever.
    """
    since = list(
        takewhile(lambda death: _value(death, "queue") != queue, entries := deaths(headers))
    )
    if len(since) == len(entries):
        return False
    round_trip = entries[: len(since) + 1]
    return all(_value(death, "reason") != "rejected" for death in round_trip)


def _value(death: Field, name: str) -> object:
    field = death.value.get(name)
    return None if field is None else field.value


def _record_first(headers: Table, message: Message, queue: str, reason: str) -> None:
    if "x-death" not in headers:
        _set(headers, "x-first-death", message, queue, reason)


def _set(headers: Table, prefix: str, message: Message, queue: str, reason: str) -> None:
    headers[f"{prefix}-exchange"] = text(message.exchange)
    headers[f"{prefix}-queue"] = text(queue)
    headers[f"{prefix}-reason"] = text(reason)


def _death(message: Message, queue: str, reason: str, now: int, expiration: str | None) -> Field:
    death = {
        "count": number(1),
        "reason": text(reason),
        "queue": text(queue),
        "time": Field("timestamp", now),
        "exchange": text(message.exchange),
        "routing-keys": Field("array", [text(key) for key in _keys(message)]),
    }
    if expiration is not None:
        death["original-expiration"] = text(expiration)
    return Field("table", death)


def _keys(message: Message) -> list[str]:
    try:
        return routing_keys(message)
    except Refusal:
        # Impossible for a message of a client, which was checked when it was published.
        return [message.routing_key]


def _with_death(earlier: list[Field], death: Field) -> list[Field]:
    """Add a death at the front, or count it if there is one with its queue and reason."""

    def event(entry: Field) -> tuple[object, object]:
        return _value(entry, "queue"), _value(entry, "reason")

    for entry in earlier:
        if event(entry) == event(death):
            count = _value(entry, "count")
            more = count + 1 if isinstance(count, int) else 1
            counted = Field("table", entry.value | {"count": number(more)})
            return [counted, *(other for other in earlier if other is not entry)]
    return [death, *earlier]
