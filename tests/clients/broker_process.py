"""The embedded broker as a process of its own, started with its documented command."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.command import environment


class BrokerProcess:
    """`workerkit broker` on a port that stays the same through `restart`.

    Args:
        directory: For what it writes to stderr.

    Attributes:
        url: Where clients connect to, with user, password and virtual host.
    """

    def __init__(self, directory: Path) -> None:
        self.url = ""
        self._errors = directory / "broker-stderr"
        self._process: subprocess.Popen[str] | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def start(self) -> None:
        """Start it, and wait until it listens."""
        port = str(self.port) if self.url else "0"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workerkit", "broker", "--port", port],
                env=environment({}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, f"the broker did not start: {self._errors.read_text()}"

    def stop(self) -> None:
        """Stop it with SIGTERM; no client may have made it report an error."""
        assert self._process is not None
        self._process.terminate()
        with self._process:
            code = self._process.wait(30.0)
        self._process = None
        assert (code, self._errors.read_text()) == (0, "")

    def restart(self) -> None:
        """Close all connections, and listen on the same port again, without any queue."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """End it whatever it does, if it still runs."""
        if self._process is not None:
            self._process.kill()
            with self._process:
                self._process.wait()
            self._process = None


@contextmanager
def broker_process(directory: Path) -> Iterator[BrokerProcess]:
    """Run a broker inside the block."""
    broker = BrokerProcess(directory)
    try:
        broker.start()
        yield broker
        broker.stop()
    finally:
        broker.kill()
