# What workerkit uses of aiohttp-sse-client 0.2.1, which has no types of its own.

from datetime import timedelta
from typing import Any, Self

from aiohttp import ClientResponse, ClientSession
from yarl import URL

READY_STATE_CONNECTING: int
READY_STATE_OPEN: int
READY_STATE_CLOSED: int

class EventSource:
    _url: URL
    _ready_state: int
    _session: ClientSession
    _need_close_session: bool
    _method: str
    _kwargs: dict[str, Any]
    _response: ClientResponse | None
    def __init__(
        self,
        url: str | URL,
        option: dict[str, Any] | None = ...,
        reconnection_time: timedelta = ...,
        max_connect_retry: int = ...,
        session: ClientSession | None = ...,
        **kwargs: Any,
    ) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...
    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> Any: ...
    @property
    def ready_state(self) -> int: ...
    async def connect(self, retry: int = ...) -> None: ...
    async def close(self) -> None: ...
