"""Which dead letters a request selects."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from workerkit.amqp.dead_letters import REPLAY_JOB, TRACEBACK, Evidence
from workerkit.amqp.message import OURS, AMQPMessage
from workerkit.console.dead_letters.model import LetterFilter, LetterSelection
from workerkit.console.dead_letters.rows import Clean, as_json, group_of, key_of, place_of

Matches = Callable[[AMQPMessage[Any]], bool]

# Their texts are searched without secrets.
_TEXTS = frozenset({TRACEBACK, f"{OURS}reason"})


def matching(selection: LetterSelection, clean: Clean) -> Matches:
    """Return the function that decides whether a message is selected.

    Each key selects one message: of equal ones, the first. So the function is for one pass.
    """
    if selection.keys is not None:
        return _Keys(selection.keys)
    if selection.filter is not None:
        return filtering(selection.filter, clean)
    return _everything


def is_empty(filter: LetterFilter) -> bool:
    """Return whether a filter has no condition."""
    return filter == LetterFilter()


def filtering(filter: LetterFilter, clean: Clean) -> Matches:
    """Return the function that decides whether a message matches all conditions."""
    if is_empty(filter):
        return _everything
    text = filter.text and filter.text.casefold()
    name, _, part = (filter.header or "").partition("=")
    since, until = _aware(filter.since), _aware(filter.until)

    def matches(message: AMQPMessage[Any]) -> bool:
        if filter.message_id is not None and message.message_id != filter.message_id:
            return False
        if name and not _has_header(message, name, part):
            return False
        found = Evidence.of(message)
        return (
            (filter.error is None or found.is_error(filter.error))
            and (filter.consumer is None or found.is_of(filter.consumer))
            and (since is None or found.failed_since(since))
            and (until is None or (found.failed_at is not None and found.failed_at <= until))
            and (filter.group is None or group_of(found, place_of(found)) == filter.group)
            and (not text or _has_text(found, text, clean))
        )

    return matches


def is_later(message: AMQPMessage[Any], started: datetime, job: str) -> bool:
    """Return whether a message became a dead letter after a job had started."""
    if message.sent.get(REPLAY_JOB) == job:
        return True
    failed_at = Evidence.of(message).failed_at
    # A time in the future is that of a clock that is wrong.
    return failed_at is not None and started < failed_at <= datetime.now(UTC)


class _Keys:
    """Selects messages by their keys."""

    def __init__(self, keys: list[str]) -> None:
        self._left = Counter(keys)

    def __call__(self, message: AMQPMessage[Any]) -> bool:
        key = key_of(message)
        if not self._left[key]:
            return False
        self._left[key] -= 1
        return True


def _everything(message: AMQPMessage[Any]) -> bool:
    return True


def _aware(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def _has_header(message: AMQPMessage[Any], name: str, part: str) -> bool:
    if name not in message.sent or name in _TEXTS:
        return False
    return not part or part in str(as_json(message.sent[name]))


def _has_text(found: Evidence, text: str, clean: Clean) -> bool:
    texts = (found.reason, found.traceback)
    return any(text in clean(each).casefold() for each in texts if each)
