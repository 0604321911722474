"""Which classes are found, and what is said where they cannot be."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import write_package
from workerkit.app.discovery import discover
from workerkit.errors import DeclarationError

CONSUMER = """
    from workerkit import AMQPConsumer

    class {name}(AMQPConsumer):
        queues = ["q"]

        async def handle(self, body: bytes) -> None: ...
"""


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make packages in `tmp_path` importable, and forget them afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def consumer(name: str) -> str:
    """The text of a module with one consumer."""
    return CONSUMER.format(name=name)


def found(*packages: str) -> list[str]:
    """The names of the classes that are found."""
    return [f"{each.__module__}.{each.__qualname__}" for each in discover(packages)]


def faults(*packages: str) -> tuple[str, ...]:
    """Return the faults of packages that cannot be searched."""
    with pytest.raises(DeclarationError) as raised:
        discover(packages)
    return raised.value.faults


def test_every_module_is_searched(tmp_path: Path) -> None:
    """The package itself, its modules and the packages inside it are imported and searched."""
    write_package(tmp_path, __init__=consumer("A"), b=consumer("B"))
    write_package(tmp_path / "app", "inner", __init__=consumer("C"), d=consumer("D"))

    names = found("app")

    assert sorted(names) == ["app.A", "app.b.B", "app.inner.C", "app.inner.d.D"]


def test_several_packages(tmp_path: Path) -> None:
    """Classes of all packages are found, each once, although packages overlap."""
    write_package(tmp_path, "one", a=consumer("A"))
    write_package(tmp_path, "two", b=consumer("B"))

    names = found("one", "two", "one.a")

    assert names == ["one.a.A", "two.b.B"]


def test_a_single_module(tmp_path: Path) -> None:
    """What is searched may also be a module that is no package."""
    write_package(tmp_path, a=consumer("A"), b=consumer("B"))

    assert found("app.a") == ["app.a.A"]


def test_what_is_imported_from_elsewhere_is_not_found_twice(tmp_path: Path) -> None:
    """A class counts where it is written, not where it is imported or has another name."""
    write_package(
        tmp_path,
        a=consumer("A") + "\n    Again = A\n",
        b="from app.a import A\nfrom workerkit import AMQPConsumer, Consumer\n",
    )

    assert found("app") == ["app.a.A"]


def test_abstract_bases_are_not_run(tmp_path: Path) -> None:
    """`abstract=True` makes a class a base only; its children are found."""
    write_package(
        tmp_path,
        a="""
            from workerkit import AMQPConsumer

            class Base(AMQPConsumer, abstract=True):
                queues = ["q"]

                async def handle(self, body: bytes) -> None: ...

            class Child(Base): ...

            class Grandchild(Child): ...
        """,
    )

    assert found("app") == ["app.a.Child", "app.a.Grandchild"]


@pytest.mark.parametrize("name", ["__main__", "conftest", "tests"])
def test_what_is_left_alone(tmp_path: Path, name: str) -> None:
    """`__main__`, `conftest` and `tests` are not imported."""
    write_package(tmp_path, **{"a": consumer("A"), name: "1 / 0"})

    assert found("app") == ["app.a.A"]


def test_order_is_that_of_the_text(tmp_path: Path) -> None:
    """Classes of a module come in the order in which they are written."""
    write_package(tmp_path, a=consumer("Z") + consumer("A") + consumer("M"))

    assert found("app") == ["app.a.Z", "app.a.A", "app.a.M"]


def test_all_import_errors_at_once(tmp_path: Path) -> None:
    """Modules that cannot be imported are all named, with reason and place, and the others too."""
    write_package(tmp_path, a="import no_such_module_here", b="1 / 0", c=consumer("C"))
    write_package(tmp_path / "app", "inner", __init__="{}['key']", d="never")

    a, b, inner = faults("app", "nope")[:3]

    assert a.startswith("cannot import app.a: ModuleNotFoundError: No module named 'no_such_modul")
    assert a.endswith("a.py:1)")
    assert b.startswith("cannot import app.b: ZeroDivisionError: division by zero (")
    assert b.endswith("b.py:1)")
    assert inner.startswith("cannot import app.inner: KeyError: 'key' (")
    [nope] = faults("app", "nope")[3:]
    assert nope.startswith(
        "cannot import nope: ModuleNotFoundError: No module named 'nope'; looked in"
    )


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("./app", "app"),
        ("app/", "app"),
        ("app/consumers.py", "app"),
        ("app/inner/more.py", "app"),
        ("single.py", "single"),
        ("nowhere/consumers.py", "nowhere"),
        ("src/shop", "shop, in the directory {here}/src"),
    ],
)
def test_a_path_instead_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, meant: str
) -> None:
    """If the path of a package is given, the error says its name."""
    monkeypatch.chdir(tmp_path)
    write_package(tmp_path, consumers=consumer("A"))
    write_package(tmp_path / "app", "inner", more="")
    write_package(tmp_path / "src", "shop", consumers=consumer("B"))

    assert faults(path) == (
        f"{path} is a path: write the name of the package: {meant.format(here=tmp_path)}",
    )


def test_the_place_of_an_error_is_in_the_users_code(tmp_path: Path) -> None:
    """Where a library raises, the line of the user's that called it is named."""
    write_package(tmp_path, a="import json\n\njson.loads('{')\n")

    [fault] = faults("app")

    assert "JSONDecodeError" in fault
    assert fault.endswith("a.py:3)")


def test_a_module_that_exits(tmp_path: Path) -> None:
    """`sys.exit` at import is a fault of that module, not the end of the command."""
    write_package(tmp_path, a="import sys\nsys.exit(0)", b=consumer("B"))

    [fault] = faults("app")

    assert fault.startswith("cannot import app.a: SystemExit")


def test_no_consumer_at_all(tmp_path: Path) -> None:
    """Packages without a consumer are a fault that names them."""
    write_package(tmp_path, "one")
    write_package(tmp_path, "two", a="x = 1")

    [fault] = faults("one", "two")

    assert fault == "no consumer in one, two: subclass AMQPConsumer in one of its modules"
