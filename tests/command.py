"""Run the command `workerkit` in a process, on packages that a test has written."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Protocol

from tests import fork_server
from tests.fork_server import Command, Fork
from tests.waiting import eventually

_ROOT = Path(__file__).parents[1]
_LIMIT = 2**24  # Of a line.
_PREFIXES = ("WORKERKIT_", "SHOP_")
# Read when Python or a library starts: a fork would not notice.
_AT_START = ("PYTHON", "LANG", "LC_", "TERM", "FORCE_COLOR", "NO_COLOR", "PY_COLORS")
# As where uvloop is not installed.
_WITHOUT_UVLOOP = "import sys; sys.modules['uvloop'] = None; from workerkit.cli import main; main()"


def write_package(directory: Path, name: str = "app", **modules: str) -> str:
    """Write a package of *modules*: `consumers=...` becomes `app/consumers.py`, and so on.

    Args:
        modules: Their texts, which may be indented; `__init__` is empty unless it is given.

    Returns:
        The name.
    """
    package = directory / name
    package.mkdir(parents=True)
    for module, text in {"__init__": "", **modules}.items():
        (package / f"{module}.py").write_text(dedent(text))
    return name


def workerkit(*arguments: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m workerkit` to its end, in a directory and with variables."""
    if any(name.startswith(_AT_START) for name in variables):
        return subprocess.run(
            [sys.executable, "-m", "workerkit", *arguments],
            cwd=cwd,
            env=environment(variables),
            capture_output=True,
            text=True,
            timeout=90.0,
            check=False,
        )
    return fork_server.run(Command(arguments, cwd, environment(variables)), timeout=90.0)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a process: the present one without settings, and *variables*."""
    inherited = {
        name: text for name, text in os.environ.items() if not name.upper().startswith(_PREFIXES)
    }
    # Not the terminal's width: long lines are to stay whole.
    return {**inherited, "PYTHONPATH": str(_ROOT), "COLUMNS": "200", **variables}


class _Process(Protocol):
    """What `Application` needs of a process, as asyncio has it."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    @property
    def stdout(self) -> asyncio.StreamReader | None: ...

    @property
    def stderr(self) -> asyncio.StreamReader | None: ...

    def send_signal(self, signal: int, /) -> None: ...

    async def wait(self) -> int: ...


class _ForkedProcess:
    """A process of the fork server, with the methods of `asyncio.subprocess.Process`."""

    def __init__(
        self, fork: Fork, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader
    ) -> None:
        self.pid = fork.pid
        self.returncode: int | None = None
        self.stdout, self.stderr = stdout, stderr
        self._fork = fork
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fork.fileno(), self._end)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        """Wait until it has ended; return the exit code."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def _end(self) -> None:
        self._loop.remove_reader(self._fork.fileno())
        self.returncode = self._fork.wait()
        self._fork.close()
        self._ended.set()


class Application:
    """A running process, and what it has written so far.

    Attributes:
        out: Lines of stdout.
        err: Lines of stderr.
    """

    def __init__(self, process: _Process) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self._process = process
        self._readers = [
            asyncio.create_task(_read(stream, lines))
            for stream, lines in ((process.stdout, self.out), (process.stderr, self.err))
        ]

    @property
    def pid(self) -> int:
        """The process, which leads its own group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Return whether it has not ended."""
        return self._process.returncode is None

    def lines(self, start: str) -> Iterator[str]:
        """Return what follows *start* on the lines of stdout that begin with it."""
        for line in self.out:
            if line.startswith(start):
                yield line.removeprefix(start).strip()

    async def says(self, text: str, deadline: float = 60.0) -> str:
        """Wait for a line that contains *text*, on stdout or stderr, and return it."""

        def found() -> str:
            line = next((line for line in [*self.out, *self.err] if text in line), "")
            assert line or self.running, f"ended with {self._process.returncode}: {self!r}"
            return line

        return await eventually(found, deadline, what=f"{text!r} in {self!r}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def send_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children, as Ctrl-C at a terminal does."""
        os.killpg(self.pid, number)

    async def ended(self, deadline: float = 60.0) -> int:
        """Wait until it has ended and its last line is read; return the exit code."""
        try:
            async with asyncio.timeout(deadline):
                code = await self._process.wait()
                await asyncio.gather(*self._readers)
        except TimeoutError:
            raise AssertionError(f"still running after {deadline} s: {self!r}") from None
        return code

    async def reap(self) -> None:
        """Kill the remaining processes of the group, and collect the process."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()
        await asyncio.gather(*self._readers)

    def __repr__(self) -> str:
        return "\n".join(["stdout:", *self.out, "stderr:", *self.err])


@asynccontextmanager
async def process(*command: str, cwd: Path, **variables: str) -> AsyncIterator[Application]:
    """Run *command* inside the block, and kill it at the end."""
    started = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environment(variables),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=_LIMIT,
    )
    async with _reaped(Application(started)) as application:
        yield application


@asynccontextmanager
async def _forked(command: Command) -> AsyncIterator[Application]:
    """Run a command of workerkit inside the block, and kill it at the end."""
    loop = asyncio.get_running_loop()
    pipes = [os.pipe(), os.pipe()]
    files = [os.open(os.devnull, os.O_RDONLY), *(write for _, write in pipes)]
    try:
        fork = await asyncio.to_thread(Fork, command, *files)
    finally:
        for file in files:
            os.close(file)
    readers: list[asyncio.StreamReader] = []
    for read, _ in pipes:
        reader = asyncio.StreamReader(limit=_LIMIT)
        await loop.connect_read_pipe(
            partial(asyncio.StreamReaderProtocol, reader), os.fdopen(read, "rb")
        )
        readers.append(reader)
    async with _reaped(Application(_ForkedProcess(fork, *readers))) as application:
        yield application


@asynccontextmanager
async def _reaped(application: Application) -> AsyncIterator[Application]:
    try:
        yield application
    finally:
        await application.reap()


@asynccontextmanager
async def running(
    package: str, *arguments: str, cwd: Path, uvloop: bool = True, **variables: str
) -> AsyncIterator[Application]:
    """Run `workerkit run` inside the block, with log lines for people and without ops server.

    Args:
        uvloop: Whether uvloop may be found.
        variables: Of the environment, instead of those and beside them.
    """
    given = {"WORKERKIT_LOG__FORMAT": "text", "WORKERKIT_OPS__ENABLED": "false"}
    variables = {**given, **variables}
    async with started("run", package, *arguments, cwd=cwd, uvloop=uvloop, **variables) as run:
        yield run


@asynccontextmanager
async def started(
    *arguments: str, cwd: Path, uvloop: bool = True, **variables: str
) -> AsyncIterator[Application]:
    """Run `python -m workerkit` inside the block, and kill it at the end."""
    if any(name.startswith(_AT_START) for name in variables):
        start = ["-m", "workerkit"] if uvloop else ["-c", _WITHOUT_UVLOOP]
        running = process(sys.executable, *start, *arguments, cwd=cwd, **variables)
    else:
        running = _forked(Command(arguments, cwd, environment(variables), uvloop))
    async with running as application:
        yield application


async def _read(stream: asyncio.StreamReader | None, lines: list[str]) -> None:
    assert stream is not None
    while line := await stream.readline():
        lines.append(line.decode().rstrip("\n"))
