"""A server for tests: on a free loopback port, with a directory of its own, removed afterwards."""

import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self

from tests.ports import free_port

_ATTEMPTS = 3


class PrivateServer(ABC):
    """A server that runs inside a `with` block.

    Attributes:
        name: Of its program.
        deadline: Seconds for one start.
        poll: Seconds between two questions whether it has started.
        stop_signal: What stops it.

    Raises:
        RuntimeError: It does not start.
    """

    name: ClassVar[str]
    deadline: ClassVar[float]
    poll: ClassVar[float]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        self.port = 0
        self._directory = tempfile.TemporaryDirectory(prefix=f"workerkit-{self.name}-")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for _ in range(_ATTEMPTS):
            if self._started():
                return self
        self.close()
        raise RuntimeError(f"{self.name} does not start")

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

    @abstractmethod
    def _start(self) -> "subprocess.Popen[bytes]":
        """Start the program on `port`."""

    @abstractmethod
    def _answers(self) -> bool:
        """Return whether it accepts connections."""

    def _started(self) -> bool:
        """Start it, unless another process takes the port first."""
        self.port = free_port()
        self._process = self._start()
        deadline = time.monotonic() + self.deadline
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(self.poll)
        self._stop()
        return False

    def _stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(self.stop_signal)
            self._process.wait()
            self._process = None
