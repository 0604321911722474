"""The versions that setup.cfg admits, and the private names of other libraries that we use."""

import ast
import gzip
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from pydantic import BaseModel

from tests.serving import serving
from workerkit import HTTPView


class Counts(BaseModel):
    """A body."""

    number: int


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "workerkit"

# Private attributes of objects of other libraries, each with the library. A new one gets a row, and
# its library an upper bound in setup.cfg.
PRIVATE = {
    "amqp/session.py: _maxsize": "python",  # asyncio.Queue
    "amqp/handshake.py: _on_connected": "aio-pika",
    "amqp/handshake.py: _on_connection_close": "aio-pika",
    "amqp/handshake.py: _reader_task": "aiormq",
    "amqp/tap.py: _closed": "python",  # asyncio.StreamReaderProtocol
    "http/connection.py: _task_handler": "aiohttp",
    "http/connection.py: _waiter": "aiohttp",
    "http/raw_request.py: _make_request": "aiohttp",
    "http/fast_response.py: _cookies": "aiohttp",
    "http/fast_response.py: _req": "aiohttp",
    "http/fast_routes.py: _match_info": "aiohttp",
    "sse/protocol.py: _factory": "aiohttp",
    "sse/protocol.py: _payload": "aiohttp",
}
# Private by their names, and documented.
DOCUMENTED = {"_asdict", "_current_frames", "_exit", "_replace"}
# What is public by its name, and promised by nobody.
UNDOCUMENTED = {
    "aio_pika.tools": "aio-pika",
    "aiormq.connection": "aiormq",
    "dependency_injector.wiring": "dependency-injector",
    "pamqp": "pamqp",
}


def requirements() -> list[Requirement]:
    """What setup.cfg requires, and what its extras do."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = (line.strip() for text in texts for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined(tree: ast.AST) -> set[str]:
    """The names that a module gives to classes, functions, variables and attributes of `self`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def used(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """The private attributes that a module looks up, and whether it does so on `self`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name) if is_private(name):
                yield name, True
            case ast.Attribute(attr=name) if is_private(name):
                yield name, False
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ) if is_private(name):
                yield name, False


def foreign(trees: dict[str, ast.AST]) -> set[str]:
    """`module: name` of each private attribute that is not ours.

    An attribute of `self` is ours if any module defines it: a class inherits. One of another object
    is ours only if the same module defines it, as private names are not for other modules.
    """
    own = {module: defined(tree) for module, tree in trees.items()}
    everywhere = set().union(*own.values())
    return {
        f"{module}: {name}"
        for module, tree in trees.items()
        for name, on_self in used(tree)
        if name not in (everywhere if on_self else own[module]) | DOCUMENTED
    }


def package() -> dict[str, ast.AST]:
    """Our modules."""
    files = PACKAGE.rglob("*.py")
    return {str(file.relative_to(PACKAGE)): ast.parse(file.read_text()) for file in files}


def imports(tree: ast.AST) -> Iterator[str]:
    """The full names of what a module imports from other libraries."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{each.name}" for each in node.names)


def test_fp6_private_names_of_other_libraries_are_known() -> None:
    """Every use of one stands in the table here, and every row of the table is a use."""
    assert foreign(package()) == set(PRIVATE)


def test_fp6_a_library_whose_internals_are_used_has_an_upper_bound() -> None:
    """Its next major version may be without them."""
    bounded = {
        each.name for each in requirements() if any(s.operator == "<" for s in each.specifier)
    }

    assert ({*PRIVATE.values(), *UNDOCUMENTED.values()} - {"python"}) <= bounded


def test_fp6_nothing_private_is_imported() -> None:
    """Neither a private module of another library nor a private name of a module."""
    found = [
        f"{module}: {name}"
        for module, tree in package().items()
        for name in imports(tree)
        if not name.startswith("workerkit") and any(map(is_private, name.split(".")))
    ]

    assert found == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import lib\nlib.thing._secret()", {"m.py: _secret"}),
        ("getattr(lib.thing, '_secret', None)", {"m.py: _secret"}),
        ("thing._secret = 1", {"m.py: _secret"}),
        ("class A(lib.B):\n    def go(self): self._secret()", {"m.py: _secret"}),
        ("class A:\n    def __init__(self): self._own = 1\n    def go(self): self._own", set()),
        ("class A:\n    _own = 1\n    def same(self, other): return other._own", set()),
        ("import os\nos._exit(1)", set()),
    ],
)
def test_fp6_what_counts_as_a_private_name(source: str, found: set[str]) -> None:
    """A name that the module does not define, looked up by a dot or by `getattr`."""
    assert foreign({"m.py": ast.parse(source)}) == found


def test_fp6_every_requirement_states_its_lowest_version() -> None:
    """`make test-oldest` installs those."""
    lowest = [[s for s in each.specifier if s.operator == ">="] for each in requirements()]

    assert all(len(each) == 1 for each in lowest)


def test_fp6_every_library_that_is_imported_is_required() -> None:
    """None of them is there only because another library requires it."""
    names = {
        "opentelemetry-api": "opentelemetry",
        "python-dotenv": "dotenv",
        "python-json-logger": "pythonjsonlogger",
    }
    required = {names.get(each.name, each.name.replace("-", "_")) for each in requirements()}
    # pydantic requires exactly one version of its core.
    known = {"workerkit", "pydantic_core", *required, *sys.stdlib_module_names}
    found = {name.partition(".")[0] for tree in package().values() for name in imports(tree)}

    assert found - known == set()


async def test_fp6_a_body_of_thousands_of_compressed_members_is_refused() -> None:
    """aiohttp before 3.14.4 reads all of them, each at the cost of all that follow."""

    class Upload(HTTPView):
        routes = ["/uploads"]
        methods = ["POST"]

        async def handle(self, body: Counts) -> None: ...

    body = gzip.compress(b"") * 9_700 + gzip.compress(b'{"number": 1}')
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with serving(Upload) as client:
        response = await client.post("/uploads", body=body, headers=headers)

    assert response.status == 400
