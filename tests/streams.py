"""Run SSE consumers in the test's own process, and servers that misbehave."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dependency_injector import providers

from tests.application import Recorder, container_of, package_of
from tests.waiting import eventually
from workerkit import Runner, SSEConsumer, SSEEvent
from workerkit.testing.sse import SSEServer


def collector(
    name: str = "Collector",
    *,
    before: Callable[[SSEEvent[str]], Any] | None = None,
    **options: Any,
) -> tuple[type[SSEConsumer], list[str]]:
    """Make a consumer that keeps the data of what it has handled.

    Args:
        before: Called with each event first; may raise.
        options: Class attributes, such as `events`.

    Returns:
        The class, and the list into which its instance puts what it has handled.
    """
    handled: list[str] = []

    async def handle(self: SSEConsumer, event: SSEEvent[str]) -> None:
        if before is not None:
            made = before(event)
            if made is not None:
                await made
        handled.append(event.body)

    attributes = {"connection": "server", "routes": ["/events"], "handle": handle, **options}
    return type(name, (SSEConsumer,), attributes), handled


@asynccontextmanager
async def consuming(
    server: SSEServer | str,
    *consumers: type[SSEConsumer],
    recorder: Recorder | None = None,
    ready: bool = True,
    cursors: object = None,
    directory: Path | None = None,
    corrupt: str = "set-aside",
    grace: float = 5.0,
    more: dict[str, dict[str, Any]] | None = None,
    **connection: Any,
) -> AsyncIterator[Runner]:
    """Run *consumers* of *server* inside the block; they are ready unless *ready* is false.

    Args:
        cursors: A store, instead of the container's.
        directory: For cursors in files.
        corrupt: What is done with a file that holds no cursor.
        grace: Seconds for handlers to end.
        more: Other servers of the settings, by name.
        connection: Of the settings, such as `idle_timeout`.
    """
    url = server if isinstance(server, str) else server.url
    sse = {"server": {"url": url, **connection}, **(more or {})}
    container = container_of(
        "amqp://nobody",
        recorder,
        sse=sse,
        cursors=directory,
        cursors_corrupt=corrupt,
        shutdown_grace=grace,
    )
    if cursors is not None:
        container.cursors.override(providers.Object(cursors))
    async with Runner(container, packages=[package_of(*consumers)]).running() as runner:
        if ready:
            await eventually(lambda: runner.ready, what=f"ready: {runner.health}")
        yield runner
