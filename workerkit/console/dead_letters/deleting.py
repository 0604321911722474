"""Delete dead letters; for a minute that can be undone.

The selected messages are held without an acknowledgement, on a channel of their own. If the process
crashes, the broker requeues them. When it stops normally, they are acknowledged, because an operator
has confirmed the deletion.
"""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

from workerkit.amqp.browse import Browser
from workerkit.amqp.message import AMQPMessage
from workerkit.console.dead_letters.jobs import RunningJob
from workerkit.console.dead_letters.model import DeleteRequest
from workerkit.console.dead_letters.reading import Place, dead_letter_queue, messages
from workerkit.console.dead_letters.rows import Clean
from workerkit.console.dead_letters.selection import is_later, matching
from workerkit.errors import ConnectionLost

UNDO = 60.0
"""Seconds for which a deletion can be undone."""


class Deletion:
    """One delete job."""

    def __init__(
        self,
        job: RunningJob,
        place: Place,
        request: DeleteRequest,
        clean: Clean,
        seconds: float = UNDO,
    ) -> None:
        self._job = job
        self._place = place
        self._request = request
        self._matches = matching(request.selection, clean)
        self._queue = dead_letter_queue(request.queue)
        self._seconds = seconds
        self._exhausted = 0

    async def run(self) -> None:
        """Delete, and end the job."""
        job, confirmed = self._job, self._request.confirm
        # The queue can be read by others while its messages are held.
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self._place.turn(self._queue))
            async with self._place.browser(self._queue) as browser:
                selected = await self._select(browser)
                if job.stopping.is_set():
                    return job.end("stopped", "stopped; nothing was deleted")
                job.total = len(selected)
                if not selected:
                    return job.end("done", "no dead letter matches")
                if len(selected) > confirmed:
                    return job.end(
                        "failed",
                        f"{len(selected)} dead letters match, and {confirmed} were confirmed: "
                        "nothing was deleted",
                    )
                await turn.aclose()
                await self._hold(browser, selected)

    async def _select(self, browser: Browser) -> list[int]:
        """Return the tags of the messages that match, and requeue the others."""
        job = self._job
        selected: list[int] = []
        others: list[int] = []
        while (message := await browser.next_readable()) is not None:
            matches = not is_later(message, job.started, job.id) and self._matches(message)
            if matches:
                selected.append(message.tag)
                self._exhausted += browser.is_exhausted(message)
            elif browser.is_exhausted(message):
                await browser.keep(message)
            else:
                others.append(message.tag)
            if job.stopping.is_set() or len(selected) > self._request.confirm + 1_000_000:
                break
        return selected
