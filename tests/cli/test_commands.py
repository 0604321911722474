"""The commands `run`, `list` and `check`: what they print, and the exit codes."""

import json
from pathlib import Path

import pytest

from tests.command import workerkit, write_package
from workerkit import __version__

GOOD = """
    from workerkit import AMQPConsumer, AMQPMessage

    class OrderPlaced(AMQPConsumer):
        queues = ["orders", "orders/priority"]

        async def handle(self, body: bytes, message: AMQPMessage) -> None: ...
"""

UNTYPED = """
    from workerkit import AMQPConsumer

    class Untyped(AMQPConsumer):
        queues = ["q"]

        async def handle(self, order): ...
"""

COMMANDS = ("run", "list", "check")


def test_check_without_problems(tmp_path: Path) -> None:
    """`check` counts the consumers and exits with 0, without a broker."""
    write_package(tmp_path, consumers=GOOD)

    done = workerkit("check", "app", cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL="amqp://nowhere/")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "app: 1 consumer, no problems\n"


def test_list_as_json(tmp_path: Path) -> None:
    """`list --json` prints one object per consumer, with the options."""
    write_package(tmp_path, consumers=GOOD)

    done = workerkit("list", "app", "--json", cwd=tmp_path)

    [row] = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"name", "kind", "class", "source", "connection", "options"} <= set(row)
    assert row["name"] == "OrderPlaced"
    assert row["kind"] == "amqp"
    assert row["class"] == "app.consumers.OrderPlaced"
    assert row["source"] == "orders, orders/priority"
    assert row["connection"] == "default"
    assert row["options"]["queues"] == ["orders", "orders/priority"]
    assert row["options"]["concurrency"] == 16
    assert row["options"]["on_invalid"] == "dead_letter"


def test_list_for_people(tmp_path: Path) -> None:
    """`list` names consumer, queues and class, and the source of each option."""
    write_package(tmp_path, consumers=GOOD)

    done = workerkit(
        "list", "app", cwd=tmp_path, WORKERKIT_CONSUMERS__ORDER_PLACED__CONCURRENCY="64"
    )

    first, *options = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert first == "OrderPlaced  amqp  orders, orders/priority  (app.consumers.OrderPlaced)"
    assert "    concurrency = 64  [environment]" in options
    assert "    timeout = 300.0  [default]" in options


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]])
def test_help_and_version(tmp_path: Path, arguments: list[str]) -> None:
    """Help and version are printed to stdout, exit code 0."""
    done = workerkit(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == __version__ or "Usage: workerkit" in done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["run"], ["bogus"], ["run", "app", "--bogus"], ["run", "a", "b"]]
)
def test_usage(tmp_path: Path, arguments: list[str]) -> None:
    """Wrong usage has exit code 2 and no traceback."""
    done = workerkit(*arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Usage: workerkit" in done.stderr + done.stdout


def test_an_unknown_log_level(tmp_path: Path) -> None:
    """An unknown log level is a usage error that lists the levels."""
    write_package(tmp_path, consumers=GOOD)

    done = workerkit("run", "app", "--log-level", "loud", cwd=tmp_path)

    assert done.returncode == 2
    assert "warning" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_package(tmp_path: Path, command: str) -> None:
    """A missing package is one line."""
    done = workerkit(command, "nope", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "cannot import nope: ModuleNotFoundError: No module named 'nope'; "
        f"looked in {tmp_path} and the installed packages\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("path", ["./app", "app/consumers.py"])
def test_a_path_instead_of_a_package(tmp_path: Path, path: str, command: str) -> None:
    """A path is an error that names the package."""
    write_package(tmp_path, consumers=GOOD)

    done = workerkit(command, path, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{path} is a path: write the name of the package: app\n"


def test_a_container_of_another_name(tmp_path: Path) -> None:
    """The error names containers with other names, and the remedy."""
    container = "from workerkit import WorkerContainer\n\nclass Shop(WorkerContainer): ...\n"
    write_package(tmp_path, consumers=GOOD, container=container)

    done = workerkit("check", "app", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "app.container:Container: the module has no 'Container'; found Shop: "
        "rename it, or use --container app.container:Shop"
    )


@pytest.mark.parametrize("field", ["", "dsn: str"])
@pytest.mark.parametrize("command", ["check", "settings", "run"])
def test_settings_of_another_class(tmp_path: Path, field: str, command: str) -> None:
    """A plain `BaseSettings` is one line that names the base class to use."""
    container = f"""
    from dependency_injector import providers
    from pydantic_settings import BaseSettings
    from workerkit import WorkerContainer

    class Own(BaseSettings):
        {field or "pass"}

    class Container(WorkerContainer):
        settings = providers.Singleton(Own)
    """
    write_package(tmp_path, consumers=GOOD, container=container)

    done = workerkit(command, "app", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "provider 'settings' makes app.container.Own (container.py:6), which is not a "
        "WorkerSettings: derive its class from workerkit.WorkerSettings\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_package_without_consumers(tmp_path: Path, command: str) -> None:
    """A package without a consumer is an error that names the remedy."""
    write_package(tmp_path)

    done = workerkit(command, "app", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith("no consumer in app: subclass AMQPConsumer")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_module_that_cannot_be_imported(tmp_path: Path, command: str) -> None:
    """All import errors are reported together, one line each, with the place in the user's code."""
    write_package(
        tmp_path,
        a="import no_such_module_here",
        b="def f():\n    return 1 / 0\n\nf()",
        c="def broken(:\n",
        d="raise ValueError('two\\nlines')",
        e=GOOD,
    )

    done = workerkit(command, "app", cwd=tmp_path)

    a, b, c, d = done.stderr.splitlines()
    assert done.returncode == 2
    assert "app.a" in a
    assert "no_such_module_here" in a
    assert "a.py:1" in a
    assert "app.b" in b
    assert "ZeroDivisionError" in b
    assert "b.py:2" in b
    assert "app.c" in c
    assert "SyntaxError" in c
    assert "c.py, line 1" in c
    assert "two lines" in d


@pytest.mark.parametrize("text", ["1 / 0", "def broken(:", "import no_such_module_here"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_package_that_cannot_be_imported_itself(tmp_path: Path, command: str, text: str) -> None:
    """An error in the `__init__` of the package is one line."""
    write_package(tmp_path, __init__=text, consumers=GOOD)

    done = workerkit(command, "app", cwd=tmp_path)

    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("cannot import app: ")


@pytest.mark.parametrize("module", ["consumers", "container"])
def test_a_module_that_exits(tmp_path: Path, module: str) -> None:
    """A module that calls `sys.exit` during its import is an error that names it."""
    write_package(tmp_path, **{"consumers": GOOD, module: "import sys\nsys.exit(0)"})

    done = workerkit("check", "app", cwd=tmp_path)

    assert done.returncode == 2
    assert f"app.{module}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_faults_of_declarations(tmp_path: Path, command: str) -> None:
    """Errors of classes are lines on stderr without a traceback, exit code 2."""
    write_package(tmp_path, a=UNTYPED, b=UNTYPED.replace("Untyped", "Other"))

    done = workerkit(command, "app", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "app.a.Untyped.handle (a.py:7): parameter 'order' needs a type annotation",
        "app.b.Other.handle (b.py:7): parameter 'order' needs a type annotation",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_traceback(tmp_path: Path, command: str) -> None:
    """`--traceback` adds a traceback to the error."""
    write_package(tmp_path, consumers=UNTYPED)

    done = workerkit(command, "app", "--traceback", cwd=tmp_path)

    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stderr
    assert "parameter 'order' needs a type annotation" in done.stderr


CONTAINER = """
    from dependency_injector import providers
    from pydantic_settings import SettingsConfigDict
    from workerkit import WorkerContainer, WorkerSettings

    class Settings(WorkerSettings):
        model_config = SettingsConfigDict(env_prefix="SHOP_")

    class Container(WorkerContainer):
        settings = providers.Singleton(Settings)

    made = Container()
    number = 3
"""


def concurrency(directory: Path, *arguments: str) -> int:
    """Return the concurrency in force, where a `SHOP_` variable would make it 3."""
    done = workerkit(
        "list",
        "app",
        "--json",
        *arguments,
        cwd=directory,
        SHOP_CONSUMERS__ORDER_PLACED__CONCURRENCY="3",
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: int = json.loads(done.stdout)[0]["options"]["concurrency"]
    return found


def test_without_a_container(tmp_path: Path) -> None:
    """Without a container module, a plain `WorkerContainer` is used."""
    write_package(tmp_path, consumers=GOOD)

    assert concurrency(tmp_path) == 16


def test_the_container_of_the_package(tmp_path: Path) -> None:
    """`PACKAGE.container:Container` is used if it exists."""
    write_package(tmp_path, consumers=GOOD, container=CONTAINER)

    assert concurrency(tmp_path) == 3


@pytest.mark.parametrize("attribute", ["Container", "made"])
def test_another_container(tmp_path: Path, attribute: str) -> None:
    """`--container` selects another one, a class or an instance."""
    write_package(tmp_path, consumers=GOOD)
    write_package(tmp_path, "elsewhere", wiring=CONTAINER)

    assert concurrency(tmp_path, "--container", f"elsewhere.wiring:{attribute}") == 3


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        ("elsewhere.wiring", "write module:attribute"),
        ("elsewhere.wiring:Nothing", "Nothing"),
        ("elsewhere.nothing:Container", "elsewhere.nothing"),
        ("elsewhere.wiring:number", "is not a WorkerContainer"),
        ("elsewhere.wiring:Settings", "is not a WorkerContainer"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_container(tmp_path: Path, container: str, reason: str, command: str) -> None:
    """A missing container, or an object that is not one, is one line that names it."""
    write_package(tmp_path, consumers=GOOD)
    write_package(tmp_path, "elsewhere", wiring=CONTAINER)

    done = workerkit(command, "app", "--container", container, cwd=tmp_path)

    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    assert container in line
    assert reason in line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "import no_such_module_here",
            "ModuleNotFoundError: No module named 'no_such_module_here'",
        ),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("Contaner = 1", "'Container'"),
    ],
)
def test_a_container_that_cannot_be_created(tmp_path: Path, text: str, reason: str) -> None:
    """An error in the container module is one line with its reason."""
    write_package(tmp_path, consumers=GOOD, container=text)

    done = workerkit("check", "app", cwd=tmp_path)

    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    assert "app.container" in line
    assert reason in line


def test_settings_that_raise(tmp_path: Path) -> None:
    """Settings that cannot be created, for any reason, are one line with the reason."""
    container = CONTAINER.replace(
        "class Container",
        "def broken(): raise RuntimeError('no vault')\n\n    class Container",
    ).replace("Singleton(Settings)", "Singleton(broken)")
    write_package(tmp_path, consumers=GOOD, container=container)

    done = workerkit("check", "app", cwd=tmp_path)

    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    assert "RuntimeError: no vault" in line


def test_only_an_unknown_consumer(tmp_path: Path) -> None:
    """`--only` with an unknown name is an error with the most similar name."""
    write_package(tmp_path, consumers=GOOD)

    done = workerkit("run", "app", "--only", "OrderPlacd", "--only", "Zzz", cwd=tmp_path)

    first, second = done.stderr.splitlines()
    assert done.returncode == 2
    assert first.endswith("there is no consumer of that name; did you mean 'OrderPlaced'?")
    assert second.startswith("--only Zzz: there is no consumer of that name")


async def test_only_some(tmp_path: Path) -> None:
    """`--only` runs only the consumers with these names, in any spelling."""
    others = GOOD.replace("OrderPlaced", "Other").replace('"orders', '"others')
    write_package(tmp_path, consumers=GOOD, others=others)

    done = workerkit(
        "run",
        "app",
        "--only",
        "order_placed",
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL="amqp://user:hunter22@127.0.0.1:1/shop",
        WORKERKIT_START_TIMEOUT="0.1",
        WORKERKIT_LOG__FORMAT="text",
    )

    assert done.returncode == 1
    assert "OrderPlaced" in done.stderr
    assert "Other" not in done.stderr


def test_the_banner(tmp_path: Path) -> None:
    """The first lines of a run name its consumers and the broker, without the password."""
    write_package(tmp_path, consumers=GOOD)

    done = workerkit(
        "run",
        "app",
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL="amqp://user:hunter22@127.0.0.1:1/shop",
        WORKERKIT_START_TIMEOUT="0.1",
        WORKERKIT_LOG__FORMAT="text",
    )

    first, second, *_ = done.stderr.splitlines()
    assert first.endswith(f"workerkit {__version__}")
    assert second.startswith(
        "    OrderPlaced: amqp orders, orders/priority, amqp://user@127.0.0.1:1/shop"
    )
    assert "hunter22" not in done.stdout + done.stderr


def test_the_log_level_of_the_command_line(tmp_path: Path) -> None:
    """`--log-level` overrides the setting."""
    write_package(tmp_path, consumers=GOOD)

    done = workerkit(
        "run",
        "app",
        "--log-level",
        "ERROR",
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL="amqp://127.0.0.1:1/",
        WORKERKIT_START_TIMEOUT="0.1",
        WORKERKIT_LOG__LEVEL="debug",
        WORKERKIT_LOG__FORMAT="text",
    )

    assert done.returncode == 1
    assert " ERROR " in done.stderr
    assert " INFO " not in done.stderr


def test_tests_and_main_are_not_imported(tmp_path: Path) -> None:
    """Discovery skips `__main__`, `conftest` and `tests` at every depth."""
    write_package(tmp_path, consumers=GOOD, __main__="1 / 0", conftest="1 / 0", tests="1 / 0")
    write_package(tmp_path / "app", "inner", conftest="1 / 0")
    write_package(tmp_path / "app" / "inner", "tests", test_x="1 / 0")

    done = workerkit("check", "app", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_container_and_a_module_that_are_both_broken(tmp_path: Path) -> None:
    """Every problem is reported, even if the container cannot be created."""
    write_package(tmp_path, consumers="import no_such_module", container="1 / 0")

    done = workerkit("check", "app", cwd=tmp_path)

    first, second = done.stderr.splitlines()
    assert "ZeroDivisionError" in first
    assert "cannot import app.consumers" in second
    assert done.returncode == 2
