"""Every Python block of README and docs passes `mypy --strict`, as it would in a user's editor."""

import ast
import builtins
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_docs import PAGES, ROOT, TUTORIAL

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What the pages take for granted.
PRELUDE = """
from collections.abc import Iterator
from typing import Any, Self

from workerkit import WorkerSettings


class OrderRepository:
    async def add(self, order: Any) -> None: ...


class FakeOrders(OrderRepository):
    def __init__(self) -> None:
        self.booked: list[int] = []


class Settings(WorkerSettings):
    database_url: str = "postgresql://"


class Session:
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    async def rollback(self, number: int) -> None: ...

    async def token(self) -> str:
        return ""


def open_pool(dsn: str) -> Iterator[str]:
    yield dsn
"""

OPTIONS = [
    "--strict",
    "--implicit-reexport",  # A block gets its names from those before it.
    "--disable-error-code=empty-body",  # Examples leave out bodies.
    "--allow-subclassing-any",  # Models of Django, which has no annotations.
]


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a page.

    Attributes:
        module: The module that is checked.
        line: Of the page, where it begins.
    """

    page: Path
    module: str
    line: int
    text: str


def blocks() -> Iterator[Block]:
    """Return the blocks of all pages but the tutorial, whose blocks are files of a project."""
    for page in PAGES:
        if page == TUTORIAL:
            continue
        text = page.read_text()
        name = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
        for number, found in enumerate(BLOCK.finditer(text), 1):
            line = text.count("\n", 0, found.start(1)) + 1
            yield Block(page, f"{name.lower()}_{number}", line, found[1])


def written(block: Block, known: dict[str, str]) -> str:
    """Return the source of a block, which imports the names of earlier blocks that it uses.

    Its lines have the numbers that they have on the page.

    Args:
        known: The module of each name that can be imported; those of the block are added.
    """
    text = re.sub(r"^from shop\b.*$", "", block.text, flags=re.MULTILINE)
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    own = {name for statement in tree.body for name in _bound(statement)}
    used = {node.id for node in nodes if isinstance(node, ast.Name)} | {
        name
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in re.findall(r"\b[A-Z]\w+\b", node.value)
        if " " not in node.value
    }
    wanted = sorted((used & known.keys()) - own - set(dir(builtins)))
    imports = "; ".join(f"from {known[name]} import {name} as {name}" for name in wanted)
    known.update(dict.fromkeys(own, block.module))
    return imports + "\n" * (block.line - 1 or 1) + text


def _bound(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (each.asname or each.name.partition(".")[0] for each in names)
        case ast.Assign(targets=targets):
            yield from (
                each.id
                for target in targets
                for each in ast.walk(target)
                if isinstance(each, ast.Name)
            )
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def checked(directory: Path) -> list[str]:
    """Return the output of mypy for a directory, with the pages in place of the modules."""
    command = [
        *(sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")),
        *("--cache-dir", str(ROOT / ".mypy_cache" / "docs"), *OPTIONS),
        *map(str, sorted(directory.glob("*.py"))),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if ": error: " in line]


def generate(directory: Path, every: list[Block]) -> None:
    """Write each block as a module."""
    (directory / "prelude.py").write_text(PRELUDE)
    names = {name for statement in ast.parse(PRELUDE).body for name in _bound(statement)}
    page, known = None, dict[str, str]()
    for block in every:
        if block.page != page:
            page, known = block.page, dict.fromkeys(names - {"Any", "Self"}, "prelude")
        (directory / f"{block.module}.py").write_text(written(block, known))


WRONG = ROOT / "docs" / "wrong.md"
"""A page for this test only."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The output of mypy for all pages, each line with its page."""
    wrong = [
        Block(WRONG, "wrong_1", 10, "class Order:\n    id: int = 1\n"),
        Block(WRONG, "wrong_2", 20, "def f(order: Order): ...\nf(Order().id)\n"),
    ]
    every = [*blocks(), *wrong]
    directory = tmp_path_factory.mktemp("pages")
    generate(directory, every)
    pages = {block.module: str(block.page.relative_to(ROOT)) for block in every}
    pages["prelude"] = Path(__file__).name
    return [re.sub(r"^.*?(\w+)\.py", lambda at: pages[at[1]], line) for line in checked(directory)]


@pytest.mark.timeout(300)
def test_fp15_every_block_of_the_docs_is_typed(found: list[str]) -> None:
    """mypy finds nothing in any page."""
    assert [line for line in found if not line.startswith("docs/wrong.md")] == []


@pytest.mark.timeout(300)
def test_fp15_a_block_that_is_not_typed_is_found(found: list[str]) -> None:
    """An untyped function, and a wrong argument whose type comes from an earlier block."""
    wrong = [line.partition(": error")[0] for line in found if "docs/wrong.md" in line]

    assert wrong == ["docs/wrong.md:20", "docs/wrong.md:21"]
