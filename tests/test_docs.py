"""Every code block of README and docs runs, and every console line is a valid command."""

import asyncio
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from typer.testing import CliRunner

from tests import rows
from tests.application import package_of
from tests.redis_server import PrivateRedis
from workerkit import (
    AMQPConsumer,
    Consumer,
    HTTPView,
    Runner,
    SSEConsumer,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.cli.commands import app
from workerkit.testing.transport_contract import TransportContract

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "app_template/README.md")),
    *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
]
TUTORIAL = ROOT / "docs" / "tutorial.md"  # tests/cli/test_tutorial.py runs it, in a project.
PROJECTS = [ROOT / "README.md", ROOT / "docs" / "tour.md"]
GROUPS = ["dead-letters", "topology"]  # Commands of commands.
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
READERS: dict[str, Callable[[str], Iterable[Any]]] = {
    "yaml": yaml.safe_load_all,
    "json": json.loads,
    "toml": tomllib.loads,
}


class OrderRepository:
    """A repository that the examples use."""

    async def add(self, order: Any) -> None: ...


class FakeOrders(OrderRepository):
    """... in a test."""

    def __init__(self) -> None:
        self.booked: list[int] = []

    async def add(self, order: Any) -> None:
        self.booked.append(order.id)


class Settings(WorkerSettings):
    """... of an application."""

    database_url: str = "postgresql://"


def open_pool(dsn: str) -> Iterator[str]:
    """... of its resources."""
    yield dsn


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of one language, in order."""
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


@pytest.fixture
def redis_url() -> Iterator[str]:
    """The address of a Redis server for one page."""
    with PrivateRedis() as server:
        yield server.url


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page != TUTORIAL],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_python_of_a_page_runs(
    page: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The blocks of a page run one after the other, its tests pass, its consumers are sound."""
    if "REDIS_URL" in page.read_text():
        monkeypatch.setenv("REDIS_URL", request.getfixturevalue("redis_url"))
    given = (OrderRepository, FakeOrders, Settings, open_pool)
    namespace: dict[str, Any] = {each.__name__: each for each in given}
    namespace |= {"__name__": "shop", "Session": FakeOrders}

    for block in blocks(page, "python"):
        if block.startswith("# shop/"):
            block = re.sub(r"^from shop\..*\n", "", block, flags=re.MULTILINE)
        exec(compile(block, str(page), "exec"), namespace)
    # The page is the package `shop`, for tests that run it as a whole.
    shop = ModuleType("shop")
    vars(shop).update(namespace)
    monkeypatch.setitem(sys.modules, "shop", shop)
    _run_tests(namespace)

    for contract in _contracts(namespace):
        for name in dir(contract):
            if name.startswith("test_") and getattr(contract, name) is not None:
                getattr(contract(), name)()

    for consumer in _consumers(namespace):
        container = namespace.get("Container", WorkerContainer)()
        if "session" not in container.providers:
            for name in ("session", "sessions", "orders"):
                container.set_provider(name, container.observers)
        assembly = Runner(container, packages=[package_of(consumer)]).assemble()
        assert [each.consumer for each in assembly.declared] == [consumer]


def _run_tests(namespace: dict[str, Any]) -> None:
    """Run the tests of a page, except those that get fixtures of pytest."""
    for name, test in namespace.items():
        if name.startswith("test_") and not inspect.signature(test).parameters:
            if inspect.iscoroutinefunction(test):
                asyncio.run(test())
            else:
                test()


@pytest.mark.parametrize("page", PROJECTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_of_a_page_are_a_project(page: Path, tmp_path: Path) -> None:
    """Copied into an empty directory, the files pass `workerkit check`."""
    for block in blocks(page, "python"):
        first, _, _ = block.partition("\n")
        if first.startswith("# shop/"):
            path = tmp_path / first.removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
    command = [sys.executable, "-m", "workerkit", "check", "shop"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("shop: 1 consumer, no problems\n", "")


def _contracts(namespace: dict[str, Any]) -> list[type[TransportContract]]:
    return [
        each
        for name, each in namespace.items()
        if name.startswith("Test") and issubclass(each, TransportContract)
    ]


def _consumers(namespace: dict[str, Any]) -> list[type[Consumer]]:
    return [
        each
        for each in namespace.values()
        if isinstance(each, type)
        and issubclass(each, AMQPConsumer | SSEConsumer | HTTPView)
        and not each.is_abstract()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_exist(page: Path) -> None:
    """Every `workerkit ...` line has existing options, every `make` line an existing target."""
    makefile = (ROOT / "Makefile").read_text()

    for line in "".join(blocks(page, "console")).splitlines():
        words = line.removeprefix("$ ").split("#")[0].split()
        if words[:1] == ["workerkit"]:
            command = words[1:3] if words[1] in GROUPS else words[1:2]
            text = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
            assert all(word in text for word in words if word.startswith("--")), line
            assert "usage" in text.lower(), line
        if words[:1] == ["make"]:
            assert f"\n{words[1]}:" in makefile, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_data_of_a_page_is_valid(page: Path) -> None:
    """Blocks of YAML, JSON and TOML can be read."""
    for language, read in READERS.items():
        for block in blocks(page, language):
            list(read(block))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    """A relative link is a file."""
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_every_row_of_the_reliability_page_is_tested() -> None:
    """Its last column names the files with tests of the row; `python -m tests.rows` writes it."""
    page = rows.PAGE.read_text()
    untested = [row for row in rows.ROWS if row not in rows.shown_by()]

    assert rows.rows(page) == rows.ROWS
    assert untested == []
    assert rows.written(page) == page
