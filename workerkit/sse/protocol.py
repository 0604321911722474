"""aiohttp's side of one connection to a server of events."""

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD

# Heads are far smaller; aiohttp keeps each interim answer, at ten times its size.
_MOST_BEFORE_BODY = 256 * 1024


class _Protocol(ResponseHandler):
    """aiohttp's protocol, with a limit for what comes before the body of an answer.

    A server may send any number of interim answers, such as 103, before the one that counts.
    """

    _before_body = 0

    def data_received(self, data: bytes) -> None:
        """Parse it, and give up a server whose answer does not begin."""
        super().data_received(data)
        if self._payload is not None and self._payload is not EMPTY_PAYLOAD:
            return
        self._before_body += len(data)
        if self._before_body > _MOST_BEFORE_BODY and self.exception() is None:
            if self.transport is not None:
                self.transport.close()
            text = "too much data before the body of the answer"
            self.set_exception(HttpProcessingError(message=text))


def connector() -> aiohttp.TCPConnector:
    """Make what connects to servers of events."""
    made = aiohttp.TCPConnector()
    factory: Any = partial(_Protocol, loop=asyncio.get_running_loop())
    made._factory = factory
    return made
