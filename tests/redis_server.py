"""A private Redis server for tests: real, on a free loopback port, and removed afterwards."""

import shutil
import socket
import subprocess

from tests.private_server import PrivateServer


def missing() -> str | None:
    """Return what has to be installed, or None."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed: apt-get install redis-server, or run make test"
    return None


class PrivateRedis(PrivateServer):
    """A Redis server with a separate directory; it stores nothing on disk.

    Raises:
        RuntimeError: It is not installed, or does not start.
    """

    name = "redis-server"
    deadline = 20.0
    poll = 0.01

    def __init__(self) -> None:
        if reason := missing():
            raise RuntimeError(reason)
        super().__init__()

    @property
    def url(self) -> str:
        """The address."""
        return f"redis://127.0.0.1:{self.port}"

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [
            *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", self._directory.name),
        ]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as client:
                client.sendall(b"PING\r\n")
                return client.recv(7) == b"+PONG\r\n"
        except OSError:
            return False
