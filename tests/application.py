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
    """Settings that ignore the environment of the test run."""

    model_config = SettingsConfigDict(env_prefix="TESTS_ONLY_", env_file=None)


class Recorder:
    """An observer that records settled deliveries."""

    def __init__(self) -> None:
        self.settled: list[Settled] = []

    def __call__(self, record: Settled) -> None:
        self.settled.append(record)

    @property
    def actions(self) -> list[str]:
        """The actions, in order; `lost` if the connection was lost."""
        return ["lost" if each.lost else each.action.value for each in self.settled]


def package_of(*consumers: type[Consumer]) -> str:
    """Create a package that consists of *consumers*."""
    module = ModuleType(f"application_{token_hex(6)}")
    for consumer in consumers:
        consumer.__module__ = module.__name__
        setattr(module, consumer.__name__, consumer)
    sys.modules[module.__name__] = module
    return module.__name__


def container_of(url: str, recorder: Recorder | None = None, **settings: Any) -> Any:
    """Return a container whose default connection is *url*; `amqp` in *settings* adds others."""
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
    """Run *consumers* inside the block; they are ready unless *ready* is false."""
    container = container_of(url, recorder, **settings)
    async with Runner(container, packages=[package_of(*consumers)]).running() as runner:
        if ready:
            await eventually(lambda: runner.ready, what=f"ready: {runner.health}")
        yield runner
