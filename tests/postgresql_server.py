"""A private PostgreSQL server for tests: real, on a free loopback port, and removed afterwards."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Self

from tests.private_server import PrivateServer

_DEBIAN = Path("/usr/lib/postgresql")
# PostgreSQL refuses to run as root; this user comes with its package.
_USER = "postgres"


def missing() -> str | None:
    """Return what has to be installed, or None."""
    if _programs() is None:
        return "postgres is not installed: apt-get install postgresql, or run make test"
    return None


class PrivatePostgreSQL(PrivateServer):
    """A PostgreSQL server with an empty database, which needs no password and syncs no disk.

    Raises:
        RuntimeError: It is not installed, or does not start.
    """

    name = "postgres"
    deadline = 40.0
    poll = 0.05
    stop_signal = signal.SIGINT  # It closes its connections.

    def __init__(self) -> None:
        programs = _programs()
        if programs is None:
            raise RuntimeError(missing())
        super().__init__()
        self._programs = programs
        self._user = _USER if os.geteuid() == 0 else None

    def __enter__(self) -> Self:
        if self._user is not None:
            shutil.chown(self._directory.name, self._user)
        options = (f"--username={_USER}", "--auth=trust", "--encoding=UTF8", "--locale=C")
        self._run("initdb", *options, "--no-sync", self._directory.name).wait()
        return super().__enter__()

    @property
    def url(self) -> str:
        """The address of its database."""
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{_USER}"

    def _start(self) -> "subprocess.Popen[bytes]":
        settings = (
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "shared_buffers=16MB",
        )
        arguments = [argument for each in settings for argument in ("-c", each)]
        return self._run("postgres", "-D", self._directory.name, "-p", f"{self.port}", *arguments)

    def _answers(self) -> bool:
        return self._run("pg_isready", "-h", "127.0.0.1", "-p", f"{self.port}").wait() == 0

    def _run(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [self._programs / program, *arguments],
            cwd=self._directory.name,
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _programs() -> Path | None:
    """Return the directory of the programs: on the path, or of the newest version on Debian."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    versions = sorted(_DEBIAN.glob("*/bin/postgres"), key=lambda each: int(each.parts[-3]))
    return versions[-1].parent if versions else None
