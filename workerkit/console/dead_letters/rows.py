"""One dead letter as a row: its key, its group, and its evidence without secrets."""

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from workerkit import describe
from workerkit.amqp import table
from workerkit.amqp.browse import properties_without_counts
from workerkit.amqp.dead_letters import Evidence
from workerkit.amqp.message import ACQUIRED_COUNT, DELIVERY_COUNT, AMQPMessage
from workerkit.amqp.properties import encode
from workerkit.console.dead_letters.model import Letter
from workerkit.safe_text import excerpt, mask_passwords

Clean = Callable[[str], str]
"""Returns a text without its secrets."""

_KEY_SIZE = 16
_LONGEST = 255
_LONGEST_REASON = 1000
_EXCERPT = 200
_LARGEST_INTEGER = 2**53  # Larger ones are not exact in JavaScript.
_FRAME = re.compile(r'[ |+]*File "(?P<file>[^"]+)", line (?P<line>\d{1,9})')
_BRIEF = re.compile(r"\((?P<place>[^()\s]{1,200}:\d{1,9})\)$")
_SEPARATOR = re.compile(r"[/\\]")
_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
_STANDARD = re.compile(r"^<|[/\\]lib(64)?[/\\]python\d[\d.]*[/\\]|[/\\]python\d+\.zip[/\\]|\\Lib\\")
_OWN = f"{Path(describe.__file__).parent}/"
_OWN_INSTALLED = re.compile(r"-packages[/\\]workerkit[/\\]")


def key_of(message: AMQPMessage[Any]) -> str:
    """Return a digest of body, properties and headers: the same whenever a message is read."""
    digest = blake2b(message.raw, digest_size=_KEY_SIZE)
    properties = properties_without_counts(message)
    headers = properties.table
    properties.table = None
    digest.update(encode(properties))
    # The broker adds a count to the headers when it delivers a message again, and may sort them.
    for entry in _entries(headers or b"\0\0\0\0"):
        digest.update(entry)
    return digest.hexdigest()


def _entries(headers: bytes) -> list[bytes]:
    """Return the headers without the counts of the broker, in a fixed order."""
    entries: list[bytes] = []

    def collect(name: str, entry: bytes) -> bool:
        if name not in (DELIVERY_COUNT, ACQUIRED_COUNT):
            entries.append(entry)
        return False

    try:
        table.merge(headers, {}, collect)
    except table.MalformedTable:
        return [headers]
    return sorted(entries)


def group_of(evidence: Evidence, place: str) -> str:
    """Return the id of the group of a dead letter."""
    digest = blake2b(digest_size=8)
    for each in (evidence.consumer, evidence.error, place):
        digest.update(b"\1" + each.encode() + b"\0" if each is not None else b"\0")
    return digest.hexdigest()


def place_of(evidence: Evidence) -> str:
    """Return the innermost line of the application, such as `orders.py:12`; may be empty.

    It is that of the last traceback, outside of installed packages, the standard library and
    workerkit. An application may be installed itself: if there is no such line, it is the innermost
    one outside of the standard library and workerkit.
    """
    installed = ""
    for line in reversed((evidence.traceback or "").splitlines()):
        if (found := _FRAME.match(line)) is None:
            continue
        kind = _kind(found["file"])
        name = _SEPARATOR.split(found["file"])[-1]
        place = f"{name[-_LONGEST:]}:{found['line']}"
        if kind == "application":
            return place
        if kind == "installed" and not installed:
            installed = place
    brief = _BRIEF.search((evidence.reason or "")[-_LONGEST:])
    return brief["place"] if brief else installed


@lru_cache(maxsize=1000)
def _kind(file: str) -> str:
    if file.startswith(_OWN) or _OWN_INSTALLED.search(file):
        return "workerkit"
    if _INSTALLED.search(file):
        return "installed"
    return "standard" if _STANDARD.search(file) else "application"


def row(message: AMQPMessage[Any], position: int, clean: Clean) -> Letter:
    """Return the row of a dead letter."""
    found = Evidence.of(message)
    place = place_of(found)
    return Letter(
        key=key_of(message),
        position=position,
        group=group_of(found, place),
        message_id=message.message_id,
        consumer=short(found.consumer),
        error=short(found.error),
        reason=None if found.reason is None else excerpt(clean(found.reason), _LONGEST_REASON),
        place=place,
        attempt=found.attempt,
        replays=found.replays,
        failed_at=found.failed_at,
        first_failed_at=found.first_failed_at,
        size=len(message.raw),
        content_type=message.content_type,
        exchange=message.exchange,
        routing_key=message.routing_key,
        excerpt=message.raw[:_EXCERPT].decode(errors="replace"),
    )


def unreadable(text: str, position: int) -> Letter:
    """Return the row of a message that is too large to be read."""
    return Letter(key="unreadable", position=position, group="", reason=text)


def short(text: str | None) -> str | None:
    """Return a name that is not longer than it should be."""
    return None if text is None else excerpt(text, _LONGEST)


def as_json(value: Any) -> Any:
    """Return the value of a header as one that JSON has; other types become text."""
    match value:
        case None | bool():
            return value
        case int():
            return value if abs(value) <= _LARGEST_INTEGER else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return mask_passwords(value)
        case bytes():
            return value.decode(errors="backslashreplace")
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(name): as_json(each) for name, each in value.items()}
        case list():
            return [as_json(each) for each in value]
    return str(value)
