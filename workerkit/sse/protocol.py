"""aiohttp's protocol for connections to event streams."""

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD

# Heads are much smaller. aiohttp keeps each interim response, at ten times its size.
_MAX_BEFORE_BODY = 256 * 1024


class _Protocol(ResponseHandler):
    """aiohttp's protocol, with a size limit for the data before the body of a response.

    A server may send any number of interim responses, such as 103, before the final one.
    """

    _before_body = 0

    def data_received(self, data: bytes) -> None:
        """Parse data, and close the connection if too much arrives before the body."""
        super().data_received(data)
        if self._payload is not None and self._payload is not EMPTY_PAYLOAD:
            return
        self._before_body += len(data)
        if self._before_body > _MAX_BEFORE_BODY and self.exception() is None:
            if self.transport is not None:
                self.transport.close()
            text = "too much data before the body of the response"
            self.set_exception(HttpProcessingError(message=text))


def connector() -> aiohttp.TCPConnector:
    """Return a connector that uses this protocol."""
    connector = aiohttp.TCPConnector()
    factory: Any = partial(_Protocol, loop=asyncio.get_running_loop())
    connector._factory = factory
    return connector
