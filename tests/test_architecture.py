"""The floors of the package: who may import whom, and how long a file may be.

A module imports only from floors below its own, or from modules that stand earlier on its own
floor. So there can be no cycles, lazy ones neither. A new module gets a place in the table first.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = "workerkit"
LONGEST_FILE = 400
LONGEST_FUNCTION = 50

# From the ground up. Within a floor the order counts; names joined by | are neighbours at the same
# height, which know nothing of each other.
FLOORS = {
    "F0 words": "version safe_text errors delivery trace config",
    "F1 pure": "describe current_call type_variables problem_details codec reading signature"
    " named_types retry control health observe logs",
    "F2 declared": "attributes options consumer interceptor",
    "F3 spine": "forking stop_signals tasks deadlines threads workers endpoint transport asyncapi"
    " simple_options simple_receiver simple_control simple_transport",
    "F4 transports": "amqp|sse|http|embedded ops.counting ops.recent ops.metrics periodic ops"
    " console",
    "F5 assembly": "container config.load tracing app",
    "F6 runner": "app.burst app.main_thread app.console app.watchdog app.process"
    " processes.link runner processes",
    "F7 doors": "cli testing __main__",
}

# The modules of a package, in the same order. The package's own __init__ is last.
ORDER = {
    "codec": "body_types findings structs protobuf decoding encoding codecs cloud_event",
    "amqp": "checks queue table properties frames acks content message consumer message_types"
    " addresses frame_reader tap handshake replies channel_numbers basic_get incoming"
    " scratch_channels channel session connection declare needs comparison stream_position binding"
    " outgoing confirms destination lease_term requests publishing_channels publisher_connection"
    " publisher_connections traced_publish publisher dead_letters copies traced_copies"
    " declared_queues described queue_types requeue redelivery answers browse replay topology"
    " permissions definitions preparation settlement receiver subscription control"
    " side_effects option_faults transport"
    " lease",
    "sse": "event request protocol redirects cookies decoding parser consumer connection"
    " described traced_connection event_types cursor stored_cursor receiver subscription control"
    " transport",
    "http": "request problem page raw_request fast_response fast_routes json_shape parameters"
    " upload form json_body auth verifier signature slow_clients view return_type schemas openapi"
    " response etag cors connection disconnect form_reader traced middleware listener"
    " server receiver routes transport",
    "embedded": "table clock memory errors heartbeat injected_faults methods properties message"
    " counting order behaviour arguments queue exchange x_death vhost outbox channel"
    " declaring publishing consuming dispatch frames broker handshake connection"
    " listener snapshot server",
    "ops": "counting recent metrics exemplars call_stacks debug debug_pages debug_signal index port"
    " server",
    "console": "reports model dead_letters.model access audit commands history depths merging"
    " snapshot sources targets messages sending bus fleet limits overview dead_letters.rows"
    " dead_letters.selection dead_letters.reading dead_letters.groups dead_letters.details"
    " dead_letters.jobs dead_letters.replaying dead_letters.deleting dead_letters.desk"
    " dead_letters.__init__ live views letter_views page server",
    "cli": "probe terminal application broker dead_letters.__init__ dead_letters.text"
    " dead_letters.selection parameters dead_letters.target dead_letters.read dead_letters.clear"
    " dead_letters.commands topology.__init__ topology.needs topology.plan topology.management"
    " topology.broker topology.text topology.grants topology.commands listing settings publish"
    " shell run scaffold new top_lines fleet top console commands",
    "testing": "fakes containers records requeues broker http_client sse used_transports running"
    " contract_source transport_contract plugin",
    "config": "broker_url hosts sections connections sources settings annotations certificates"
    " variables explain load",
    "tracing": "names sampling contexts recorder calls spans served running",
    "processes": "cpus link child sums pages supervisor reload",
    "app": "discovery injection interceptors sections assembly burst main_thread asyncapi console"
    " watchdog process",
    "periodic": "schedule singleton consumer timer control transport",
}

# The in-process broker could live alone.
ONLY_OWN = {"embedded": ["errors"]}

# Modules that import others lazily, so that they start quickly; also downwards.
LAZY = ["cli.__init__", "cli.run", "cli.topology.commands", "tracing.__init__"]

# Who may import these at all: path patterns inside the package.
KEEPERS = {
    "aio_pika": ["amqp/handshake.py"],
    "aiormq": [f"amqp/{each}.py" for each in ("tap", "handshake", "replies", "channel", "session")],
    "aiohttp": [
        *("http/*", "sse/*", "ops/*", "console/*", "processes/pages.py"),
        *("testing/http_client.py", "testing/sse.py", "cli/fleet.py", "cli/console.py"),
    ],
    "aiohttp_sse_client": ["sse/*"],
    "opentelemetry": ["tracing/*"],
    "prometheus_client": ["ops/*", "processes/sums.py"],
}


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement.

    Attributes:
        module: Dotted name of what is imported; the longest part of it that is a module.
        line: Its line number.
        lazy: It is inside a function.
    """

    module: str
    line: int
    lazy: bool


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the package.

    Attributes:
        path: Relative to the package, like `amqp/tap.py`.
        text: What is in it.
    """

    path: str
    text: str

    @property
    def name(self) -> str:
        """The name of the module inside the package: `amqp.tap`, `amqp.__init__`."""
        return self.path.removesuffix(".py").replace("/", ".")


def test_imports_and_sizes() -> None:
    """Every import goes down, and no file or function is too long."""
    root = Path(__file__).parents[1] / PACKAGE
    sources = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*.py")}

    assert "\n".join(faults(sources)) == ""


def test_the_page_of_the_architecture_names_what_exists() -> None:
    """Each path on the page is a file or folder, and the page draws every floor of the table."""
    root = Path(__file__).parents[1]
    page = (root / "docs" / "architecture.md").read_text()

    # The files of the package come in the form `amqp/tap.py`, in the drawing without backticks.
    paths = set(re.findall(r"\b(?:[a-z_]+/)*[a-z_]+\.py\b|\b[a-z_]+/(?![\w*])", page))
    missing = {
        each for each in paths if not any((r / each).exists() for r in (root, root / PACKAGE))
    }
    floors = re.findall(r"^(F\d) +(\w+)", page, re.MULTILINE)

    assert missing == set()
    assert sorted(floors) == [tuple(name.split(" ", 1)) for name in FLOORS]


@pytest.mark.parametrize(
    "sources",
    [
        pytest.param({"codec.py": "from workerkit.errors import InvalidBody"}, id="down"),
        pytest.param({"errors.py": "", "health.py": "from workerkit import errors"}, id="earlier"),
        pytest.param({"amqp/tap.py": "from . import queue\nimport aiormq"}, id="own package"),
        pytest.param({"amqp/__init__.py": "from workerkit.amqp.transport import X"}, id="package"),
        pytest.param({"runner.py": "from workerkit.amqp import X"}, id="name of a package"),
        pytest.param({"__init__.py": "from workerkit.cli import main"}, id="public names"),
        pytest.param({"embedded/broker.py": "import workerkit.errors"}, id="the broker's one"),
        pytest.param({"__main__.py": "from workerkit.cli import main"}, id="doors"),
        pytest.param(
            {
                "cli/commands.py": "",
                "cli/__init__.py": "def f():\n    import workerkit.cli.commands",
            },
            id="lazy, so that it starts quickly",
        ),
        pytest.param({"codec.py": "def f():\n    import msgspec"}, id="lazy, not ours"),
        pytest.param({"codec.py": "def f():\n" + "    a\n" * 49}, id="a function of 50 lines"),
    ],
)
def test_what_is_allowed(sources: dict[str, str]) -> None:
    """The check accepts what the design allows."""
    assert faults(_PACKAGE | sources) == []


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        (
            "errors.py",
            "\nimport workerkit.codec",
            "errors.py:2: errors imports codec, which does not",
        ),
        ("errors.py", "from workerkit import health", "errors imports health, which does not"),
        ("errors.py", "import workerkit.errors", "errors imports errors, which does not"),
        ("codec.py", "from .amqp import X", "codec imports amqp, which does not"),
        ("codec.py", "from .amqp.tap import X", "codec imports amqp.tap, which does not"),
        ("amqp/queue.py", "from . import tap", "amqp.queue imports amqp.tap, which does not"),
        ("amqp/queue.py", "from workerkit.amqp import X", "amqp.queue imports amqp, which does"),
        ("sse/event.py", "from workerkit.amqp import queue", "sse.event imports amqp.queue, which"),
        ("codec.py", "from workerkit import Runner", "imports workerkit itself; import from the"),
        (
            "codec.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import workerkit.runner",
            "codec.py:3: codec imports runner, which does not",
        ),
        (
            "codec.py",
            "class A:\n    async def f(self):\n        from workerkit import errors",
            "codec.py:3: imports workerkit.errors inside a function",
        ),
        (
            "runner.py",
            "import importlib\nf = lambda: importlib.import_module('workerkit.errors')",
            "runner.py:2: imports workerkit.errors inside a function",
        ),
        (
            "embedded/broker.py",
            "from workerkit.codec import X",
            "embedded imports nothing of workerkit but errors, not codec",
        ),
        ("codec.py", "import aio_pika.abc", "may import aio_pika"),
        ("amqp/queue.py", "from aiormq.abc import X", "may import aiormq"),
        (
            "testing/fakes.py",
            "from aiohttp import web",
            "only http/*, sse/*, ops/*, console/*, processes/pages.py, testing/http_client.py, te",
        ),
        ("observe.py", "def f():\n    import prometheus_client", "may import prometheus_client"),
        ("news.py", "", "news.py:1: unknown module; add it to the table: FLOORS in test_architec"),
        ("amqp/news.py", "", 'unknown module; add it to the table: the row "amqp" of ORDER in'),
        ("news/what.py", "", "unknown module; add it to the table: FLOORS in"),
        ("codec.py", "\n" * 401, "codec.py:1: 401 lines, more than 400"),
        ("codec.py", "\ndef f():\n" + "    a\n" * 50, "codec.py:2: f has 51 lines, more than 50"),
    ],
)
def test_what_is_not_allowed(path: str, text: str, fault: str) -> None:
    """The check finds each kind of fault, with its place, and only that one."""
    found = faults(_PACKAGE | {path: text})

    assert len(found) == 1
    assert fault in found[0]


# A small package for the tests above: everything that they import is there.
_PACKAGE = dict.fromkeys(
    "__init__.py errors.py health.py codec.py observe.py runner.py cli/__init__.py"
    " amqp/__init__.py amqp/queue.py amqp/tap.py amqp/transport.py".split(),
    "",
)


def faults(sources: Mapping[str, str]) -> list[str]:
    """Check a whole package against the tables above.

    Args:
        sources: Text of every file by its path relative to the package.

    Returns:
        One sentence for each fault, beginning with file and line.
    """
    files = [Source(path, text) for path, text in sorted(sources.items())]
    modules = {file.name for file in files}
    heights = _heights()
    found: list[str] = []
    for file in files:
        tree = ast.parse(file.text, file.path)
        if file.name != "__init__" and file.name not in heights:
            found.append(_homeless(file))
        found += _too_long(file, tree)
        for import_ in _imports(tree, file, modules):
            place = f"{file.path}:{import_.line}:"
            found += [f"{place} {fault}" for fault in _import_faults(file, import_, heights)]
    return list(dict.fromkeys(found))


def _import_faults(
    file: Source, import_: Import, heights: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    top, _, inside = import_.module.partition(".")
    keepers = KEEPERS.get(top)
    if keepers and not any(fnmatch(file.path, pattern) for pattern in keepers):
        yield f"only {', '.join(keepers)} may import {top}"
    if top != PACKAGE:
        return
    if import_.lazy and file.name not in LAZY:
        yield f"imports {import_.module} inside a function; imports stand at the top"
    if file.name == "__init__":  # the public names of the whole package
        return
    if not inside:
        yield f"imports {PACKAGE} itself; import from the module that defines the name"
        return
    own, other = file.name.split(".")[0], inside.split(".")[0]
    if own in ONLY_OWN and other not in (own, *ONLY_OWN[own]):
        yield f"{own} imports nothing of {PACKAGE} but {', '.join(ONLY_OWN[own])}, not {inside}"
        return
    mine, theirs = heights.get(file.name), heights.get(inside)
    if mine is None or theirs is None:  # reported where that module is looked at
        return
    if mine <= theirs or (mine[:2] == theirs[:2] and own != other):
        yield f"{file.name} imports {inside}, which does not stand below it"


def _homeless(file: Source) -> str:
    own, _, inside = file.name.partition(".")
    table = f'the row "{own}" of ORDER' if inside and own in ORDER else "FLOORS"
    return f"{file.path}:1: unknown module; add it to the table: {table} in {Path(__file__).name}"


def _heights() -> dict[str, tuple[int, ...]]:
    """Height of every module: floor, place on the floor, place in the package."""
    heights: dict[str, tuple[int, ...]] = {}
    for floor, row in enumerate(FLOORS.values()):
        for place, neighbours in enumerate(row.split()):
            for name in neighbours.split("|"):
                inner = [*ORDER.get(name, "").split(), "__init__"]
                heights[name] = (floor, place, len(inner))
                for position, module in enumerate(inner):
                    heights.setdefault(f"{name}.{module}", (floor, place, position))
    return heights


def _imports(tree: ast.Module, file: Source, modules: set[str]) -> Iterator[Import]:
    """Return every import, TYPE_CHECKING ones and `import_module("...")` of a constant too."""
    lazy = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        for name in _imported_names(node, file):
            yield Import(_module(name, modules), getattr(node, "lineno", 0), node in lazy)


def _imported_names(node: ast.AST, file: Source) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            if level:
                parents = [PACKAGE, *file.name.split(".")][:-level]
                module = ".".join([*parents, module] if module else parents)
            return [f"{module}.{alias.name}" for alias in names]
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [name]
        case _:
            return []


def _module(name: str, modules: set[str]) -> str:
    """Drop what is not a module from the end: `workerkit.errors.Reject` is `workerkit.errors`."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return name
    inside = parts[1:]
    while inside and not {".".join(inside), ".".join([*inside, "__init__"])} & modules:
        inside.pop()
    return ".".join([PACKAGE, *inside])


def _too_long(file: Source, tree: ast.Module) -> Iterator[str]:
    lines = len(file.text.splitlines())
    if lines > LONGEST_FILE:
        yield f"{file.path}:1: {lines} lines, more than {LONGEST_FILE}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield (
                    f"{file.path}:{node.lineno}: {node.name} has {lines} lines,"
                    f" more than {LONGEST_FUNCTION}"
                )
