"""aiohttp's request, with a memory of what could not be read, and a check of what is sent."""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.compression_utils import HAS_BROTLI, HAS_ZSTD
from multidict import MultiDictProxy

SUPPORTED = ("gzip", "deflate", *["br"] * HAS_BROTLI, *["zstd"] * HAS_ZSTD)
ACCEPTED: Mapping[str, str] = {hdrs.ACCEPT_ENCODING: ", ".join(SUPPORTED)}
"""The header of an answer to a body with another coding."""

UNSUPPORTED = f"the body has a Content-Encoding other than {', '.join(SUPPORTED)}"


def is_supported(coding: str) -> bool:
    """Whether a body with this `Content-Encoding` is decoded."""
    name = coding.strip().lower()
    return name in SUPPORTED or name in ("", "identity")


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Of a client that has left, or of a limit: these have answers of their own.
_NO_FAULTS_OF_THE_BODY = (web.HTTPException, ConnectionError, TimeoutError)


class UnsendableHeader(ValueError):
    """A header of an answer contains what no header may contain.

    Attributes:
        header: Its name, or `reason` for the text after the status.
    """

    def __init__(self, header: str) -> None:
        super().__init__(
            f"header {header!r} of the answer cannot be sent: write text without control characters"
        )
        self.header = header


class RawRequest(web.Request):
    """The request that views and middlewares get.

    What is raised when its body is read as a form, as JSON or as text, is the same as in aiohttp.
    If a view lets it pass, the client is told that the body is wrong.
    """

    async def text(self) -> str:
        """Read the body as text."""
        with self._noting():
            return await super().text()

    async def json(self, **options: Any) -> Any:
        """Read the body as JSON."""
        with self._noting():
            return await super().json(**options)

    async def post(self) -> "MultiDictProxy[Any]":
        """Read the body as a form."""
        with self._noting():
            return await super().post()

    async def multipart(self) -> MultipartReader:
        """Read the parts of a body one by one."""
        with self._noting():
            reader: Any = await super().multipart()
        advance = reader.next

        async def next_part(*arguments: Any, **options: Any) -> Any:
            part: Any = await self._noted(advance)(*arguments, **options)
            if isinstance(part, BodyPartReader):
                for name in ("read_chunk", "readline"):
                    setattr(part, name, self._noted(getattr(part, name)))
            return part

        reader.next = next_part
        found: MultipartReader = reader
        return found

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Check what aiohttp is about to send, streams of views included.

        Raises:
            UnsendableHeader: It cannot be sent.
        """
        await super()._prepare_hook(response)
        with_one_content_type(response)
        if (header := unsendable(response)) is not None:
            # Another answer is going to take the same writer.
            writer: Any = self.writer
            writer.chunked, writer.length = False, None
            raise UnsendableHeader(header)
        if isinstance(response, web.WebSocketResponse):
            connection: Any = self.protocol
            connection.upgraded(response)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except _NO_FAULTS_OF_THE_BODY:
            raise
        except Exception as error:
            connection: Any = self.protocol
            connection.unreadable = error
            raise

    def _noted(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def noted(*arguments: Any, **options: Any) -> Any:
            with self._noting():
                return await method(*arguments, **options)

        return noted


def request_factory(application: web.Application) -> Callable[..., RawRequest]:
    """What creates the requests of an application."""
    make: Any = application._make_request
    return partial(make, _cls=RawRequest)


def is_fault_of_body(error: BaseException, request: web.BaseRequest) -> bool:
    """Whether an exception says that the body of the request cannot be read."""
    if isinstance(error, web.RequestPayloadError):
        return True
    return getattr(request.protocol, "unreadable", None) is error


def with_one_content_type(response: web.StreamResponse) -> None:
    """Keep the first header of this name, as `response.content_type` does."""
    kinds = response.headers.getall(hdrs.CONTENT_TYPE, [])
    if len(kinds) > 1:
        response.headers[hdrs.CONTENT_TYPE] = kinds[0]


def unsendable(response: web.StreamResponse) -> str | None:
    """The name of the first header that cannot be sent; None where all of them can."""
    if not _is_sound(response.reason or ""):
        return "reason"
    for name, value in response.headers.items():
        if not _TOKEN.fullmatch(name) or not _is_sound(value):
            return name
    return None


def _is_sound(text: object) -> bool:
    return isinstance(text, str) and _CONTROL.search(text) is None
