"""The views of the API for dead letters, and for the jobs that replay and delete them."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Protocol

from aiohttp import web
from pydantic import AwareDatetime, Field

from workerkit.console.dead_letters.model import (
    DeleteRequest,
    Job,
    Key,
    LetterDetail,
    LetterFilter,
    LetterGroups,
    LetterPage,
    LetterQueue,
    QueueRef,
    ReplayRequest,
)
from workerkit.console.model import FleetView, Operator
from workerkit.console.reports import Model, QueueReport
from workerkit.console.views import API, ConsoleView, operator_of, require_admin
from workerkit.http.disconnect import while_connected

_LETTERS = f"{API}/dead-letters"
_JOBS = f"{API}/jobs"
_LARGEST_EDIT = 2 * 1024 * 1024

_NO_LETTERS = {404: "There is no such queue or dead letter", 502: "The broker refused"}
_NO_JOB = {404: "There is no such job", 409: "The job is in another state"}

Queue = Annotated[str, Field(min_length=1, max_length=255)]
Name = Annotated[str, Field(max_length=255)]
Text = Annotated[str, Field(max_length=1000)]
Position = Annotated[int, Field(ge=0, le=2**31 - 1)]
Limit = Annotated[int, Field(ge=1, le=200)]
JobId = Annotated[str, Field(min_length=1, max_length=64)]

Place = tuple[str, str, str]
"""A queue: its connection, virtual host and name."""


class LetterDesk(Protocol):
    """Reads, replays and deletes dead letters."""

    async def queues(
        self, known: Sequence[QueueReport], consumers: Mapping[Place, Sequence[str]]
    ) -> list[LetterQueue]:
        """Return the queues that have dead letters, or had some."""

    async def page(
        self, ref: QueueRef, filter: LetterFilter, position: int, limit: int
    ) -> LetterPage:
        """Return some dead letters of a queue."""

    async def groups(self, ref: QueueRef, filter: LetterFilter) -> LetterGroups:
        """Return the groups of a queue."""

    async def letter(self, ref: QueueRef, key: str, position: int | None) -> LetterDetail:
        """Return all of one dead letter."""

    def replay(self, request: ReplayRequest, operator: Operator) -> Job:
        """Begin to replay dead letters."""

    def delete(self, request: DeleteRequest, operator: Operator) -> Job:
        """Begin to delete dead letters."""

    def jobs(self) -> list[Job]:
        """Return the last jobs, the newest first."""

    def job(self, id: str) -> Job:
        """Return a job."""

    def stop(self, id: str, operator: Operator) -> Job:
        """Stop a job."""

    def undo(self, id: str, operator: Operator) -> Job:
        """Undo a deletion."""

    async def close(self) -> None:
        """Stop the jobs, and close connections."""


class Nothing(Model):
    """An empty body."""


_NOTHING = Nothing()


class _DeskView(ConsoleView, abstract=True):
    def __init__(self, desk: LetterDesk) -> None:
        self._desk = desk


class LetterQueuesView(_DeskView):
    """The queues with dead letters."""

    name = "dead_letters"
    routes = [_LETTERS]
    problems = {502: "The broker refused"}

    def __init__(self, desk: LetterDesk, view: Callable[[], Awaitable[FleetView]]) -> None:
        super().__init__(desk)
        self._view = view

    async def get(self, request: web.Request) -> list[LetterQueue]:
        """The queues of all consumers that have dead letters, or a place for them."""
        return await while_connected(request, self._queues())

    async def _queues(self) -> list[LetterQueue]:
        known, consumers = queues_of(await self._view())
        return await self._desk.queues(known, consumers)


class LetterPageView(_DeskView):
    """Dead letters, page by page."""

    name = "dead_letters_page"
    routes = [f"{_LETTERS}/page"]
    problems = _NO_LETTERS

    async def get(
        self,
        request: web.Request,
        queue: Queue,
        connection: Name = "default",
        vhost: Name | None = None,
        position: Position = 0,
        limit: Limit = 50,
        group: Key | None = None,
        consumer: Name | None = None,
        error: Name | None = None,
        text: Text | None = None,
        message_id: Name | None = None,
        header: Text | None = None,
        since: AwareDatetime | None = None,
        until: AwareDatetime | None = None,
    ) -> LetterPage:
        """Some dead letters of a queue, the oldest first; looking changes nothing."""
        ref = QueueRef(queue=queue, connection=connection, vhost=vhost)
        wanted = LetterFilter(
            group=group,
            consumer=consumer,
            error=error,
            text=text,
            message_id=message_id,
            header=header,
            since=since,
            until=until,
        )
        return await while_connected(request, self._desk.page(ref, wanted, position, limit))


class LetterGroupsView(_DeskView):
    """Dead letters, grouped by what failed."""

    name = "dead_letters_groups"
    routes = [f"{_LETTERS}/groups"]
    problems = _NO_LETTERS

    async def get(
        self,
        request: web.Request,
        queue: Queue,
        connection: Name = "default",
        vhost: Name | None = None,
        group: Key | None = None,
        consumer: Name | None = None,
        error: Name | None = None,
        text: Text | None = None,
        message_id: Name | None = None,
        header: Text | None = None,
        since: AwareDatetime | None = None,
        until: AwareDatetime | None = None,
    ) -> LetterGroups:
        """The groups of a queue: dead letters with the same consumer, error and line."""
        ref = QueueRef(queue=queue, connection=connection, vhost=vhost)
        wanted = LetterFilter(
            group=group,
            consumer=consumer,
            error=error,
            text=text,
            message_id=message_id,
            header=header,
            since=since,
            until=until,
        )
        return await while_connected(request, self._desk.groups(ref, wanted))


class LetterView(_DeskView):
    """One dead letter."""

    name = "dead_letters_letter"
    routes = [f"{_LETTERS}/letter"]
    problems = _NO_LETTERS

    async def get(
        self,
        request: web.Request,
        queue: Queue,
        key: Key,
        connection: Name = "default",
        vhost: Name | None = None,
        position: Position | None = None,
    ) -> LetterDetail:
        """All of one dead letter."""
        ref = QueueRef(queue=queue, connection=connection, vhost=vhost)
        return await while_connected(request, self._desk.letter(ref, key, position))


class ReplayView(_DeskView):
    """Replays."""

    name = "dead_letters_replay"
    routes = [f"{_LETTERS}/replay"]
    role = "operate"
    status = 202
    max_body = _LARGEST_EDIT
    problems = {404: "There is no such queue"}

    async def post(self, replay: ReplayRequest, request: web.Request) -> Job:
        """Return dead letters to the queue where they failed.

        To edit one before needs the role admin.
        """
        operator = operator_of(request)
        if replay.edit is not None:
            require_admin(operator)
        return self._desk.replay(replay, operator)


class DeleteView(_DeskView):
    """Deletions."""

    name = "dead_letters_delete"
    routes = [f"{_LETTERS}/delete"]
    role = "admin"
    status = 202
    problems = {404: "There is no such queue"}

    async def post(self, deletion: DeleteRequest, request: web.Request) -> Job:
        """Delete dead letters. It can be undone for a minute, where that is possible."""
        return self._desk.delete(deletion, operator_of(request))


class JobsView(_DeskView):
    """Jobs."""

    name = "jobs"
    routes = [_JOBS]

    async def get(self) -> list[Job]:
        """The last replays and deletions, the newest first."""
        return self._desk.jobs()


class JobView(_DeskView):
    """One job."""

    name = "job"
    routes = [f"{_JOBS}/{{id}}"]
    problems = {404: _NO_JOB[404]}

    async def get(self, id: JobId) -> Job:
        """One replay or deletion."""
        return self._desk.job(id)


class StopJobView(_DeskView):
    """Stopping of jobs."""

    name = "job_stop"
    routes = [f"{_JOBS}/{{id}}/stop"]
    role = "operate"
    problems = _NO_JOB

    async def post(self, id: JobId, request: web.Request, nothing: Nothing = _NOTHING) -> Job:
        """Stop a job after the message that it handles now."""
        return self._desk.stop(id, operator_of(request))


class UndoJobView(_DeskView):
    """Undoing of jobs."""

    name = "job_undo"
    routes = [f"{_JOBS}/{{id}}/undo"]
    role = "admin"
    problems = _NO_JOB

    async def post(self, id: JobId, request: web.Request, nothing: Nothing = _NOTHING) -> Job:
        """Undo a deletion: return the messages to the dead letters."""
        return self._desk.undo(id, operator_of(request))


def queues_of(view: FleetView) -> tuple[list[QueueReport], dict[Place, list[str]]]:
    """Return the queues of all consumers, and the consumers of each."""
    known: dict[Place, QueueReport] = {}
    consumers: dict[Place, list[str]] = {}
    for consumer in view.consumers:
        for queue in consumer.queues:
            place = queue.connection, queue.vhost, queue.name
            known.setdefault(place, queue)
            consumers.setdefault(place, []).append(consumer.name)
    return list(known.values()), consumers


def desk_views(desk: LetterDesk, view: Callable[[], Awaitable[FleetView]]) -> Iterable[ConsoleView]:
    """Return the views of a desk."""
    yield LetterQueuesView(desk, view)
    kinds = (LetterPageView, LetterGroupsView, LetterView, ReplayView, DeleteView)
    yield from (kind(desk) for kind in (*kinds, JobsView, JobView, StopJobView, UndoJobView))
