"""A private PostgreSQL server for tests: real, on a free loopback port, and removed afterwards."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ports import free_port

_DEADLINE = 40.0
_ATTEMPTS = 3
_POLL = 0.05
_DEBIAN = Path("/usr/lib/postgresql")
# PostgreSQL refuses to run as root; this user comes with its package.
_USER = "postgres"


def missing() -> str | None:
    """Return what has to be installed, or None."""
    if _directory() is None:
        return "postgres is not installed: apt-get install postgresql, or run make test"
    return None


class PrivatePostgreSQL:
    """A PostgreSQL server with an empty database, which needs no password and syncs no disk.

    Raises:
        RuntimeError: It is not installed, or does not start.
    """

    def __init__(self) -> None:
        directory = _directory()
        if directory is None:
            raise RuntimeError(missing())
        self.port = 0
        self._programs = directory
        self._user = _USER if os.geteuid() == 0 else None
        self._data = tempfile.TemporaryDirectory(prefix="workerkit-postgresql-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its database."""
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{_USER}"

    def __enter__(self) -> Self:
        if self._user is not None:
            shutil.chown(self._data.name, self._user)
        options = (f"--username={_USER}", "--auth=trust", "--encoding=UTF8", "--locale=C")
        self._run("initdb", *options, "--no-sync", self._data.name).wait()
        for _ in range(_ATTEMPTS):
            if self._started():
                return self
        self.close()
        raise RuntimeError("postgres does not start")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server, which closes its connections."""
        self._stop()
        self._data.cleanup()

    def _started(self) -> bool:
        """Start it, unless another process takes the port first."""
        self.port = free_port()
        settings = (
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "shared_buffers=16MB",
        )
        arguments = [argument for each in settings for argument in ("-c", each)]
        self._process = self._run(
            "postgres", "-D", self._data.name, "-p", f"{self.port}", *arguments
        )
        deadline = time.monotonic() + _DEADLINE
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._run("pg_isready", "-h", "127.0.0.1", "-p", f"{self.port}").wait() == 0:
                return True
            time.sleep(_POLL)
        self._stop()
        return False

    def _run(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [self._programs / program, *arguments],
            cwd=self._data.name,
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            self._process = None


def _directory() -> Path | None:
    """Return the directory of the programs: on the path, or of the newest version on Debian."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    versions = sorted(_DEBIAN.glob("*/bin/postgres"), key=lambda each: int(each.parts[-3]))
    return versions[-1].parent if versions else None
