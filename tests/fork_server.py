"""Run commands in processes that need no start: forks of one that has imported workerkit.

A start of `python -m workerkit` takes a second of CPU time, nearly all of it for imports, and
the tests start some hundreds. What a test finds is a process of its own all the same: with its
arguments, directory, environment, output and exit code, and with an ordinary end.

The server ends with the process that started it.
"""

import atexit
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

_PART = 2**16


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run.

    Attributes:
        arguments: Of `workerkit`.
        cwd: The directory to run it in.
        env: Its whole environment.
        uvloop: Whether uvloop may be found.
    """

    arguments: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    uvloop: bool = True


class Fork:
    """A process that runs a command, as the leader of a group.

    Args:
        stdin: File descriptors, which are the caller's to close.

    Attributes:
        pid: Its number.
    """

    def __init__(self, command: Command, stdin: int, stdout: int, stderr: int) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_server())
        request = {**asdict(command), "cwd": str(command.cwd)}
        socket.send_fds(self._connection, [b"."], [stdin, stdout, stderr])
        self._connection.sendall(json.dumps(request).encode())
        self._connection.shutdown(socket.SHUT_WR)
        self._replies = self._connection.makefile()
        self.pid = int(self._replies.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; return the exit code, as `subprocess.Popen.wait` does.

        Raises:
            TimeoutError: It has not ended in time.
        """
        self._connection.settimeout(timeout)
        return int(self._replies.readline())

    def fileno(self) -> int:
        """Return what becomes readable when the process has ended, so that `wait` does not."""
        return self._connection.fileno()

    def close(self) -> None:
        """Close the connection to the server; the process goes on."""
        self._replies.close()
        self._connection.close()


def run(command: Command, timeout: float) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, as `subprocess.run` would.

    Raises:
        subprocess.TimeoutExpired: It did not end in time, and was killed.
    """
    with (
        Path(os.devnull).open() as nothing,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        fork = Fork(command, nothing.fileno(), out.fileno(), err.fileno())
        try:
            code = fork.wait(timeout)
        except TimeoutError:
            os.killpg(fork.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(command.arguments, timeout) from None
        finally:
            fork.close()
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(command.arguments, code, out.read(), err.read())


@cache
def _server() -> str:
    """Start the server of this process; return the path of its socket."""
    directory = tempfile.TemporaryDirectory()
    path = str(Path(directory.name) / "socket")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fork_server", path],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(_end, process, directory)
    assert process.stdout is not None
    assert process.stdout.readline() == b"listening\n"
    return path


def _end(process: "subprocess.Popen[bytes]", directory: "tempfile.TemporaryDirectory[str]") -> None:
    with process:
        process.kill()
    directory.cleanup()


def _serve(path: str) -> dict[str, Any]:
    """Fork for each request until stdin ends; return the request in the fork."""
    # A test that has run a Runner in its own process leaves it ignored, which children inherit.
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    importlib.import_module("workerkit.cli.commands")
    assert "uvloop" not in sys.modules, "a command must be able to do without"
    gc.freeze()  # So that no fork copies all objects, as a collection would otherwise make it do.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("listening", flush=True)
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in readable:
                sys.exit()
            connection, _ = listener.accept()
            if not os.fork():
                break
            connection.close()
            _collect()
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        request: dict[str, Any] = json.loads(_all(connection))
        if pid := os.fork():
            for file in files:
                os.close(file)
            _wait(pid, connection)
        connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return request


def _collect() -> None:
    """Collect the processes that have waited for a command, and with them their times."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _all(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(_PART):
        data += part
    return data


def _wait(pid: int, connection: socket.socket) -> NoReturn:
    """Report the process and its exit code."""
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: Mapping[str, Any]) -> None:
    """Turn this process into what `python -m workerkit` is at its beginning."""
    os.setsid()
    if os.isatty(0):
        # Its Ctrl-C is a signal then, as at a person's terminal.
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    if not request["uvloop"]:
        sys.modules["uvloop"] = None  # type: ignore[assignment]
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["arguments"]
    importlib.invalidate_caches()


if __name__ == "__main__":
    _become(_serve(sys.argv[1]))
    runpy.run_module("workerkit", run_name="__main__", alter_sys=True)
