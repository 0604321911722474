"""Execute the commands of operators in this process."""

import asyncio
import difflib
import logging
from collections.abc import Awaitable, Sequence

from workerkit.console import audit
from workerkit.console.model import Command, CommandResult, Operator
from workerkit.control import NotPossible
from workerkit.describe import describe_error
from workerkit.errors import WorkerkitError
from workerkit.health import Health, Readiness
from workerkit.options import folded
from workerkit.safe_text import one_line

log = logging.getLogger(__name__)

_DEADLINE = 10.0
ADMIN_ACTIONS = frozenset({"log_level", "drain", "undrain"})
"""Commands that need the role admin."""

_OF_CONSUMER = ("pause", "resume", "concurrency", "prefetch", "run")
_ABILITIES = {"resume": "pause"}
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Commands:
    """Executes commands; each change lasts until the process ends.

    Args:
        readiness: Of this process, with its consumers.
        mode: The setting `console` of the ops server.
        variable: The environment variable of that setting.
    """

    def __init__(self, readiness: Readiness, mode: str, variable: str) -> None:
        self._readiness = readiness
        self._mode = mode
        self._variable = variable
        # The consumers that draining has paused.
        self._drained: list[Health] = []
        self._draining = asyncio.Lock()
        self._running: set[asyncio.Task[CommandResult]] = set()

    async def execute(
        self, command: Command, operator: Operator, process_id: str, host: str, pid: int
    ) -> CommandResult:
        """Execute a command; write an audit record.

        It is completed also if this call is cancelled, because a client has gone.
        """
        work = self._recorded(command, operator, process_id, host, pid)
        task = asyncio.create_task(work, name=f"console: {command.action}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _recorded(
        self, command: Command, operator: Operator, process_id: str, host: str, pid: int
    ) -> CommandResult:
        try:
            text, ok = await self._execute(command, operator), True
        except WorkerkitError as error:
            # The reason is for the operator: there is no fault here.
            text, ok = str(error), False
        except Exception as error:
            log.exception("command failed", extra={"action": command.action})
            text, ok = f"failed: {describe_error(error)}", False
        text = one_line(text)
        audit.write(operator, command.action, command.consumer or f"process {pid}", text)
        return CommandResult(process=process_id, host=host, pid=pid, ok=ok, text=text)

    async def _execute(self, command: Command, operator: Operator) -> str:
        """Execute a command; return what was done.

        Raises:
            NotPossible: It is not possible, or not allowed.
        """
        if self._mode != "operate":
            raise NotPossible(
                f"this process takes no commands: its {self._variable} is {self._mode}"
            )
        if operator.role == "view" or (
            operator.role != "admin" and command.action in ADMIN_ACTIONS
        ):
            # Another process may have sent it.
            raise NotPossible(f"{operator.user} has the role {operator.role}")
        if self._readiness.draining:
            raise NotPossible("this process is stopping")
        if command.action in _OF_CONSUMER:
            return await self._change(command)
        if command.consumer is not None:
            raise NotPossible(f"{command.action} is for processes: leave out consumer")
        if command.action == "log_level":
            return _set_level(command.value)
        if command.value is not None:
            raise NotPossible(f"{command.action} takes no value")
        return await (self._drain(operator) if command.action == "drain" else self._undrain())

    async def _change(self, command: Command) -> str:
        """Change one consumer."""
        health = self._find(command.consumer)
        control, name, action = health.control, health.consumer, command.action
        ability = _ABILITIES.get(action, action)
        if ability not in control.abilities:
            can = ", ".join(sorted(control.abilities)) or "nothing of a consumer of this kind"
            raise NotPossible(f"{name} has no {ability}: what can be changed is {can}")
        if action in ("concurrency", "prefetch"):
            return await self._resize(health, action, command.value)
        if command.value is not None:
            raise NotPossible(f"{action} takes no value")
        if action == "pause":
            if health in self._drained:
                # Somebody wants it paused also after the draining.
                self._drained.remove(health)
            await _soon(control.pause())
            return f"{name} is paused"
        if action == "resume":
            if self._readiness.drained_by:
                raise NotPossible("this process is drained: undrain it instead")
            await _soon(control.resume())
            return f"{name} is resumed"
        await _soon(control.run())
        return f"a run of {name} has started"

    async def _resize(self, health: Health, action: str, value: object) -> str:
        """Change a number of one consumer."""
        control = health.control
        before = control.concurrency if action == "concurrency" else control.prefetch
        most = 10_000 if action == "concurrency" else 65_535
        if not isinstance(value, int) or not 1 <= value <= most:
            raise NotPossible(f"value should be a number from 1 to {most}; found {value!r}")
        await _soon(
            control.change_concurrency(value)
            if action == "concurrency"
            else control.change_prefetch(value)
        )
        return f"{action} of {health.consumer} is {value}; it was {before}"

    def _find(self, consumer: str | None) -> Health:
        if consumer is None:
            raise NotPossible("consumer is missing: name one")
        by_name = {folded(each.consumer): each for each in self._readiness.health}
        if (found := by_name.get(folded(consumer))) is not None:
            return found
        names = [each.consumer for each in self._readiness.health]
        nearest = difflib.get_close_matches(consumer, names, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise NotPossible(f"this process runs no consumer {consumer!r}{hint}")

    async def _drain(self, operator: Operator) -> str:
        """Pause all consumers, and fail readiness, so that balancers send no more requests."""
        async with self._draining:
            if self._readiness.drained_by:
                raise NotPossible(f"it is drained by {self._readiness.drained_by} already")
            self._readiness.drained_by = one_line(operator.user)
            self._drained = [
                each
                for each in self._readiness.health
                if "pause" in each.control.abilities and not each.control.paused
            ]
            failed = await _changed([(each, _soon(each.control.pause())) for each in self._drained])
        return f"draining: handlers finish, and nothing new is received{failed}"

    async def _undrain(self) -> str:
        async with self._draining:
            if not self._readiness.drained_by:
                raise NotPossible("it is not drained")
            drained, self._drained, self._readiness.drained_by = self._drained, [], ""
            failed = await _changed([(each, _soon(each.control.resume())) for each in drained])
        return f"not drained any more{failed}"


async def _soon(change: Awaitable[None]) -> None:
    """Wait for a change, for a limited time.

    Raises:
        NotPossible: It takes longer.
    """
    try:
        await asyncio.wait_for(change, _DEADLINE)
    except TimeoutError:
        raise NotPossible(f"not completed after {_DEADLINE:g} s; it may continue") from None


async def _changed(changes: Sequence[tuple[Health, Awaitable[None]]]) -> str:
    """Wait for changes of consumers, and return those that failed; others are made all the same."""
    done = await asyncio.gather(*(change for _, change in changes), return_exceptions=True)
    failed = [
        (health.consumer, error)
        for (health, _), error in zip(changes, done, strict=True)
        if error is not None
    ]
    for name, error in failed:
        log.error("consumer not changed", exc_info=error, extra={"consumer": name})
    return "".join(f"; not {name}: {describe_error(error)}" for name, error in failed)


def _set_level(value: object) -> str:
    level = str(value).upper()
    if level not in _LEVELS:
        raise NotPossible(f"value should be one of {', '.join(_LEVELS)}; found {value!r}")
    root = logging.getLogger()
    before = logging.getLevelName(root.level)
    root.setLevel(level)
    return f"the log level is {level}; it was {before}"
