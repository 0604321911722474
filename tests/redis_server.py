"""A private Redis server for tests: real, on a free loopback port, and removed afterwards."""

import shutil
import socket
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Self

from tests.ports import free_port

_DEADLINE = 20.0
_ATTEMPTS = 3
_POLL = 0.01


def missing() -> str | None:
    """Return what has to be installed, or None."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed: apt-get install redis-server, or run make test"
    return None


class PrivateRedis:
    """A Redis server with a separate directory; it stores nothing on disk.

    Raises:
        RuntimeError: It is not installed, or does not start.
    """

    def __init__(self) -> None:
        if reason := missing():
            raise RuntimeError(reason)
        self.port = 0
        self._directory = tempfile.TemporaryDirectory(prefix="workerkit-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address."""
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        for _ in range(_ATTEMPTS):
            if self._started():
                return self
        self.close()
        raise RuntimeError("redis-server does not start")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server."""
        self._stop()
        self._directory.cleanup()

    def _started(self) -> bool:
        """Start it, unless another process takes the port first."""
        self.port = free_port()
        command = [
            *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", self._directory.name),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _DEADLINE
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(_POLL)
        self._stop()
        return False

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as client:
                client.sendall(b"PING\r\n")
                return client.recv(7) == b"+PONG\r\n"
        except OSError:
            return False

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
