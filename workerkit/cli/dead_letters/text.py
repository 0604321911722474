"""Format dead letters as text, as a table and as JSON."""

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from workerkit.amqp.dead_letters import Evidence
from workerkit.amqp.message import OURS, AMQPMessage
from workerkit.amqp.properties import readable
from workerkit.cli.terminal import Cell, Column, print_table
from workerkit.safe_text import escape

_COLUMNS = (
    "FAILED AT (UTC)", "CONSUMER", "ERROR", "ATTEMPT", "REPLAYS", "MESSAGE ID", "BYTES", "REASON",
)  # fmt: skip
_WIDE = 90  # Columns of a terminal for everything.
_LONGEST_REASON = 100


def row(message: AMQPMessage[Any]) -> tuple[str, ...]:
    """Return the cells of a message in the table."""
    found = Evidence.of(message)
    reason = (found.reason or "").strip().partition("\n")[0]
    cells = (
        f"{found.failed_at:%Y-%m-%d %H:%M:%S}" if found.failed_at else None,
        found.consumer,
        found.error,
        found.attempt,
        found.replays,
        message.message_id,
        len(message.raw),
        reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 1] + "…",
    )
    return tuple("-" if cell in (None, "") else escape(str(cell)) for cell in cells)


def lines(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Return the lines of a table with its header; each column is as wide as its widest cell."""
    table = [_COLUMNS, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


def print_letters(rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table for people; error, reason and message id are lines of one cell."""
    columns = [
        Column("FAILED AT (UTC)", most=len("2026-01-31")),
        Column("CONSUMER"),
        Column("ERROR, REASON, ID", width=max((len(row[5]) for row in rows), default=0)),
        Column("ATTEMPT", whole=True, right=True),
        Column("REPLAYS", whole=True, right=True),
        Column("BYTES", whole=True, right=True, wide=_WIDE),
    ]
    cells = [
        (
            [Cell(each) for each in failed_at.split()],
            Cell(consumer),
            [Cell(error, "bold red"), Cell(reason), Cell(message_id, "dim")],
            Cell(attempt),
            Cell(replays),
            Cell(size),
        )
        for failed_at, consumer, error, attempt, replays, message_id, size, reason in rows
    ]
    print_table(columns, cells)


def as_json(message: AMQPMessage[Any]) -> dict[str, Any]:
    """Return everything but the body as values for JSON.

    `headers` are those of the sender and the broker; `evidence` has those of workerkit, without
    their prefix.
    """
    ours = {name: value for name, value in message.headers.items() if name.startswith(OURS)}
    theirs = {name: value for name, value in message.headers.items() if name not in ours}
    properties = asdict(message.properties)
    del properties["table"]
    return {
        "message_id": message.message_id,
        **_jsonable(asdict(Evidence.of(message))),
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "size": len(message.raw),
        "evidence": {name.removeprefix(OURS): _jsonable(value) for name, value in ours.items()},
        "properties": {
            name: readable(value) if isinstance(value, str) else value
            for name, value in properties.items()
            if value is not None
        },
        "headers": _jsonable(theirs),
    }


def body_as_json(raw: bytes) -> dict[str, str]:
    """Return a body as text if it is UTF-8, else in base64."""
    try:
        return {"body": raw.decode(), "body_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(raw).decode(), "body_encoding": "base64"}


def in_full(message: AMQPMessage[Any]) -> Iterator[str]:
    """Return the lines that describe one message completely."""
    fields = as_json(message)
    blocks = {name: fields.pop(name) for name in ("properties", "headers", "reason", "traceback")}
    evidence = fields.pop("evidence")
    known = {*fields, *blocks}
    more = {name: each for name, each in evidence.items() if name.replace("-", "_") not in known}
    yield from _pairs({**fields, **more})
    for title in ("properties", "headers"):
        if blocks[title]:
            yield from ("", f"{title}:", *_pairs(blocks[title], "  "))
    for title in ("reason", "traceback"):
        if blocks[title]:
            yield from ("", f"{title}:", *_indented(blocks[title]))
    yield from ("", *_body(message.raw))


def _pairs(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in values.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{indent}{escape(name)}: {escape(text)}"


def _body(raw: bytes) -> Iterator[str]:
    body = body_as_json(raw)
    text, encoding = body["body"], body["body_encoding"]
    if encoding == "base64":
        yield f"body ({len(raw)} bytes, in base64):"
        yield text
        return
    try:
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        kind = "JSON"
    except (ValueError, RecursionError):
        kind = "text"
    yield f"body ({len(raw)} bytes, {kind}):"
    yield from map(_line, text.split("\n"))


def _indented(text: str) -> Iterable[str]:
    return (f"  {_line(line)}" for line in text.rstrip().split("\n"))


def _line(text: str) -> str:
    return escape(text.expandtabs())


def _jsonable(value: Any) -> Any:
    """Return the value of a header for JSON; other types become text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return value.decode(errors="backslashreplace")
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(name): _jsonable(each) for name, each in value.items()}
        case list():
            return [_jsonable(each) for each in value]
    return str(value)
