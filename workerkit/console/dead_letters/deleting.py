"""Delete dead letters; for a minute that can be undone.

The selected messages are held without an acknowledgement, on a channel of their own. If the process
crashes, the broker requeues them. When it stops normally, they are acknowledged, because an
operator has confirmed the deletion.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from workerkit.amqp.browse import Browser
from workerkit.console.dead_letters.jobs import RunningJob
from workerkit.console.dead_letters.model import DeleteRequest
from workerkit.console.dead_letters.reading import Place, dead_letter_queue
from workerkit.console.dead_letters.rows import Clean
from workerkit.console.dead_letters.selection import is_later, matching
from workerkit.errors import ConnectionLost, InvalidBody

UNDO = 60.0
"""Seconds for which a deletion can be undone."""

_SLICE = 200  # Messages after which other tasks run.


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

    async def run(self) -> None:
        """Delete, and end the job."""
        job, confirmed = self._job, self._request.confirm
        async with self._place.browser(self._queue) as browser:
            async with self._place.turn(self._queue):
                selected, others = await self._select(browser)
                if job.stopping.is_set():
                    return job.end("stopped", "stopped; nothing was deleted")
                job.total = len(selected)
                if not selected:
                    return job.end("done", "no dead letter matches")
                if len(selected) > confirmed:
                    return job.end(
                        "failed",
                        f"{len(selected)} dead letters match, and {confirmed} were confirmed:"
                        " nothing was deleted",
                    )
            # Others may read the queue while its selected messages are held.
            browser.requeue(others)
            await self._hold(browser, selected)
        return None

    async def _select(self, browser: Browser) -> tuple[list[int], list[int]]:
        """Return the tags of the messages that match, and those of the others."""
        job = self._job
        selected: list[int] = []
        others: list[int] = []
        while not job.stopping.is_set():
            if not browser.read % _SLICE:
                await asyncio.sleep(0)
            try:
                message = await browser.next()
            except InvalidBody:
                continue  # It is too large to be read, and stays.
            if message is None:
                break
            if browser.is_exhausted(message):
                # To requeue it could destroy it. Its copy is read at the end.
                await browser.keep(message)
                browser.count += 1
            elif not is_later(message, job.started, job.id) and self._matches(message):
                selected.append(message.tag)
            else:
                others.append(message.tag)
        return selected, others

    async def _hold(self, browser: Browser, selected: list[int]) -> None:
        """Hold the messages as long as the deletion can be undone, then remove them."""
        job, number = self._job, len(selected)
        job.done = number
        job.state, job.text = "undoable", f"{number} deleted"
        job.undo_until = datetime.now(UTC) + timedelta(seconds=self._seconds)
        await self._wait(browser)
        if job.undoing.is_set():
            job.done = 0
            return job.end("undone", f"{number} are in the queue again")
        # From now on it is final.
        job.state, job.undo_until = "running", None
        try:
            await browser.remove(selected)
        except ConnectionLost as error:
            job.done = 0
            return job.end("failed", f"the dead letters are in the queue again: {error}")
        job.end("done", f"{number} deleted")
        return None

    async def _wait(self, browser: Browser) -> None:
        """Wait for the end of the time, an undo, the end of the process, or a lost connection."""
        job = self._job
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end(_: object) -> None:
            if not ended.done():
                ended.set_result(None)

        waiting: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(job.undoing.wait()),
            asyncio.ensure_future(job.closing.wait()),
        ]
        for each in (*waiting, browser.lost):
            each.add_done_callback(end)
        try:
            await asyncio.wait([ended], timeout=self._seconds)
        finally:
            browser.lost.remove_done_callback(end)
            for each in waiting:
                each.cancel()
