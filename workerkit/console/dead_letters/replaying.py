"""Replay dead letters in growing batches, and stop when they fail again."""

import asyncio
import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from workerkit.amqp import table
from workerkit.amqp.browse import Browser
from workerkit.amqp.dead_letters import ORIGINAL, REPLAY_JOB
from workerkit.amqp.message import OURS, AMQPMessage
from workerkit.amqp.replay import QueueCleaner, replay_properties
from workerkit.console.dead_letters.details import ORIGINAL_BODY
from workerkit.console.dead_letters.jobs import RunningJob
from workerkit.console.dead_letters.model import Edit, ReplayRequest
from workerkit.console.dead_letters.reading import DeskError, Place, dead_letter_queue, messages
from workerkit.console.dead_letters.rows import Clean, as_json
from workerkit.console.dead_letters.selection import is_later, matching
from workerkit.errors import ConnectionLost, PublishError, PublishOutcomeUnknown
from workerkit.tasks import sleep_unless_stopping

LARGEST_BATCH = 10_000
LARGEST_ORIGINAL = 48 * 1024
_HELD = 5.0  # Seconds for which a batch holds the queue once it replays.
_SCAN_DEADLINE = 120.0
_POLL = 0.25
_MOST_LEVELS = 20


class Changes:
    """An edit of a dead letter, checked.

    Raises:
        DeskError: It is invalid.
    """

    def __init__(self, edit: Edit) -> None:
        self._edit = edit
        self._body = _new_body(edit)
        for name, value in (edit.headers or {}).items():
            if name.startswith(OURS):
                raise DeskError(422, f"header {name!r} is one of workerkit's: it cannot be changed")
            try:
                _check_levels(value, _MOST_LEVELS)
                table.encode({name: value})
            except (ValueError, TypeError) as error:
                raise DeskError(422, f"header {name!r} cannot be sent: {error}") from error
        if edit.content_type is not None and len(edit.content_type.encode()) > 255:
            raise DeskError(422, "content_type is longer than 255 bytes")

    def body_of(self, message: AMQPMessage[Any]) -> bytes:
        """Return the new body."""
        return message.raw if self._body is None else self._body

    def headers_for(self, message: AMQPMessage[Any]) -> dict[str, Any]:
        """Return the headers to set, with what they replace; the first original stays.

        Raises:
            DeskError: The original is too large.
        """
        headers = self._edit.headers or {}
        changed = {name: value for name, value in headers.items() if value is not None}
        original: dict[str, Any] = {}
        if self._body is not None and ORIGINAL_BODY not in message.sent:
            original[ORIGINAL_BODY] = message.raw
        before = self._before(message)
        if before and f"{ORIGINAL}headers" not in message.sent:
            original[f"{ORIGINAL}headers"] = json.dumps(before)
        if self._edit.content_type is not None and f"{ORIGINAL}content-type" not in message.sent:
            original[f"{ORIGINAL}content-type"] = message.content_type or ""
        size = len(table.encode(original))
        if size > LARGEST_ORIGINAL:
            raise DeskError(
                422,
                f"what the edit replaces has {size} bytes, and at most {LARGEST_ORIGINAL} can be "
                "kept in the headers: publish a new message instead",
            )
        return changed | original

    def _before(self, message: AMQPMessage[Any]) -> dict[str, Any]:
        """Return the values of the headers that are changed; None for a new one."""
        return {name: as_json(message.sent.get(name)) for name in self._edit.headers or {}}

    @property
    def removed(self) -> frozenset[str]:
        """The headers to remove."""
        headers = self._edit.headers or {}
        return frozenset(name for name, value in headers.items() if value is None)

    @property
    def content_type(self) -> str | None:
        """The new content type; None keeps it."""
        return self._edit.content_type


def _new_body(edit: Edit) -> bytes | None:
    if edit.body is not None and edit.base64 is not None:
        raise DeskError(422, "body and base64 exclude each other")
    if edit.base64 is not None:
        try:
            return base64.b64decode(edit.base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise DeskError(422, f"base64 is not valid: {error}") from error
    return None if edit.body is None else edit.body.encode(errors="replace")


def _check_levels(value: Any, left: int) -> None:
    if not left:
        raise ValueError(f"it has more than {_MOST_LEVELS} levels")
    children: Any = ()
    if isinstance(value, Mapping):
        children = value.values()
    elif isinstance(value, list):
        children = value
    for each in children:
        _check_levels(each, left - 1)


class Replay:
    """One replay job.

    Raises:
        DeskError: The request is invalid.
    """

    def __init__(self, job: RunningJob, place: Place, request: ReplayRequest, clean: Clean) -> None:
        keys = request.selection.keys
        if request.edit is not None and (keys is None or len(keys) != 1):
            raise DeskError(422, "edit needs a selection of exactly one key")
        self._changes = None if request.edit is None else Changes(request.edit)
        self._job = job
        self._place = place
        self._request = request
        self._clean = clean
        self._queue = dead_letter_queue(request.queue)
        self._matches = matching(request.selection, clean)
        self._clock = asyncio.get_running_loop().time
        self._count = 0  # Messages in the queue at the beginning.
        self._acknowledged = 0
        self._unknown = 0
        self._known_new = 0  # Those that came later, and are no failures of this job.
        self._copied = False

    async def run(self) -> None:
        """Replay, and end the job."""
        job = self._job
        try:
            job.total = await self._count_matches()
            if not job.total:
                return job.end("done", "no dead letter matches")
            await self._replay_all()
        except (DeskError, PublishError, ConnectionLost, ValueError) as error:
            return job.end("failed", f"{error}; {self._result()}")
        if job.failed_again:
            failed = f"{job.failed_again} of {job.done} failed again"
            job.end("stopped", f"stopped because {failed}")
        elif job.stopping.is_set():
            job.end("stopped", f"stopped; {self._result()}")
        else:
            job.end("done", self._result())
        return None

    def _result(self) -> str:
        text = f"{self._job.done} of {self._job.total or 0} replayed"
        both = self._job.done - self._acknowledged
        if both > 0:
            text += f"; {both} of them may be dead letters as well"
        if self._unknown:
            text += f"; for {self._unknown} more that is unknown: they are dead letters still"
        return text

    async def _count_matches(self) -> int:
        """Return the number of dead letters that match, and note how many there are."""
        matches = matching(self._request.selection, self._clean)
        async with self._place.reading(self._queue) as browser:
            self._count = browser.ready
            if self._request.selection.everything:
                return browser.ready
            count = 0
            deadline = self._clock() + _SCAN_DEADLINE
            async for _, message in messages(browser):
                count += isinstance(message, AMQPMessage) and matches(message)
                self._check_scan(deadline)
                if self._job.stopping.is_set():
                    break
            self._copied = browser.copied > 0
            return count

    async def _replay_all(self) -> None:
        job, size = self._job, 1
        while not job.stopping.is_set():
            before = job.done
            at_end = await self._batch(size)
            job.text = self._result()
            replayed = job.done - before
            if replayed and self._request.wait and await self._failed_again(replayed):
                return
            if at_end:
                return
            size = min(size * 10, LARGEST_BATCH)

    async def _batch(self, size: int) -> bool:
        """Replay up to *size* messages; return whether there are no more.

        The queue is held for some seconds at a time.
        """
        job, rate, left = self._job, self._request.rate, size
        while left > 0 and not job.stopping.is_set():
            limit = left if rate is None else min(left, max(1, int(rate * _HELD)))
            before, began = job.done, self._clock()
            at_end = await self._read(limit)
            replayed = job.done - before
            left -= replayed
            if at_end:
                return True
            if rate is not None:
                pause = began + replayed / rate - self._clock()
                await sleep_unless_stopping(max(pause, 0.0), job.stopping)
        return False

    async def _read(self, limit: int) -> bool:
        """Replay up to *limit* messages in one reading; return whether there are no more."""
        ended = asyncio.Event()
        async with self._place.reading(self._queue) as browser:
            if not self._copied:
                browser.count = min(browser.ready, self._count - self._acknowledged)
            began = self._clock()

            def is_selected(message: AMQPMessage[Any]) -> bool:
                if self._job.stopping.is_set() or (cleaner.done and self._clock() > began + _HELD):
                    ended.set()
                    return False
                self._check_scan(began + _SCAN_DEADLINE)
                later = is_later(message, self._job.started, self._job.id)
                return not later and self._matches(message)

            rate = self._request.rate
            cleaner = QueueCleaner(browser, is_selected, ended, limit=limit, rate=rate)
            try:
                await cleaner.run(self._publish)
            finally:
                self._acknowledged += cleaner.done
                self._copied = self._copied or browser.copied > 0
            return self._is_at_end(browser) and not ended.is_set()

    def _is_at_end(self, browser: Browser) -> bool:
        is_complete = self._job.total is not None and self._job.done >= self._job.total
        return browser.read >= browser.count or is_complete or not browser.read

    async def _publish(self, message: AMQPMessage[Any]) -> None:
        """Publish the copy of a message; its dead letter is acknowledged afterwards."""
        # Not that of a header: whoever may publish to the queue of dead letters could have set it.
        queue = self._request.queue.queue
        body, more = message.raw, {REPLAY_JOB: self._job.id}
        changes = self._changes
        if changes is not None:
            body = changes.body_of(message)
            more |= changes.headers_for(message)
        properties = replay_properties(message, queue, more)
        if changes is not None and changes.removed and properties.table is not None:
            removed = changes.removed
            properties.table = table.merge(
                properties.table, {}, lambda name, _: name not in removed
            )
        if changes is not None and changes.content_type is not None:
            properties = dataclasses.replace(properties, content_type=changes.content_type)
        try:
            await self._place.publisher.send(body, properties, self._place.to(queue))
        except PublishOutcomeUnknown:
            self._unknown += 1
            raise
        self._job.done += 1

    async def _failed_again(self, replayed: int) -> bool:
        """Wait for messages of the last batch that become dead letters again, and count them."""
        deadline = self._clock() + self._request.wait
        grown = 0
        while (left := deadline - self._clock()) > 0 and not self._job.stopping.is_set():
            await sleep_unless_stopping(min(_POLL, left), self._job.stopping)
            grown = await self._grown()
            if grown >= replayed:
                break
        if grown <= 0:
            return False
        failed = 0
        async with self._place.reading(self._queue) as browser:
            async for _, message in messages(browser):
                if isinstance(message, AMQPMessage):
                    failed += message.sent.get(REPLAY_JOB) == self._job.id
        self._job.failed_again = failed
        self._known_new += grown - failed
        return failed > 0

    async def _grown(self) -> int:
        """Return the number of dead letters that came since the beginning, and are not known."""
        expected = self._count - self._acknowledged + self._known_new
        return await self._place.count(self._queue) - expected

    def _check_scan(self, deadline: float) -> None:
        if self._clock() > deadline:
            text = f"the queue cannot be read within {_SCAN_DEADLINE:g} s: it has too many messages"
            raise DeskError(503, text)
