"""Run consumers in the test's own process, against a real broker."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex
from types import ModuleType
from typing import Any

from dependency_injector import providers
from pydantic_settings import SettingsConfigDict

from tests.waiting import eventually
from workerkit import Consumer, Runner, Settled, WorkerContainer, WorkerSettings
from workerkit.observe import log_settled


class _Settings(WorkerSettings):
    """Out of reach of the environment of whoever runs the tests."""

    model_config = SettingsConfigDict(env_prefix="TESTS_ONLY_", env_file=None)


class Recorder:
    """An observer that keeps what was settled."""

    def __init__(self) -> None:
        self.settled: list[Settled] = []

    def __call__(self, record: Settled) -> None:
        self.settled.append(record)

    @property
    def actions(self) -> list[str]:
        """What was done, in order; `lost` where the connection was gone."""
        return ["lost" if each.lost else each.action.value for each in self.settled]


def package_of(*consumers: type[Consumer]) -> str:
    """A package that consists of *consumers*, as if somebody had written it."""
    module = ModuleType(f"application_{token_hex(6)}")
    for consumer in consumers:
        consumer.__module__ = module.__name__
        setattr(module, consumer.__name__, consumer)
    sys.modules[module.__name__] = module
    return module.__name__


def container_of(url: str, recorder: Recorder | None = None, **settings: Any) -> Any:
    """A container whose default connection is *url*; `amqp` in *settings* adds others."""
    amqp = {"default": {"url": url}, **settings.pop("amqp", {})}
    container = WorkerContainer()
    made = _Settings(amqp=amqp, **settings)
    container.settings.override(providers.Object(made))
    if recorder is not None:
        container.observers.override(providers.Object([log_settled, recorder]))
    return container


@asynccontextmanager
async def running(
    url: str,
    *consumers: type[Consumer],
    recorder: Recorder | None = None,
    ready: bool = True,
    **settings: Any,
) -> AsyncIterator[Runner]:
    """Run *consumers* inside the block, ready unless told otherwise."""
    container = container_of(url, recorder, **settings)
    async with Runner(container, packages=[package_of(*consumers)]).running() as runner:
        if ready:
            await eventually(lambda: runner.ready, what=f"ready: {runner.health}")
        yield runner
