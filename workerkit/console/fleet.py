"""The processes of one application, over the broker that they are connected to."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Literal
from uuid import uuid4

from workerkit.amqp.connection import Connection
from workerkit.config.sections import FleetSettings
from workerkit.config.settings import WorkerSettings
from workerkit.console.bus import Bus, queue_prefix_of
from workerkit.console.messages import (
    LARGEST,
    LARGEST_REQUEST,
    Message,
    decoded,
    encoded,
    shortened,
)
from workerkit.console.model import Command, CommandResult, Operator
from workerkit.console.sources import Agent, Answers
from workerkit.tasks import cancel_and_wait

log = logging.getLogger(__name__)

_REPORT_DEADLINE = 1.0
_COMMAND_DEADLINE = 3.0
_FORGOTTEN = 60.0
_FIRST_DEADLINE = 3.0
_INTRODUCTION = 1.0
_MOST_MEMBERS = 1_000
_MOST_WAITING = 100
_MOST_ANSWERS = 20  # In a second.
_MOST_GREETINGS = 200  # In a second.
_MOST_COMMANDS = 100


class Limit:
    """A limit of what is done in a second.

    Args:
        most: How often.
    """

    def __init__(self, most: int) -> None:
        self._interval = 1 / most
        self._until = 0.0

    def allows(self) -> bool:
        """Return whether it may be done now, and count it if so."""
        now = monotonic()
        until = max(self._until, now - 1.0) + self._interval
        if until > now:
            return False
        self._until = until
        return True


class _Request:
    """A request, and the answers to it so far.

    Args:
        expected: The ids of the processes that should answer. With none, it is never complete.
    """

    def __init__(self, expected: Iterable[str]) -> None:
        self.expected = set(expected)
        self.answers: dict[str, Message] = {}
        self._complete = asyncio.Event()

    def add(self, answer: Message) -> None:
        """Add an answer."""
        if len(self.answers) < _MOST_MEMBERS:
            self.answers[answer.process] = answer
        if self.expected and self.expected <= self.answers.keys():
            self._complete.set()

    async def complete(self, seconds: float) -> None:
        """Wait until all have answered, for some time."""
        try:
            async with asyncio.timeout(seconds):
                await self._complete.wait()
        except TimeoutError:
            return


class Fleet:
    """The source of all processes of an application that are connected to the same broker.

    Args:
        connection: The one of the consumers, which the caller runs.
        agent: Of this process; None for a console that runs alone.
    """

    def __init__(
        self, app: str, settings: FleetSettings, connection: Connection, agent: Agent | None
    ) -> None:
        self._agent = agent
        self._prefix = queue_prefix_of(app)
        self._bus = Bus(app, connection, self._receive, self._greet, warns=settings.mode == "on")
        self._connection = connection
        # Their ids, with the time of the last sign of life.
        self._members: dict[str, float] = {}
        self._waiting: dict[str, _Request] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[None] | None = None
        self._answers = Limit(_MOST_ANSWERS)
        self._greetings = Limit(_MOST_GREETINGS)
        self._asked_at = 0.0
        self._met = asyncio.Event()

    def start(self) -> None:
        """Find the other processes, in the background."""
        self._running = asyncio.create_task(self._run(), name="fleet")

    async def opened(self, seconds: float) -> bool:
        """Wait until messages can be sent, for some time; return whether that is so."""
        try:
            async with asyncio.timeout(seconds):
                await self._met.wait()
        except TimeoutError:
            return False
        return True

    async def reports(self) -> Answers:
        """Return the reports of all processes that answer within a second, but for this one."""
        self._forget()
        request = self._send("ask", self._members, None, None)
        if request is None:
            return Answers([], list(self._members), self._problems())
        try:
            await request[1].complete(_REPORT_DEADLINE)
        finally:
            del self._waiting[request[0]]
        reports = [each.report for each in request[1].answers.values() if each.report is not None]
        answering = {each.id for each in reports}
        return Answers(reports, [each for each in self._members if each not in answering])

    async def execute(self, command: Command, operator: Operator) -> Sequence[CommandResult]:
        """Have a command executed by the processes that it is for, but for this one."""
        self._forget()
        wanted = [
            each for each in self._members if command.processes is None or each in command.processes
        ]
        if not wanted:
            return []
        request = self._send("command", wanted, command, operator)
        if request is None:
            text = f"not sent: {'; '.join(self._problems())}"
            return [
                CommandResult(process=each, ok=False, answered=False, text=text) for each in wanted
            ]
        try:
            await request[1].complete(_COMMAND_DEADLINE)
        finally:
            del self._waiting[request[0]]
        late = f"did not answer within {_COMMAND_DEADLINE:g} s"
        return [
            answer.result
            if (answer := request[1].answers.get(each)) is not None and answer.result is not None
            else CommandResult(process=each, ok=False, answered=False, text=late)
            for each in wanted
        ]

    async def close(self) -> None:
        """Say goodbye, and leave."""
        if self._agent is not None and self._broadcast(Message(kind="bye", process=self._agent.id)):
            await self._bus.flush()
        if self._running is not None:
            await cancel_and_wait([self._running])
        await cancel_and_wait(self._tasks)
        await self._bus.close()

    async def _run(self) -> None:
        try:
            await self._bus.run()
        except Exception:
            # The consumers do not depend on it.
            log.exception("other processes cannot be found any more")

    def _problems(self) -> list[str]:
        reason = self._bus.problem or "the connection to the broker is not open"
        return [f"other processes cannot be found: {reason}"]

    def _send(
        self,
        kind: Literal["ask", "command"],
        expected: Iterable[str],
        command: Command | None,
        operator: Operator | None,
    ) -> tuple[str, _Request] | None:
        """Send a request to all; return its id and what collects the answers."""
        if len(self._waiting) >= _MOST_WAITING or not self._bus.is_open:
            return None
        id_, request = uuid4().hex, _Request(expected)
        self._waiting[id_] = request
        own = "" if self._agent is None else self._agent.id
        message = Message(kind=kind, process=own, request=id_, command=command, operator=operator)
        if not self._broadcast(message):
            del self._waiting[id_]
            return None
        return id_, request

    def _greet(self) -> None:
        """Introduce this process, and have the others introduce themselves."""
        own = "" if self._agent is None else self._agent.id
        self._broadcast(Message(kind="hello", process=own, request="new"))
        self._met.set()

    def _broadcast(self, message: Message) -> bool:
        return self._bus.broadcast(encoded(message))

    def _receive(self, body: bytes, reply_to: str) -> None:
        if len(body) > LARGEST_REQUEST and not self._waiting:
            return  # Only a report may be that large, and none is expected.
        message = decoded(body)
        if self._agent is not None and message.process == self._agent.id:
            return
        if message.kind == "bye":
            self._members.pop(message.process, None)
            return
        if message.process and message.kind in ("hello", "report", "result"):
            self._note(message.process)
        if message.kind in ("report", "result") and message.request in self._waiting:
            self._waiting[message.request].add(message)
        # Who may publish to the exchange may not have others publish to any queue.
        if not reply_to.startswith(self._prefix):
            return
        if message.kind == "hello" and message.request == "new":
            self._introduce(reply_to)
        elif message.kind == "ask":
            self._answer(message, reply_to)
        elif message.kind == "command":
            self._begin(message, reply_to)

    def _introduce(self, reply_to: str) -> None:
        if self._agent is not None and self._greetings.allows():
            self._bus.send(reply_to, encoded(Message(kind="hello", process=self._agent.id)))

    def _note(self, process: str) -> None:
        """Note a sign of life; beyond the limit, forget the process with the oldest one."""
        self._members.pop(process, None)
        self._members[process] = monotonic()
        if len(self._members) > _MOST_MEMBERS:
            del self._members[next(iter(self._members))]

    def _forget(self) -> None:
        """Forget the processes of which there was no sign of life for a minute of looking."""
        now = monotonic()
        for process, seen in list(self._members.items()):
            if now - seen > _FORGOTTEN and now - self._asked_at < _FORGOTTEN / 2:
                del self._members[process]
        self._asked_at = now

    def _answer(self, message: Message, reply_to: str) -> None:
        """Answer with the report of this process, at most so many times in a second."""
        if self._agent is None or not self._answers.allows():
            return
        for report in shortened(self._agent.report()):
            body = encoded(
                Message(
                    kind="report", process=self._agent.id, request=message.request, report=report
                )
            )
            if len(body) <= LARGEST:
                self._bus.send(reply_to, body)
                return

    def _begin(self, message: Message, reply_to: str) -> None:
        command, operator = message.command, message.operator
        if self._agent is None or command is None or operator is None:
            return
        if command.processes is not None and self._agent.id not in command.processes:
            return
        if len(self._tasks) >= _MOST_COMMANDS:
            return
        operator = operator.model_copy(
            update={"user": operator.user[:100], "address": f"via fleet, {operator.address[:100]}"}
        )
        task = asyncio.create_task(
            self._execute(self._agent, command, operator, message.request, reply_to)
        )
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, task))

    async def _execute(
        self, agent: Agent, command: Command, operator: Operator, request: str, reply_to: str
    ) -> None:
        result = await agent.execute(command, operator)
        answer = Message(kind="result", process=agent.id, request=request, result=result)
        self._bus.send(reply_to, encoded(answer))

    def _ended(self, task: "asyncio.Task[None]", _: object) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a command of another process failed", exc_info=error)


class LoneFleet(Fleet):
    """The fleet as a console sees it that runs alone.

    It has a connection of its own, which is opened when somebody looks.
    """

    def __init__(
        self, app: str, settings: WorkerSettings, connection: str, vhost: str | None
    ) -> None:
        read = partial(settings.connection, connection)
        self._own = Connection(connection, read, vhost, "console")
        super().__init__(app, settings.fleet, self._own, None)
        self._connecting: asyncio.Task[None] | None = None

    async def reports(self) -> Answers:
        """Return the reports of all processes; see `Fleet.reports`."""
        await self._connect()
        return await super().reports()

    async def execute(self, command: Command, operator: Operator) -> Sequence[CommandResult]:
        """Have a command executed; see `Fleet.execute`."""
        await self._connect()
        return await super().execute(command, operator)

    async def _connect(self) -> None:
        if self._connecting is None:
            self.start()
            if await self.opened(_FIRST_DEADLINE):
                # The processes connect, and introduce themselves.
                await asyncio.sleep(_INTRODUCTION)

    def start(self) -> None:
        """Connect, and find the processes."""
        self._connecting = asyncio.create_task(self._own.run(), name="connection of the console")
        super().start()

    async def close(self) -> None:
        """Leave, and close the connection."""
        await super().close()
        self._own.stop()
        if self._connecting is not None:
            await cancel_and_wait([self._connecting])
