"""aiohttp's request, which also records errors of its body and checks the headers of responses."""

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
"""The header of the response to a body with an unknown coding."""

UNSUPPORTED = f"the body has a Content-Encoding other than {', '.join(SUPPORTED)}"


def is_supported(coding: str) -> bool:
    """Return whether a body with this `Content-Encoding` can be decoded."""
    name = coding.strip().lower()
    return name in SUPPORTED or name in ("", "identity")


_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# A client that has left, or a limit: these have responses of their own.
_NOT_BODY_ERRORS = (web.HTTPException, ConnectionError, TimeoutError)


class UnsendableHeader(ValueError):
    """A header of a response has an invalid name or value.

    Attributes:
        header: Its name, or `reason` for the text after the status.
    """

    def __init__(self, header: str) -> None:
        super().__init__(
            f"header {header!r} of the response cannot be sent: write text without control "
            "characters"
        )
        self.header = header


class RawRequest(web.Request):
    """The request that views and middlewares get.

    Reading its body as a form, as JSON or as text raises the same exceptions as in aiohttp. If a
    view does not catch them, the client gets a 400.
    """

    async def text(self) -> str:
        """Read the body as text."""
        with self._recording_errors():
            return await super().text()

    async def json(self, **options: Any) -> Any:
        """Read the body as JSON."""
        with self._recording_errors():
            return await super().json(**options)

    async def post(self) -> "MultiDictProxy[Any]":
        """Read the body as a form."""
        with self._recording_errors():
            return await super().post()

    async def multipart(self) -> MultipartReader:
        """Read the parts of a body one by one."""
        with self._recording_errors():
            reader: Any = await super().multipart()
        advance = reader.next

        async def next_part(*arguments: Any, **options: Any) -> Any:
            part: Any = await self._recording(advance)(*arguments, **options)
            if isinstance(part, BodyPartReader):
                for name in ("read_chunk", "readline"):
                    setattr(part, name, self._recording(getattr(part, name)))
            return part

        reader.next = next_part
        found: MultipartReader = reader
        return found

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Check the headers that aiohttp is about to send, those of streams included.

        Raises:
            UnsendableHeader: A header cannot be sent.
        """
        await super()._prepare_hook(response)
        connection: Any = self.protocol
        if connection.cors is not None:
            # For streams, which views begin themselves.
            connection.cors.add_headers(self, response)
        keep_first_content_type(response)
        if (header := unsendable_header(response)) is not None:
            # Another response will use the same writer.
            writer: Any = self.writer
            writer.chunked, writer.length = False, None
            raise UnsendableHeader(header)
        if isinstance(response, web.WebSocketResponse):
            connection.upgraded(response)

    @contextmanager
    def _recording_errors(self) -> Iterator[None]:
        try:
            yield
        except _NOT_BODY_ERRORS:
            raise
        except Exception as error:
            connection: Any = self.protocol
            connection.body_error = error
            raise

    def _recording(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def recorded(*arguments: Any, **options: Any) -> Any:
            with self._recording_errors():
                return await method(*arguments, **options)

        return recorded


def request_factory(application: web.Application) -> Callable[..., RawRequest]:
    """Return the function that creates the requests of an application."""
    create: Any = application._make_request
    return partial(create, _cls=RawRequest)


def is_body_error(error: BaseException, request: web.BaseRequest) -> bool:
    """Return whether an exception means that the body of the request cannot be read."""
    if isinstance(error, web.RequestPayloadError):
        return True
    return getattr(request.protocol, "body_error", None) is error


def keep_first_content_type(response: web.StreamResponse) -> None:
    """Keep the first `Content-Type` header, the one that `response.content_type` returns."""
    kinds = response.headers.getall(hdrs.CONTENT_TYPE, [])
    if len(kinds) > 1:
        response.headers[hdrs.CONTENT_TYPE] = kinds[0]


def unsendable_header(response: web.StreamResponse) -> str | None:
    """Return the name of the first header that cannot be sent; None if all are valid."""
    if not _is_sendable(response.reason or ""):
        return "reason"
    for name, value in response.headers.items():
        if not _TOKEN.fullmatch(name) or not _is_sendable(value):
            return name
    return None


def _is_sendable(text: object) -> bool:
    return isinstance(text, str) and _UNSENDABLE.search(text) is None
