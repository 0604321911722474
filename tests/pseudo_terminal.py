"""Run a command at a pseudo-terminal, as a person does."""

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.command import environment
from tests.fork_server import Command, Fork
from tests.waiting import eventually

_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A terminal with a command that runs at it.

    Attributes:
        output: What it has printed so far, with its escape sequences.
        first_mode: The mode of the terminal before the command.
        last_mode: The mode of the terminal after its end.
    """

    def __init__(self, keyboard: int, fork: Fork) -> None:
        self.output = ""
        self._keyboard = keyboard
        self._fork = fork
        self._code: int | None = None
        self.first_mode = self.last_mode = self.mode
        self._closed = asyncio.Event()
        asyncio.get_running_loop().add_reader(keyboard, self._read)

    @property
    def text(self) -> str:
        """The output without escape sequences, with the line ends of Unix."""
        return self.text_of(self.output)

    @staticmethod
    def text_of(output: str) -> str:
        """Return a part of the output without escape sequences."""
        return _STYLES.sub("", output).replace("\r\n", "\n").replace("\r", "")

    @property
    def lines(self) -> list[str]:
        """The lines of `text`, without the spaces at their ends."""
        return [line.rstrip() for line in self.text.splitlines()]

    @property
    def mode(self) -> list[Any]:
        """Whether it shows what is typed, which keys have a meaning, and so on."""
        return termios.tcgetattr(self._keyboard)

    def resize(self, width: int, height: int) -> None:
        """Change the size of the window, which the command is notified of."""
        fcntl.ioctl(self._keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        os.killpg(self._fork.pid, signal.SIGWINCH)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command."""
        os.kill(self._fork.pid, number)

    def type(self, keys: str) -> None:
        """Type."""
        os.write(self._keyboard, keys.encode())

    async def shows(self, text: str, times: int = 1) -> None:
        """Wait until it has printed *text* so often."""
        await eventually(
            lambda: self.text.count(text) >= times, 60.0, what=f"{text!r} in {self.text!r}"
        )

    async def ended(self) -> int:
        """Wait until the command has ended and all is read; return the exit code."""
        self._code = await asyncio.to_thread(self._fork.wait, 60.0)
        async with asyncio.timeout(60.0):
            await self._closed.wait()
        self.last_mode = self.mode
        return self._code

    async def close(self) -> None:
        """Kill the command if it still runs."""
        if self._code is None:
            os.killpg(self._fork.pid, signal.SIGKILL)
            await asyncio.to_thread(self._fork.wait, 60.0)
        self._fork.close()
        asyncio.get_running_loop().remove_reader(self._keyboard)
        os.close(self._keyboard)

    def _read(self) -> None:
        try:
            read = os.read(self._keyboard, 2**16)
        except OSError:  # Linux reports the end of a terminal's last process as an error.
            read = b""
        self.output += read.decode(errors="replace")
        if not read:
            self._closed.set()
            asyncio.get_running_loop().remove_reader(self._keyboard)


@asynccontextmanager
async def at_terminal(
    *arguments: str, cwd: Path, width: int = 80, keyboard: bool = True, **variables: str
) -> AsyncIterator[Terminal]:
    """Run `workerkit` with *arguments* at a terminal of *width* columns inside the block.

    Args:
        keyboard: Whether its standard input is the terminal.
    """
    master, terminal = pty.openpty()
    input_ = os.dup(terminal) if keyboard else os.open(os.devnull, os.O_RDONLY)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    given = environment({"TERM": "xterm-256color", **variables})
    for name in ("COLUMNS", "LINES", "COLORTERM", "NO_COLOR", "FORCE_COLOR"):
        if name not in variables:
            given.pop(name, None)
    try:
        fork = await asyncio.to_thread(
            Fork, Command(arguments, cwd, given), input_, terminal, terminal
        )
    finally:
        os.close(terminal)
        os.close(input_)
    shown = Terminal(master, fork)
    try:
        yield shown
    finally:
        await shown.close()
