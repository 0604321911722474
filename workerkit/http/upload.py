"""Files that clients upload: in memory while they are small, then in a temporary file."""

import asyncio
import io
import os
import re
import tempfile
import threading
import unicodedata
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

T = TypeVar("T")

IN_MEMORY = 256 * 1024
"""Bytes of all files of a request that are kept in memory; a temporary file holds more."""

BINARY = "application/octet-stream"
_CHUNK = 64 * 1024
_LONGEST_NAME = 255
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}")


class Spool:
    """The contents of all files of a request, one after the other.

    A temporary file has no name, so the system removes it even if the process is killed.

    Attributes:
        size: Bytes written so far.
        is_on_disk: Whether reading may wait for the disk.
    """

    def __init__(self, content: bytes = b"") -> None:
        self.size = len(content)
        self._buffer = bytearray(content)
        self._file: Any = None
        self._is_closed = False
        # Threads of a cancelled call may still read or write; a descriptor is closed only once
        # none uses it, because its number is used again.
        self._lock = threading.Lock()

    @property
    def is_on_disk(self) -> bool:
        """Whether reading may wait for the disk."""
        return self._file is not None

    async def write(self, data: bytes) -> None:
        """Append *data*.

        Raises:
            OSError: The disk is full, or the process has no file descriptor left.
        """
        self._buffer += data
        self.size += len(data)
        if len(self._buffer) > IN_MEMORY:
            await asyncio.to_thread(self._flush)

    async def finish(self) -> None:
        """Write what a temporary file does not have yet. Nothing is appended after it."""
        if self._file is not None:
            await asyncio.to_thread(self._flush)

    def read(self, offset: int, size: int) -> bytes:
        """Return at most *size* bytes from *offset* on, from any thread.

        Raises:
            ValueError: The call that the files belong to has ended.
        """
        with self._lock:
            if self._is_closed:
                raise ValueError("the file is removed: the request that it came with has ended")
            if self._file is None:
                return bytes(self._buffer[offset : offset + size])
            return os.pread(self._file.fileno(), size, offset)

    def close(self) -> None:
        """Remove the files."""
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()
            self._buffer = bytearray()

    def _flush(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - see `close`
            data = memoryview(bytes(self._buffer))
            while data:
                data = data[self._file.write(data) :]
            self._buffer = bytearray()


class _Region(io.RawIOBase):
    """A part of a spool as a file."""

    def __init__(self, spool: Spool, start: int, size: int) -> None:
        self._spool = spool
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._position))
        data = self._spool.read(self._start + self._position, wanted)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class UploadFile:
    """A file of a form. It exists until the call of the view ends.

    Tests create one from its content: `UploadFile(b"...", "photo.png", "image/png")`.

    Attributes:
        filename: The name that the client sent, without directories and control characters; empty
            if there is none. It is a text for people: two files may have the same.
        content_type: That the client sent, such as `image/png`; it may be wrong.
        size: In bytes.
        file: The content as a binary file, for libraries that read one. Its methods may wait for
            the disk: call them in a method that is not `async`, or in a thread.
    """

    def __init__(
        self, content: bytes = b"", filename: str = "", content_type: str = BINARY
    ) -> None:
        self._set(Spool(content), 0, len(content), filename, content_type)

    @classmethod
    def of(cls, spool: Spool, start: int, filename: str, content_type: str) -> "UploadFile":
        """Return the file that a spool has from *start* on."""
        found = cls.__new__(cls)
        found._set(spool, start, spool.size - start, filename, content_type)
        return found

    def _set(self, spool: Spool, start: int, size: int, filename: str, content_type: str) -> None:
        self._spool = spool
        self._start = start
        self.size = size
        self.filename = filename
        self.content_type = content_type
        self.file: BinaryIO = self._opened()

    async def read(self, size: int = -1) -> bytes:
        """Return the next *size* bytes; all that is left by default, so its size should be bounded.

        Raises:
            ValueError: The call of the view has ended.
        """
        return await self._in_thread(self.file.read, size)

    async def chunks(self, size: int = _CHUNK) -> AsyncIterator[bytes]:
        """Yield what is left in chunks of *size* bytes; the last one may be shorter.

        Raises:
            ValueError: The call of the view has ended.
        """
        while chunk := await self.read(size):
            yield chunk

    async def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole content to *path*, and replace a file of that name.

        Never build a path from `filename` alone: its client chose it.

        Raises:
            OSError: It cannot be written; then there is a part of it, or nothing.
            ValueError: The call of the view has ended.
        """
        await asyncio.to_thread(self._copy, Path(path))

    def _copy(self, path: Path) -> None:
        with path.open("wb") as target, self._opened() as source:
            while chunk := source.read(IN_MEMORY):
                target.write(chunk)

    def _opened(self) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_Region(self._spool, self._start, self.size)))

    async def _in_thread(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.to_thread(call, *args) if self._spool.is_on_disk else call(*args)

    def __repr__(self) -> str:
        return f"<UploadFile {self.filename!r} {self.content_type} {self.size} bytes>"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept a file, and describe it for OpenAPI."""
        return core_schema.no_info_plain_validator_function(_checked)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return a binary text: tools know the older or the newer way to describe it."""
        return {"type": "string", "format": "binary", "contentMediaType": BINARY}


def _checked(found: object) -> UploadFile:
    if not isinstance(found, UploadFile):
        raise PydanticCustomError("file", "Input should be a file")
    return found


def safe_filename(given: str) -> str:
    """Return a client's name of a file without directories, control and invisible characters."""
    name = re.split(r"[/\\]", given)[-1]
    # Categories C: control, format (such as those that reverse the text), surrogates, unassigned.
    name = "".join(each for each in name if unicodedata.category(each)[0] != "C")
    return unicodedata.normalize("NFC", name).strip(" .")[:_LONGEST_NAME]


def media_type(header: str) -> str:
    """Return a content type without its parameters; that of any bytes if it is malformed."""
    found = header.partition(";")[0].strip().lower()
    return found if _MEDIA_TYPE.fullmatch(found) else BINARY
