"""Serve views in the test's own process, over real sockets, without any broker."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from dependency_injector import providers

from tests.application import Recorder, container_of, package_of
from workerkit import HTTPView, Runner, WorkerContainer
from workerkit.http.client import HTTPClient

NO_BROKER = "amqp://nobody@127.0.0.1:1/"


@asynccontextmanager
async def serving(
    *views: type[HTTPView],
    recorder: Recorder | None = None,
    middlewares: Sequence[Any] = (),
    provided: dict[str, Any] | None = None,
    grace: float = 5.0,
    **http: Any,
) -> AsyncIterator[HTTPClient]:
    """Run *views* inside the block, and give a client of them.

    Args:
        provided: More providers of the container, or objects.
        http: Settings of the server, beside the port.
    """
    settings = {"http": {"port": 0, **http}, "shutdown_grace": grace}
    made = {
        name: each if isinstance(each, providers.Provider) else providers.Object(each)
        for name, each in (provided or {}).items()
    }
    container: Any = type("Container", (WorkerContainer,), made)()
    plain = container_of(NO_BROKER, recorder, **settings)
    for name in ("settings", "observers"):
        container.providers[name].override(providers.Object(plain.providers[name]()))
    container.middlewares.override(providers.Object(list(middlewares)))
    client = HTTPClient()
    async with Runner(container, packages=[package_of(*views)]).running():
        client.open(container.wires()[HTTPView].url)
        try:
            yield client
        finally:
            await client.close()
