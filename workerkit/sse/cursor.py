"""Where the cursors of streams are kept between two runs."""

import asyncio
import json
import os
import re
import socket
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, runtime_checkable

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_SLUG = 80


@runtime_checkable
class CursorStore(Protocol):
    """Keeps one cursor for each stream of each consumer.

    Give the container one of your own as `cursors`: on Redis, in a table. Both methods may raise
    anything and take their time: they are called again, one at a time for each stream, and neither
    the stream nor an event is lost. Calls of different streams overlap.
    """

    async def load(self, consumer: str, route: str) -> str | None:
        """The cursor that was saved last; None if none ever was.

        Nothing is read from the stream before this returns.
        """

    async def save(self, consumer: str, route: str, cursor: str) -> None:
        """Replace the cursor. A cursor may be empty: then the server took its ids back."""


class MemoryCursors:
    """Forgets all cursors with the process. Streams begin where the server lets them begin."""

    def __init__(self) -> None:
        self._cursors: dict[tuple[str, str], str] = {}

    async def load(self, consumer: str, route: str) -> str | None:
        """The cursor of this process."""
        return self._cursors.get((consumer, route))

    async def save(self, consumer: str, route: str, cursor: str) -> None:
        """Remember it."""
        self._cursors[consumer, route] = cursor


class FileCursors:
    """Keeps each cursor in a small file of its own, which is replaced as a whole.

    A file is always either the old one or the new one, whenever the process is killed.

    Args:
        directory: Made if it is not there.
        fsync: Whether to wait until the disk has the cursor, and so outlive a loss of power as
            well. Without it, such a loss costs events that are handled a second time.
    """

    def __init__(self, directory: Path, *, fsync: bool = True) -> None:
        self.directory = directory
        self._fsync = fsync

    async def load(self, consumer: str, route: str) -> str | None:
        """Read the file.

        Raises:
            OSError: It is there and cannot be read.
            ValueError: It holds no cursor: something else has written it.
        """
        return await asyncio.to_thread(self._load, self.path(consumer, route))

    async def save(self, consumer: str, route: str, cursor: str) -> None:
        """Replace the file.

        Raises:
            OSError: The directory cannot be written.
        """
        text = json.dumps({"consumer": consumer, "route": route, "cursor": cursor})
        await asyncio.to_thread(self._save, self.path(consumer, route), text)

    def path(self, consumer: str, route: str) -> Path:
        """The file of a stream."""
        digest = blake2b(f"{consumer}\0{route}".encode(), digest_size=8).hexdigest()
        slug = _UNSAFE.sub("-", f"{consumer}{route}")[:_LONGEST_SLUG]
        return self.directory / f"{slug}.{digest}.json"

    def _load(self, path: Path) -> str | None:
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        if not (isinstance(found, dict) and isinstance(found.get("cursor"), str)):
            raise ValueError(f"{path}: has no cursor")
        cursor: str = found["cursor"]
        return cursor

    def _save(self, path: Path, text: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        # Named by the process: two that share a directory must not write into the same file.
        fresh = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
        with fresh.open("w") as file:
            file.write(text)
            file.flush()
            if self._fsync:
                os.fsync(file.fileno())
        fresh.replace(path)
        if self._fsync:
            self._sync_directory()

    def _sync_directory(self) -> None:
        # The new name is safe only with the directory that holds it.
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
