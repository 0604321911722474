"""Stores of cursors: where the position in each stream is kept between two runs."""

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
_MAX_SLUG_LENGTH = 80
_MAX_FILE_SIZE = 64 * 1024


@runtime_checkable
class CursorStore(Protocol):
    """A store of one cursor for each stream of each consumer.

    To keep cursors in Redis or in a table, implement the two methods and set the provider `cursors`
    of the container. Both methods may raise any exception and may be slow: they are called again,
    and no event is lost. There is one call at a time for each stream; calls for different streams
    overlap.
    """

    async def load(self, consumer: str, route: str) -> str | None:
        """Return the cursor that was saved last; None if there is none.

        The stream is opened after this returns.
        """

    async def save(self, consumer: str, route: str, cursor: str) -> None:
        """Replace the cursor. It may be empty, if the server sent an empty id."""


class MemoryCursors:
    """A store in memory: after a restart, streams begin where the server begins."""

    def __init__(self) -> None:
        self._cursors: dict[tuple[str, str], str] = {}

    async def load(self, consumer: str, route: str) -> str | None:
        """Return the cursor that was saved in this process."""
        return self._cursors.get((consumer, route))

    async def save(self, consumer: str, route: str, cursor: str) -> None:
        """Keep the cursor."""
        self._cursors[consumer, route] = cursor


class FileCursors:
    """A store with one small file for each cursor, which is replaced atomically.

    If the process is killed at any moment, the file has either the old or the new cursor.

    Args:
        directory: Created if it does not exist.
        fsync: Whether to wait until the cursor is on disk, so that it survives a loss of power.
            Without it, some events are handled again after such a loss.
        set_aside: Whether a corrupt file is renamed and the cursor counts as absent. Otherwise
            loading fails until the file is corrected or deleted.
    """

    def __init__(self, directory: Path, *, fsync: bool = True, set_aside: bool = True) -> None:
        self.directory = directory
        self._fsync = fsync
        self._set_aside = set_aside

    async def load(self, consumer: str, route: str) -> str | None:
        """Read the file.

        Raises:
            OSError: The file exists but cannot be read or renamed.
            ValueError: The file is corrupt, and is not to be renamed.
        """
        path = self.path(consumer, route)
        try:
            return await asyncio.to_thread(_read, path)
        except _Corrupt as error:
            if not self._set_aside:
                raise ValueError(f"{error}; correct or delete it") from None
            moved = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
            await asyncio.to_thread(path.rename, moved)
            log.error(
                "cursor file is corrupt: it was renamed, and the stream begins without a cursor",
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
            OSError: The file cannot be written.
        """
        text = json.dumps({"consumer": consumer, "route": route, "cursor": cursor})
        await asyncio.to_thread(self._save, self.path(consumer, route), text)

    def path(self, consumer: str, route: str) -> Path:
        """Return the path of a stream's file."""
        digest = blake2b(f"{consumer}\0{route}".encode(), digest_size=8).hexdigest()
        slug = _UNSAFE.sub("-", f"{consumer}{route}")[:_MAX_SLUG_LENGTH]
        return self.directory / f"{slug}.{digest}.json"

    def _save(self, path: Path, text: str) -> None:
        # Each process has its own name: two of them may share the directory.
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
            # Not every system error names the file: ENOSPC does not.
            raise OSError(error.errno, error.strerror, str(path)) from error

    def _sync_directory(self) -> None:
        # The new name is on disk only after the directory is.
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class _Corrupt(Exception):
    """The file contains no cursor."""


def _read(path: Path) -> str | None:
    """Return the cursor in a file; None if the file does not exist.

    Raises:
        OSError: The file cannot be read.
        _Corrupt: The file contains no cursor.
    """
    try:
        # Reading a pipe would block, and a large file is not a cursor file.
        if not S_ISREG(path.stat().st_mode):
            raise _Corrupt(f"{path} is not a regular file")
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_SIZE + 1)
    except FileNotFoundError:
        return None
    if len(raw) > _MAX_FILE_SIZE:
        raise _Corrupt(f"{path} has more than {_MAX_FILE_SIZE} bytes")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise _Corrupt(f"{path} does not contain JSON") from None
    cursor = found.get("cursor") if isinstance(found, dict) else None
    if not isinstance(cursor, str):
        raise _Corrupt(f"{path} does not contain a cursor")
    if not is_sendable(cursor):
        raise _Corrupt(f"{path} contains a cursor that a header cannot contain")
    return cursor
