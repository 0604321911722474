"""Run a command at a pseudo-terminal, as a person does."""

import asyncio
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.command import environment
from tests.waiting import eventually

# The terminal controls the process, so that Ctrl-C is a signal.
_CONTROLLED = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from workerkit.cli import main
main()
"""
_STYLES = re.compile(r"\x1b\[[0-9;]*m")
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A terminal with a command that runs at it.

    Attributes:
        output: What it has printed so far, with its escape sequences.
    """

    def __init__(self, keyboard: int, process: asyncio.subprocess.Process) -> None:
        self.output = ""
        self._keyboard = keyboard
        self._process = process
        self._closed = asyncio.Event()
        asyncio.get_running_loop().add_reader(keyboard, self._read)

    @property
    def text(self) -> str:
        """The output without colours, with the line ends of Unix."""
        return _STYLES.sub("", self.output).replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """The lines of `text`, without the spaces at their ends."""
        return [line.rstrip() for line in self.text.splitlines()]

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
        async with asyncio.timeout(60.0):
            code = await self._process.wait()
            await self._closed.wait()
        return code

    async def close(self) -> None:
        """Kill the command if it still runs."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
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
    *arguments: str, cwd: Path, width: int = 80, **variables: str
) -> AsyncIterator[Terminal]:
    """Run `workerkit` with *arguments* at a terminal of *width* columns inside the block."""
    keyboard, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    given = environment({"TERM": "xterm-256color", **variables})
    for name in ("COLUMNS", "LINES", "COLORTERM", "NO_COLOR", "FORCE_COLOR"):
        if name not in variables:
            given.pop(name, None)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CONTROLLED,
        *arguments,
        cwd=cwd,
        env=given,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = Terminal(keyboard, process)
    try:
        yield shown
    finally:
        await shown.close()
