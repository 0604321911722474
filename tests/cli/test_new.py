"""`workerkit new`: what it writes, prints and refuses."""

import json
import os
import shlex
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from tests.command import workerkit
from workerkit.cli.new import create, features_of, origin, template_directory
from workerkit.cli.scaffold import FEATURES
from workerkit.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


def files(directory: Path) -> dict[str, str]:
    """Return the texts of all files in a directory, hidden ones as well."""
    paths = (Path(base) / name for base, _, names in os.walk(directory) for name in names)
    return {path.relative_to(directory).as_posix(): path.read_text() for path in paths}


def test_a_project(tmp_path: Path) -> None:
    """It is created whole, has its own names only, and the command prints what to type next."""
    done = workerkit("new", "my-orders", cwd=tmp_path)
    written = files(tmp_path / "my-orders")

    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "my-orders"]
    assert "my_orders/container.py" in written
    assert 'name = "my-orders"' in written["pyproject.toml"]
    assert 'env_prefix="MY_ORDERS_"' in written["my_orders/settings.py"]
    # The tests run in an installation of a clone.
    *_, title, change, demo = done.stdout.splitlines()
    assert [title, change] == ["Now type:", "  cd my-orders"]
    assert demo == f"  make demo WORKERKIT={shlex.quote(str(ROOT))}"
    assert f"created my-orders: {len(written)} files" in done.stdout
    assert len(done.stdout.splitlines()) < 24
    checked = workerkit("check", "my_orders", cwd=tmp_path / "my-orders")
    assert checked.returncode == 0, checked.stderr


def test_nothing_of_the_template_remains(tmp_path: Path) -> None:
    """A project names neither the template nor the comments that divide it, nor has it caches."""
    for number, features in enumerate(["amqp", "http", "sse", "periodic", ",".join(FEATURES)]):
        directory = tmp_path / str(number)
        create("my-orders", features.split(","), directory, template_directory())
        for path, text in files(directory).items():
            assert not {"__pycache__", ".mypy_cache", ".pytest_cache"} & set(Path(path).parts)
            lines = [line.strip(" #<!->").lower() for line in text.splitlines()]
            assert "end" not in lines, path
            assert not [line for line in lines if line in {f"with {each}" for each in FEATURES}]
            for word in ("scaffold", "SHOP_", "shop-worker", "from shop"):
                assert word not in text, path


def test_a_directory_of_ones_own(tmp_path: Path) -> None:
    """`--path` names the directory: one that is missing, or that is empty, such as this one."""
    here = tmp_path / "here"
    here.mkdir()
    inode = here.stat().st_ino

    missing = workerkit("new", "orders", "--path", "a b/c", cwd=tmp_path)
    empty = workerkit("new", "orders", "--with", " http ,sse", "--path", ".", cwd=here)

    assert missing.returncode == empty.returncode == 0
    assert (tmp_path / "a b" / "c" / "orders" / "container.py").exists()
    assert "  cd 'a b/c'\n" in missing.stdout
    assert (here / "orders" / "container.py").exists()
    assert here.stat().st_ino == inode, "a shell may be in it"
    assert not [each for each in here.iterdir() if each.name.startswith(".new")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("class", "class is a keyword of Python"),
        ("json", "json is a module of Python's standard library"),
        ("test", "test is a module of Python's standard library"),
        ("tests", "the project has another tests"),
        ("typing-extensions", "a package typing_extensions is installed"),
        ("workerkit", "the project depends on workerkit"),
        ("sqlalchemy", "the project depends on sqlalchemy"),
        ("My Orders", "such as my-orders"),
        ("1st-orders", "such as st-orders"),
        ("Test", "such as my-orders"),
        ("größe", "such as my-orders"),
        ("../orders", "such as orders"),
        ("a/b", "such as a-b"),
        ("a__b", "such as a-b"),
        ("orders\n", "such as orders"),
        ("", "such as my-orders"),
        ("o" * 19, "has 19 characters; at most 18 are possible"),
    ],
)
def test_a_name_that_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    """The error says why, and what is possible; nothing is written."""
    with pytest.raises(ConfigurationError) as raised:
        create(name, FEATURES, tmp_path / "project", template_directory())

    assert str(raised.value).startswith(f"the name {name!r} ")
    assert reason in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path: Path) -> None:
    """Each is one line on stderr, and exit code 2."""
    name = workerkit("new", "x\nERROR y", cwd=tmp_path)
    unknown = workerkit("new", "orders", "--with", "amqp,kafka", cwd=tmp_path)
    none = workerkit("new", "orders", "--with", ",", cwd=tmp_path)

    known = "write one or more of amqp, http, sse, periodic, with commas\n"
    assert name.returncode == unknown.returncode == none.returncode == 2
    assert len(name.stderr.splitlines()) == 1
    assert unknown.stderr == f"--with: 'kafka' is unknown; {known}"
    assert none.stderr == f"--with names nothing; {known}"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A directory with anything in it, and a file, are refused and stay as they are."""
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / ".hidden").write_text("mine")
    (tmp_path / "file").write_text("mine")

    full = workerkit("new", "orders", cwd=tmp_path)
    file = workerkit("new", "other", "--path", "file", cwd=tmp_path)
    below = workerkit("new", "other", "--path", "file/below", cwd=tmp_path)

    assert full.returncode == file.returncode == below.returncode == 2
    assert full.stderr == (
        "orders already exists and is not an empty directory; nothing was written: choose another"
        " one with --path\n"
    )
    assert below.stderr.startswith("cannot create file/below: ")
    assert files(tmp_path) == {"orders/.hidden": "mine", "file": "mine"}


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_is_left_half_written(tmp_path: Path, exists: bool) -> None:
    """If a file cannot be written, the project does not exist at all."""
    template = tmp_path / "template"
    shutil.copytree(template_directory(), template)
    # No file system has names of that length.
    (template / "monitoring" / "shop-worker-{}".format("x" * 240)).write_text("")
    directory = tmp_path / "new" / "orders"
    directory.parent.mkdir()
    if exists:
        directory.mkdir()

    with pytest.raises(ConfigurationError, match=r"^cannot create .*/new/orders: File name too"):
        create("o" * 18, FEATURES, directory, template)

    assert files(directory.parent) == {}
    assert list(directory.parent.iterdir()) == [directory] * exists


def test_where_workerkit_comes_from(tmp_path: Path) -> None:
    """A project needs to be told about a clone or a wheel, and not about an index."""
    clone = tmp_path / "a clone"
    clone.mkdir()
    commit = {"vcs": "git", "commit_id": "abc"}

    assert origin(None) == ""
    assert origin(json.dumps({"url": clone.as_uri(), "dir_info": {}})) == str(clone)
    assert origin(json.dumps({"url": (tmp_path / "gone").as_uri(), "archive_info": {}})) == ""
    assert origin('{"url": "https://h/w.whl", "archive_info": {}}') == "https://h/w.whl"
    assert origin(json.dumps({"url": "https://h/w", "vcs_info": commit})) == "git+https://h/w@abc"


def test_make_says_what_to_do_without_workerkit_on_an_index(tmp_path: Path) -> None:
    """pip's own message does not help someone who has a clone."""
    project = tmp_path / "my-orders"
    create("my-orders", ["periodic"], project, template_directory())
    # pip fails, because there is none.
    venv.create(project / ".venv")

    failed = make(project, "install")
    planned = make(project, "--dry-run", "install", "WORKERKIT=/a clone")

    assert failed.returncode == 2
    assert "make install WORKERKIT=DIR" in failed.stderr
    assert planned.returncode == 0
    assert "wheel --quiet --no-deps --wheel-dir . '/a clone'\n" in planned.stdout


def make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make` in a project."""
    return subprocess.run(
        ["make", *arguments], cwd=project, capture_output=True, text=True, check=False
    )


def test_a_feature_that_is_named_twice_is_one() -> None:
    """It is listed once."""
    assert features_of("amqp, http,amqp") == ["amqp", "http"]
