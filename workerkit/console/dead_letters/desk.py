"""The desk of dead letters: what the console reads, replays and deletes.

Reading over AMQP means to receive messages without an acknowledgement, and to requeue them. So a
page that is far back has to pass over those before it, and while a page is read, its messages are
held: others who read the same queue see the rest. Nothing is held between two requests.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from workerkit.amqp.message import AMQPMessage
from workerkit.config.settings import WorkerSettings
from workerkit.console.dead_letters.deleting import Deletion
from workerkit.console.dead_letters.details import BodyModels, detail
from workerkit.console.dead_letters.groups import Grouping
from workerkit.console.dead_letters.jobs import Audit, Jobs, RunningJob
from workerkit.console.dead_letters.model import (
    DeleteRequest,
    Job,
    Letter,
    LetterDetail,
    LetterFilter,
    LetterGroups,
    LetterPage,
    LetterQueue,
    QueueRef,
    ReplayRequest,
)
from workerkit.console.dead_letters.reading import (
    DeskError,
    Places,
    dead_letter_queue,
    messages,
)
from workerkit.console.dead_letters.replaying import Replay
from workerkit.console.dead_letters.rows import key_of, row, unreadable
from workerkit.console.dead_letters.selection import filtering, is_empty
from workerkit.console.model import Operator
from workerkit.console.reports import QueueReport
from workerkit.errors import InvalidBody
from workerkit.safe_text import Redact, cleaner
from workerkit.transport import Declared

_PAGE_MESSAGES = 20_000
_PAGE_SECONDS = 5.0
_SCAN_SECONDS = 45.0

Place = tuple[str, str, str]
Depth = tuple[int | None, int | None]


class Desk:
    """Reads dead letters, and acts on them.

    Args:
        declared: The consumers of this process, which decode bodies; none for a console alone.
        redact: The container's.
        audit: Called at the start and at the end of each job.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        declared: Sequence[Declared],
        redact: Redact | None,
        audit: Audit,
    ) -> None:
        self._clean = _encodable(cleaner(redact))
        self._places = Places(settings)
        self._models = BodyModels(declared, self._clean)
        self._jobs = Jobs(audit)

    async def depths(self, queues: Sequence[QueueReport]) -> Mapping[Place, Depth]:
        """Return the number of messages that wait in queues, and in those of their dead letters.

        Returns:
            By connection, virtual host and name; None for what is unknown.
        """
        by_place: dict[tuple[str, str], list[QueueReport]] = {}
        for each in queues:
            by_place.setdefault((each.connection, each.vhost), []).append(each)
        found: dict[Place, Depth] = {}
        for (connection, vhost), every in by_place.items():
            names = [name for each in every for name in (each.name, each.dead_letters) if name]
            try:
                counts = await self._places.find(connection, vhost).counts(names)
            except DeskError:
                continue  # Another process has a connection that these settings do not have.
            for each in every:
                dead = None if each.dead_letters is None else counts.get(each.dead_letters)
                found[connection, vhost, each.name] = counts.get(each.name), dead
        return found

    async def queues(
        self, known: Sequence[QueueReport], consumers: Mapping[Place, Sequence[str]]
    ) -> list[LetterQueue]:
        """Return the queues of consumers that have a queue for their dead letters.

        Args:
            consumers: The names of those that read a queue.
        """
        wanted = [each for each in known if each.dead_letters is not None]
        depths = await self.depths(wanted)
        return [self._queue(each, depths, consumers) for each in wanted]

    def _queue(
        self,
        queue: QueueReport,
        depths: Mapping[Place, Depth],
        consumers: Mapping[Place, Sequence[str]],
    ) -> LetterQueue:
        key = queue.connection, queue.vhost, queue.name
        problem = ""
        try:
            problem = self._places.find(queue.connection, queue.vhost).problem
        except DeskError as error:
            problem = str(error)
        return LetterQueue(
            queue=queue.name,
            connection=queue.connection,
            vhost=queue.vhost,
            broker=queue.broker,
            name=queue.dead_letters or "",
            consumers=consumers.get(key, ()),
            count=depths.get(key, (None, None))[1],
            problem=self._clean(problem),
        )

    async def page(
        self, ref: QueueRef, filter: LetterFilter, position: int, limit: int
    ) -> LetterPage:
        """Return the dead letters that match, from a position on.

        It ends after 20,000 messages or five seconds as well; `next` is where to continue.

        Raises:
            DeskError: The queue cannot be read.
        """
        matches, shows_all = filtering(filter, self._clean), is_empty(filter)
        letters: list[Letter] = []
        scanned, next_ = 0, None
        clock = asyncio.get_running_loop().time
        async with self._places.of(ref).reading(dead_letter_queue(ref)) as browser:
            if shows_all:
                browser.count = min(browser.ready, position + limit)
            latest = clock() + _SCAN_SECONDS
            deadline = latest
            async with aclosing(messages(browser)) as found:
                async for at, message in found:
                    if at < position:
                        if clock() > latest:
                            raise DeskError(503, "the page is too far back to be read in time")
                        deadline = clock() + _PAGE_SECONDS
                        continue
                    scanned += 1
                    if isinstance(message, InvalidBody):
                        if shows_all:
                            letters.append(unreadable(str(message), at))
                    elif matches(message):
                        letters.append(row(message, at, self._clean))
                    is_full = len(letters) >= limit or scanned >= _PAGE_MESSAGES
                    if is_full or clock() > deadline:
                        next_ = at + 1 if at + 1 < browser.ready else None
                        break
            count = browser.ready
        return LetterPage(letters=letters, next=next_, scanned=scanned, count=count)

    async def groups(self, ref: QueueRef, filter: LetterFilter) -> LetterGroups:
        """Return the groups of the dead letters that match; of those that can be read in time.

        Raises:
            DeskError: The queue cannot be read.
        """
        matches, grouping = filtering(filter, self._clean), Grouping(self._clean)
        clock = asyncio.get_running_loop().time
        async with self._places.of(ref).reading(dead_letter_queue(ref)) as browser:
            deadline = clock() + _SCAN_SECONDS
            async with aclosing(messages(browser)) as found:
                async for _, message in found:
                    if isinstance(message, InvalidBody):
                        grouping.add(None)
                    elif matches(message):
                        grouping.add(message)
                    if clock() > deadline:
                        break
            count = browser.ready
        return grouping.result(count)

    async def letter(self, ref: QueueRef, key: str, position: int | None) -> LetterDetail:
        """Return all of one dead letter.

        Args:
            position: Where it was; its present place is found by the key.

        Raises:
            DeskError: The queue cannot be read, or has no such message any more.
        """
        found: tuple[int, AMQPMessage[Any]] | None = None
        clock = asyncio.get_running_loop().time
        async with self._places.of(ref).reading(dead_letter_queue(ref)) as browser:
            deadline = clock() + _SCAN_SECONDS
            async with aclosing(messages(browser)) as every:
                async for at, message in every:
                    if isinstance(message, AMQPMessage) and key_of(message) == key:
                        found = at, message
                        break
                    if clock() > deadline:
                        raise DeskError(503, "the queue has too many messages to find it in time")
        if found is None:
            raise DeskError(404, "the dead letter is not in the queue any more")
        model = await self._models.decode(found[1], ref.queue)
        return detail(found[1], found[0], self._clean, model)

    def replay(self, request: ReplayRequest, operator: Operator) -> Job:
        """Begin to replay dead letters.

        Raises:
            DeskError: The request is invalid, or too many jobs are running.
        """
        job = RunningJob("replay", request.queue, operator)
        replay = Replay(job, self._places.of(request.queue), request, self._clean)
        return self._jobs.add(job, replay.run)

    def delete(self, request: DeleteRequest, operator: Operator) -> Job:
        """Begin to delete dead letters.

        Raises:
            DeskError: There is no such connection, or too many jobs are running.
        """
        job = RunningJob("delete", request.queue, operator)
        deletion = Deletion(job, self._places.of(request.queue), request, self._clean)
        return self._jobs.add(job, deletion.run)

    def jobs(self) -> list[Job]:
        """Return the last jobs, the newest first."""
        return self._jobs.list()

    def job(self, id: str) -> Job:
        """Return a job.

        Raises:
            DeskError: There is none with this id.
        """
        return self._jobs.get(id).report()

    def stop(self, id: str, operator: Operator) -> Job:
        """Stop a job.

        Raises:
            DeskError: It is not running.
        """
        return self._jobs.stop(id, operator)

    def undo(self, id: str, operator: Operator) -> Job:
        """Undo a deletion.

        Raises:
            DeskError: It cannot be undone.
        """
        return self._jobs.undo(id, operator)

    async def close(self) -> None:
        """End all jobs, and close the connections."""
        await self._jobs.close()
        await self._places.close()


def _encodable(clean: Callable[[str], str]) -> Callable[[str], str]:
    """Return a function whose texts are UTF-8: those of senders may have lone surrogates."""
    return lambda text: clean(text).encode(errors="replace").decode()
