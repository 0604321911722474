"""Read a form from the body of a request: piece by piece, and within limits.

`request.post()` of aiohttp writes each file to a file of its own in the event loop, and limits
neither the number of files nor what precedes the first part.
"""

from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from aiohttp import BodyPartReader, MultipartReader, hdrs, web

from workerkit.errors import InvalidRequest
from workerkit.http.connection import ClientConnection
from workerkit.http.form import FORM, MULTIPART, RequestForm
from workerkit.http.upload import Spool, UploadFile, media_type, safe_filename
from workerkit.safe_text import excerpt

MAX_PARTS = 1_000
MAX_FILES = 100
MAX_TEXT = 1024 * 1024
"""Bytes of all text fields of a form together: unlike files, they are kept in memory."""

_MAX_HEADERS = 16
_MAX_LINES = 2 * _MAX_HEADERS
_MAX_HEADER_LINE = 8 * 1024
_CHUNK = 64 * 1024
_STEP = 1024 * 1024
_LONGEST_NAME = 100
_PLAIN = ("", "binary", "8bit", "7bit")
_MALFORMED = "the form is malformed or truncated"
SPOOL: "web.RequestKey[Spool]" = web.RequestKey("spool", Spool)
"""Where a request keeps the contents of its files."""


async def read_form(
    connection: ClientConnection, request: web.Request, form: RequestForm, limit: int
) -> None:
    """Read the form of a request, and store it and its files in the request.

    Args:
        limit: Bytes of the body.

    Raises:
        InvalidRequest: The body is malformed, too large, too slow, or not a form.
    """
    if not request.body_exists:
        if form.required:
            raise InvalidRequest(400, "the body is missing")
        return
    if (kind := request.content_type) not in form.content_types:
        raise InvalidRequest(415, f"the body has to be {' or '.join(form.content_types)}")
    content = _LimitedContent(connection, request, limit)
    try:
        async with connection.body_timeout:
            if kind == MULTIPART:
                request[SPOOL] = spool = Spool()
                request[FORM] = await _Multipart(request, content, form, spool).read()
            else:
                request[FORM] = await _urlencoded(content)
    except TimeoutError as error:
        raise InvalidRequest(408, "the body did not arrive in time") from error
    except (InvalidRequest, OSError):
        # An OSError is one of the disk: the client has left if it is one of the connection.
        raise
    except Exception:
        # Whatever the parser of aiohttp raises. Not chained: its text contains parts of the body.
        raise InvalidRequest(400, _MALFORMED) from None


class _LimitedContent:
    """The body of a request as `MultipartReader` reads it, with limits for its size and its time.

    Each MiB may take as long as the whole body of another request. The parser of aiohttp reads any
    number of lines before the first part, which takes 10 µs for each.

    Attributes:
        lines: The number of lines that are read for the next part; `read` does not count.
    """

    def __init__(self, connection: ClientConnection, request: web.Request, limit: int) -> None:
        self._connection = connection
        self._content = request.content
        self._limit = limit
        self._read = 0
        self._due = _STEP
        self.lines = 0

    async def read(self, size: int = -1) -> bytes:
        return await self._limited(self._content.read, size)

    async def readline(self, **options: Any) -> bytes:
        self.lines += 1
        if self.lines > _MAX_LINES:
            raise InvalidRequest(400, _MALFORMED)
        return await self._limited(self._content.readline, **options)

    def at_eof(self) -> bool:
        return self._content.at_eof()

    def unread_data(self, data: bytes) -> None:
        self._read -= len(data)
        self._content.unread_data(data)

    async def _limited(self, read: Callable[..., Any], *arguments: Any, **options: Any) -> bytes:
        try:
            found: bytes = await read(*arguments, **options)
        except ConnectionError as error:
            raise InvalidRequest(400, _MALFORMED) from error
        self._read += len(found)
        if self._read > self._limit:
            raise InvalidRequest(413, f"the body is larger than {self._limit} bytes")
        if self._read > self._due:
            self._due += _STEP
            self._connection.body_timeout.restart()
        return found


async def _urlencoded(content: _LimitedContent) -> dict[str, list[str | UploadFile]]:
    raw = bytearray()
    while chunk := await content.read(_CHUNK):
        raw += chunk
        if len(raw) > MAX_TEXT:
            raise InvalidRequest(413, f"the form is larger than {MAX_TEXT} bytes")
    if raw.count(b"&") >= MAX_PARTS:
        raise InvalidRequest(413, f"the form has more than {MAX_PARTS:,} fields")
    fields = parse_qsl(raw.decode(), keep_blank_values=True, errors="strict")
    found: dict[str, list[str | UploadFile]] = {}
    for name, value in fields:
        found.setdefault(name, []).append(value)
    return found


class _Multipart:
    """The parts of one form.

    Args:
        spool: Gets the contents of its files.
    """

    def __init__(
        self, request: web.Request, content: _LimitedContent, form: RequestForm, spool: Spool
    ) -> None:
        body: Any = content
        self._reader = MultipartReader(
            request.headers, body, max_field_size=_MAX_HEADER_LINE, max_headers=_MAX_HEADERS
        )
        self._content = content
        self._form = form
        self._spool = spool
        self._found: dict[str, list[str | UploadFile]] = {}
        self._files = self._text = 0

    async def read(self) -> dict[str, list[str | UploadFile]]:
        """Return the values by the names of the fields.

        Raises:
            InvalidRequest: The form exceeds a limit, or has a part that cannot be read.
            Exception: It is malformed.
        """
        count = 0
        while (part := await self._reader.next()) is not None:
            count += 1
            self._content.lines = 0
            if count > MAX_PARTS:
                raise InvalidRequest(413, f"the form has more than {MAX_PARTS:,} fields")
            if not isinstance(part, BodyPartReader) or part.name is None:
                raise InvalidRequest(400, "a part of the form has no name, or parts of its own")
            if part.headers.get(hdrs.CONTENT_TRANSFER_ENCODING, "").lower() not in _PLAIN:
                _refuse(415, part.name, "should not have a Content-Transfer-Encoding")
            if part.name in self._form.files:
                await self._read_file(part, part.name)
            else:
                await self._read_text(part, part.name)
        await self._spool.finish()
        return self._found

    async def _read_file(self, part: BodyPartReader, name: str) -> None:
        self._files += 1
        if self._files > MAX_FILES:
            _refuse(413, name, f"the form has more than {MAX_FILES} files")
        start = self._spool.size
        while not part.at_eof():
            await self._spool.write(await part.read_chunk(_CHUNK))
        filename = safe_filename(part.filename or "")
        if not part.filename and self._spool.size == start:
            return  # Browsers send this where the user has chosen no file.
        kind = media_type(part.headers.get(hdrs.CONTENT_TYPE, ""))
        file = UploadFile.of(self._spool, start, filename, kind)
        self._found.setdefault(name, []).append(file)

    async def _read_text(self, part: BodyPartReader, name: str) -> None:
        if part.filename and name in self._form.names:
            _refuse(422, name, "Input should be a text, not a file")
        raw = bytearray()
        while not part.at_eof():
            chunk = await part.read_chunk(_CHUNK)
            if part.filename:
                continue  # A file that the view does not take.
            raw += chunk
            self._text += len(chunk)
            if self._text > MAX_TEXT:
                _refuse(413, name, f"the texts of the form are larger than {MAX_TEXT} bytes")
        if part.filename:
            return
        try:
            self._found.setdefault(name, []).append(raw.decode())
        except UnicodeDecodeError:
            _refuse(422, name, "Input should be UTF-8 text")


def _refuse(status: int, name: str, text: str) -> NoReturn:
    """Refuse a form because of one of its fields."""
    part = {"in": "body", "name": excerpt(name, _LONGEST_NAME), "detail": text}
    # Not chained: the exception of a decoder contains the value.
    raise InvalidRequest(status, f"field {part['name']}: {text}", [part]) from None
