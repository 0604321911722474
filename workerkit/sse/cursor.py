"""Where the cursors of streams are kept between two runs."""

import asyncio
import json
import logging
import os
import re
import socket
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from stat import S_ISREG
from typing import Protocol, runtime_checkable

from workerkit.sse.parser import is_sendable

log = logging.getLogger(__name__)

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_SLUG = 80
_LARGEST_FILE = 64 * 1024


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
        set_aside: Whether a file that holds no cursor is renamed, and counts as absent. Otherwise
            loading it fails until somebody has mended it.
    """

    def __init__(self, directory: Path, *, fsync: bool = True, set_aside: bool = True) -> None:
        self.directory = directory
        self._fsync = fsync
        self._set_aside = set_aside

    async def load(self, consumer: str, route: str) -> str | None:
        """Read the file.

        Raises:
            OSError: It is there and cannot be read, or not be set aside.
            ValueError: It holds no cursor, and is not set aside.
        """
        path = self.path(consumer, route)
        try:
            return await asyncio.to_thread(_read, path)
        except _Corrupt as error:
            if not self._set_aside:
                raise ValueError(f"{error}; delete it, or mend it") from None
            moved = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
            await asyncio.to_thread(path.rename, moved)
            log.error(
                "cursor file is corrupt: it is set aside, and the stream begins without a cursor",
                extra={
                    "consumer": consumer,
                    "route": route,
                    "file": str(path),
                    "set_aside": str(moved),
                    "error": str(error),
                },
            )
            return None

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

    def _save(self, path: Path, text: str) -> None:
        # Named by the process: two that share a directory must not write into the same file.
        fresh = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with fresh.open("w") as file:
                file.write(text)
                file.flush()
                if self._fsync:
                    os.fsync(file.fileno())
            fresh.replace(path)
            if self._fsync:
                self._sync_directory()
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            # Not every error of the system names a file: a full disk does not.
            raise OSError(error.errno, error.strerror, str(path)) from error

    def _sync_directory(self) -> None:
        # The new name is safe only with the directory that holds it.
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class _Corrupt(Exception):
    """A file holds no cursor."""


def _read(path: Path) -> str | None:
    """Read the cursor from a file; None where there is none.

    Raises:
        OSError: It cannot be read.
        _Corrupt: It holds something else.
    """
    try:
        # What is no file might keep us waiting, and what is not small is not ours.
        if not S_ISREG(path.stat().st_mode):
            raise _Corrupt(f"{path} is no file")
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        return None
    if len(raw) > _LARGEST_FILE:
        raise _Corrupt(f"{path} has more than {_LARGEST_FILE} bytes")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise _Corrupt(f"{path} has no JSON in it") from None
    cursor = found.get("cursor") if isinstance(found, dict) else None
    if not isinstance(cursor, str):
        raise _Corrupt(f"{path} has no cursor in it")
    if not is_sendable(cursor):
        raise _Corrupt(f"{path} has a cursor in it that no header can have")
    return cursor
