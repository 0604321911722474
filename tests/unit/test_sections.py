"""A transport that brings a section of the settings, and one that publishes."""

import json
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from dependency_injector import containers, providers
from pydantic import BaseModel, SecretStr
from pydantic_settings import SettingsConfigDict
from typer.testing import CliRunner

from tests.application import package_of
from tests.waiting import eventually
from workerkit import (
    ConfigurationError,
    DeclarationError,
    PeriodicTask,
    Runner,
    SimpleConsumer,
    SimpleDelivery,
    SimpleTransport,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.cli.commands import app
from workerkit.transport import Context, Outcome


class PostSettings(BaseModel):
    """A section of the settings."""

    office: str = "main"
    password: SecretStr = SecretStr("")
    limit: int = 3


class PostConsumer(SimpleConsumer, abstract=True):
    """Handles what the post brings."""


class PostTransport(SimpleTransport):
    """Receives nothing, and publishes."""

    kind = "post"
    section: ClassVar[tuple[str, type[BaseModel]]] = ("post", PostSettings)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.found: PostSettings | None = None
        self.is_blocked = False

    async def open(self, context: Context) -> None:
        """Keep the section."""
        self.found = context.section(PostSettings)

    async def receive(self, options: Any) -> AsyncIterator[SimpleDelivery | None]:
        """Receive nothing."""
        yield None

    async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
        """Nothing is received."""

    async def open_publisher(self, context: Context) -> None:
        """Note the call."""
        self.calls.append("open")

    def blocked(self) -> list[str]:
        """Whether the post is on strike."""
        return ["post"] if self.is_blocked else []

    async def close_publisher(self) -> None:
        """Note the call."""
        self.calls.append("close")


class Settings(WorkerSettings):
    """Those of an application."""

    model_config = SettingsConfigDict(env_prefix="SHOP_", env_file=None)


class Letters(PostConsumer):
    """A consumer of the post."""

    async def handle(self, body: bytes) -> None: ...


class Container(WorkerContainer):
    """With the transport beside the built-in ones."""

    settings = providers.Singleton(Settings)
    extra_transports = providers.Dict({PostConsumer: providers.Singleton(PostTransport)})


def transport_of(container: Any) -> PostTransport:
    """The transport of a container."""
    found = container.extra_transports()[PostConsumer]
    assert isinstance(found, PostTransport)
    return found


def runner_of(container: containers.Container) -> Runner:
    """A runner of the consumer."""
    return Runner(container, packages=[package_of(type("Letters", (Letters,), {}))])


async def test_a_transport_reads_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment, below the prefix of the application."""
    monkeypatch.setenv("SHOP_POST__OFFICE", "north")
    container = Container()
    async with runner_of(container).running():
        assert transport_of(container).found == PostSettings(office="north")


def test_unknown_and_invalid_variables_of_a_section_are_faults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is named as it stands in the environment."""
    monkeypatch.setenv("SHOP_POST__OFICE", "north")
    with pytest.raises(ConfigurationError, match=r"SHOP_POST__OFICE.*SHOP_POST__OFFICE"):
        runner_of(Container()).assemble()

    monkeypatch.delenv("SHOP_POST__OFICE")
    monkeypatch.setenv("SHOP_POST__LIMIT", "many")
    with pytest.raises(ConfigurationError, match="SHOP_POST__LIMIT"):
        runner_of(Container()).assemble()


def test_a_section_of_the_application_is_used() -> None:
    """A field of that name in the settings class comes first, with the sources of that class."""

    class Own(Settings):
        post: PostSettings = PostSettings(office="south")

    container = Container()
    container.settings.override(providers.Singleton(Own))
    settings: Any = runner_of(container).assemble().settings

    assert type(settings) is Own
    assert settings.post.office == "south"


def test_a_field_of_another_type_is_a_fault() -> None:
    """Both are named."""

    class Wrong(Settings):
        post: str = ""

    container = Container()
    container.settings.override(providers.Singleton(Wrong))
    with pytest.raises(DeclarationError, match=r"Wrong\.post should be a PostSettings"):
        runner_of(container).assemble()


def test_the_command_lists_the_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """`workerkit settings` prints its variables, secrets as `***`."""
    monkeypatch.setenv("SHOP_POST__PASSWORD", "geheim")
    package = package_of(type("Letters", (Letters,), {}))
    arguments = ["settings", package, "--container", f"{__name__}:Container", "--json"]

    done = CliRunner().invoke(app, arguments)

    rows = {each["variable"]: each for each in json.loads(done.output)}
    assert rows["SHOP_POST__OFFICE"]["value"] == "main"
    assert rows["SHOP_POST__PASSWORD"]["value"] == "***"
    assert "geheim" not in done.output


async def test_a_publisher_is_opened_asked_and_closed() -> None:
    """Also that of a transport without consumers; readiness shows what is blocked."""

    class Daily(PeriodicTask):
        every = 86_400.0

        async def handle(self) -> None: ...

    container = Container()
    runner = Runner(container, packages=[package_of(Daily)])
    async with runner.running():
        transport = transport_of(container)
        await eventually(lambda: runner.health[0].is_ready)
        opened = list(transport.calls)
        transport.is_blocked = True
        process = runner._process
        assert process is not None
        obstacles = process.readiness.obstacles()

    assert opened == ["open"]
    assert obstacles == ["connection post: the broker blocks publishers"]
    assert transport.calls == ["open", "close"]
