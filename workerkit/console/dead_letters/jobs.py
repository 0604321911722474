"""The jobs of the desk: their progress, their end, and who started them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

from workerkit.console.dead_letters.model import Job, QueueRef
from workerkit.console.dead_letters.reading import DeskError
from workerkit.console.model import Operator
from workerkit.describe import describe_error
from workerkit.tasks import cancel_and_wait

log = logging.getLogger(__name__)

Audit = Callable[[Operator, str, str, str], None]
"""Called with the operator, the action, its target and its result."""

MOST_JOBS = 100
_MOST_RUNNING = 10
_CLOSE_DEADLINE = 3.0
State = Literal["running", "done", "stopped", "failed", "undoable", "undone"]


class RunningJob:
    """A job, and its progress.

    Attributes:
        stopping: Set when it should stop.
        undoing: Set when a deletion should be undone.
        closing: Set when the process stops.
    """

    def __init__(self, kind: Literal["replay", "delete"], queue: QueueRef, by: Operator) -> None:
        self.id = uuid4().hex
        self.kind: Literal["replay", "delete"] = kind
        self.queue = queue
        self.operator = by
        self.started = datetime.now(UTC)
        self.ended: datetime | None = None
        self.undo_until: datetime | None = None
        self.state: State = "running"
        self.text = ""
        self.total: int | None = None
        self.done = 0
        self.failed_again = 0
        self.stopping = asyncio.Event()
        self.undoing = asyncio.Event()
        self.closing = asyncio.Event()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.ended is None

    def report(self) -> Job:
        """Return its progress."""
        return Job(
            id=self.id,
            kind=self.kind,
            queue=self.queue,
            state=self.state,
            text=self.text,
            total=self.total,
            done=self.done,
            failed_again=self.failed_again,
            started=self.started,
            ended=self.ended,
            undo_until=self.undo_until,
            user=self.operator.user,
        )

    def end(self, state: State, text: str) -> None:
        """End it."""
        self.state, self.text = state, text
        self.undo_until = None


class Jobs:
    """The last jobs.

    Args:
        audit: Called at the start and at the end of each job.
    """

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._jobs: dict[str, RunningJob] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def add(self, job: RunningJob, run: Callable[[], Awaitable[None]]) -> Job:
        """Start a job.

        Args:
            run: Does it, and ends it. An error that it raises ends the job as failed.

        Raises:
            DeskError: Too many jobs are running.
        """
        if len(self._tasks) >= _MOST_RUNNING:
            raise DeskError(429, f"{_MOST_RUNNING} jobs are running: wait until one has ended")
        for old in [each for each in self._jobs.values() if not each.is_running]:
            if len(self._jobs) < MOST_JOBS:
                break
            del self._jobs[old.id]
        self._jobs[job.id] = job
        self._record(job, f"started job {job.id}")
        self._tasks[job.id] = asyncio.create_task(self._run(job, run), name=f"{job.kind} {job.id}")
        return job.report()

    async def _run(self, job: RunningJob, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
        except asyncio.CancelledError:
            job.end("stopped", f"the process stopped; {job.text or f'{job.done} done'}")
            raise
        except Exception as error:
            if not isinstance(error, DeskError):
                log.exception("job failed", extra={"job": job.id})
            text = str(error) if isinstance(error, DeskError) else describe_error(error)
            job.end("failed", text)
        finally:
            job.ended = datetime.now(UTC)
            del self._tasks[job.id]
            self._record(job, f"job {job.id} {job.state}: {job.text}")

    def list(self) -> "list[Job]":
        """Return the jobs, the newest first."""
        return [each.report() for each in reversed(self._jobs.values())]

    def get(self, id_: str) -> RunningJob:
        """Return a job.

        Raises:
            DeskError: There is none with this id.
        """
        if (job := self._jobs.get(id_)) is None:
            raise DeskError(404, "there is no such job")
        return job

    def stop(self, id_: str, by: Operator) -> Job:
        """Stop a job.

        Raises:
            DeskError: It has ended, or can only be undone.
        """
        job = self.get(id_)
        if job.state != "running":
            raise DeskError(409, f"the job is not running but {job.state}")
        job.stopping.set()
        self._audit(by, "stop", job.queue.queue, f"stops {job.kind} job {job.id}")
        return job.report()

    def undo(self, id_: str, by: Operator) -> Job:
        """Undo a deletion.

        Raises:
            DeskError: It cannot be undone any more, or is no deletion.
        """
        job = self.get(id_)
        if job.state != "undoable" or job.undoing.is_set():
            raise DeskError(409, f"the job cannot be undone: it is {job.state}")
        job.undoing.set()
        self._audit(by, "undo", job.queue.queue, f"undoes {job.kind} job {job.id}")
        return job.report()

    async def close(self) -> None:
        """End all jobs: replays stop, and deletions become final."""
        for id_ in self._tasks:
            self._jobs[id_].stopping.set()
            self._jobs[id_].closing.set()
        if tasks := list(self._tasks.values()):
            _, late = await asyncio.wait(tasks, timeout=_CLOSE_DEADLINE)
            await cancel_and_wait(late)

    def _record(self, job: RunningJob, result: str) -> None:
        self._audit(job.operator, job.kind, job.queue.queue, result)
