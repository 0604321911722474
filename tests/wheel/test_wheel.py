"""The released files: what is in them, and what a user gets who installs the wheel.

One fresh environment, in which pip has installed the wheel and what a project depends on, serves
all projects: one for each combination of features.
"""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from configparser import ConfigParser
from itertools import combinations
from pathlib import Path

import pytest

from tests.command import Application, process
from tests.waiting import eventually
from workerkit.cli.new import MAX_NAME_LENGTH, template_directory
from workerkit.cli.scaffold import FEATURES, kept

ROOT = Path(__file__).parents[2]
VERSION = ConfigParser()
VERSION.read(ROOT / "setup.cfg")
NUMBER = VERSION["metadata"]["version"]
NOT_OURS = (
    *(".git", ".venv*", "*_cache", ".hypothesis", ".coverage*", "htmlcov", "__pycache__"),
    *("node_modules", "_build", "build", "dist", "*.egg-info"),
)
# What a working copy may have, and a release must not.
LEFTOVERS = ("shop.db", "shop/__pycache__/x.pyc", ".mypy_cache/x", ".pytest_cache/x", ".env")
EPOCH = "1700000000"
COMBINATIONS = [
    chosen for count in range(1, len(FEATURES) + 1) for chosen in combinations(FEATURES, count)
]
WHOLE = "-".join(FEATURES)
# This one takes longer than all other tests of a project, and features make no difference to it.
SLOW = "not two_processes"
CREATE = """
import sys
from workerkit.cli.commands import app
for line in sys.stdin:
    app(["new", *line.split()], standalone_mode=False)
"""
pytestmark = pytest.mark.timeout(900)


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command without the settings of this process; return its output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this working copy, with leftovers."""
    copy = tmp_path_factory.mktemp("source") / "workerkit"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_OURS))
    for name in LEFTOVERS:
        path = copy / "app_template" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("left over")
    return copy


@pytest.fixture(scope="module")
def released(source: Path) -> list[Path]:
    """The sdist, and the wheel that is built from it."""
    command = (sys.executable, "-m", "build", "--outdir", "../dist")
    run(*command, cwd=source, SOURCE_DATE_EPOCH=EPOCH)
    return sorted((source.parent / "dist").iterdir())


@pytest.fixture(scope="module")
def wheel(released: list[Path]) -> Path:
    """The wheel."""
    [wheel] = [path for path in released if path.suffix == ".whl"]
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The programs of a fresh environment with the wheel, and with what a project depends on."""
    environment = wheel.parent.parent / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    project = tomllib.loads((template_directory() / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    install(environment / "bin", wheel, *needed)
    return environment / "bin"


@pytest.fixture(scope="module")
def projects(installed: Path) -> dict[str, Path]:
    """A project of each combination, by its features; the names are short and long."""
    root = installed.parent.parent / "projects"
    root.mkdir()
    names = {WHOLE: "o" * MAX_NAME_LENGTH, FEATURES[0]: "ab"}
    found = {"-".join(chosen): root / "-".join(chosen) for chosen in COMBINATIONS}
    lines = [
        f"{names.get(features, 'my-orders')} --with {features.replace('-', ',')} --path {path}\n"
        for features, path in found.items()
    ]
    subprocess.run(
        [installed / "python", "-c", CREATE],
        cwd=root,
        env={**os.environ, "PYTHONPATH": ""},
        input="".join(lines),
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    # mypy takes files with the same path, time and size for the same: they share its cache.
    for time, directory in enumerate(found.values(), int(EPOCH)):
        for path in directory.rglob("*"):
            os.utime(path, (time, time))
    return found


def install(programs: Path, *what: str | Path) -> None:
    """Install something with the pip of this environment, because the fresh one has none."""
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    run(*pip, "install", "--quiet", "--no-compile", *what, cwd=programs)


def in_projects(
    installed: Path, tool: str, jobs: int, directories: Sequence[Path], *arguments: str
) -> str:
    """Run a tool in projects; return the output of those in which it failed."""
    script = Path(__file__).with_name("in_projects.py")
    options = (tool, str(jobs), *map(str, directories), "--", *arguments)
    output = run(installed / "python", script, *options, cwd=installed)
    return failures(output.splitlines(), tool, directories)


def failures(lines: Sequence[str], tool: str, directories: Sequence[Path]) -> str:
    """Return the output of the projects whose tool did not end with 0."""
    ended = dict(line.split()[1:] for line in lines if line.startswith("end "))
    failed = [each for each in directories if ended.get(str(each)) != "0"]
    return "".join(f"{each.name}:\n{(each / f'{tool}.log').read_text()}" for each in failed)


def test_the_wheel_is_complete(wheel: Path) -> None:
    """It has the package with all its data, the template, the metadata, and nothing else."""
    package = ROOT / "workerkit"
    own = {
        f"workerkit/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    template = {f"workerkit/app_template/{path.as_posix()}" for path in kept(template_directory())}
    metadata = "METADATA RECORD WHEEL entry_points.txt licenses/LICENSE top_level.txt".split()

    with zipfile.ZipFile(wheel) as archive:
        names = [each for each in archive.namelist() if not each.endswith("/")]

    assert len(names) == len(set(names))
    assert set(names) == own | template | {
        f"workerkit-{NUMBER}.dist-info/{each}" for each in metadata
    }


def test_the_sdist_is_complete(released: list[Path], source: Path) -> None:
    """It has what a clone has, to build and to test it, and no leftovers."""
    [sdist] = [path for path in released if path.name.endswith(".tar.gz")]
    cloned = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and ".egg-info" not in str(path)
    }
    left = {f"app_template/{each}" for each in LEFTOVERS}

    with tarfile.open(sdist) as archive:
        names = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}

    generated = {each for each in names if "egg-info/" in each} | {"PKG-INFO"}
    assert names - generated == cloned - left


def test_the_wheel_is_reproducible(wheel: Path, source: Path, tmp_path: Path) -> None:
    """Built from the clone it has the same bytes as built from the sdist."""
    command = (sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path)
    run(*command, cwd=source, SOURCE_DATE_EPOCH=EPOCH)

    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_index_would_take_it(released: list[Path]) -> None:
    """The metadata, and the long description, have no fault."""
    run(sys.executable, "-m", "twine", "check", "--strict", *released, cwd=ROOT)


def test_the_installed_command(installed: Path) -> None:
    """The wheel brings the command, with its version."""
    assert run(installed / "workerkit", "--version", cwd=installed) == f"{NUMBER}\n"


def test_style(installed: Path, projects: dict[str, Path]) -> None:
    """The style of each project passes its own rules, however long its name is."""
    run(installed / "ruff", "check", *projects.values(), cwd=installed)
    run(installed / "ruff", "format", "--check", *projects.values(), cwd=installed)


def test_types(installed: Path, projects: dict[str, Path]) -> None:
    """The types of each project pass, with those of the installed package."""
    failed = in_projects(installed, "mypy", 1, list(projects.values()))

    assert not failed, failed


def test_tests(installed: Path, projects: dict[str, Path]) -> None:
    """The tests of each project pass; one that features do not change runs once."""
    whole = projects[WHOLE]
    others = [each for each in projects.values() if each != whole]

    failed = in_projects(installed, "pytest", 1, [whole])
    failed += in_projects(installed, "pytest", 2, others, "-k", SLOW)

    assert not failed, failed


async def test_demos(installed: Path, projects: dict[str, Path]) -> None:
    """The demo of each project handles what it consumes, and ends by SIGINT without an error."""
    script = Path(__file__).with_name("in_projects.py")
    directories = list(projects.values())
    # One after another: two that start at the same moment might choose the same free port.
    command = (str(installed / "python"), str(script), "demo", "1")
    async with process(*command, *map(str, directories), cwd=installed, PYTHONPATH="") as demos:
        for directory in directories:
            await interrupt_working(demos, directory)
        await demos.ended(120.0)

    failed = failures(demos.out, "demo", directories)
    assert not failed, failed
    for directory in directories:
        assert "Traceback" not in (directory / "demo.log").read_text(), directory.name


async def interrupt_working(demos: Application, directory: Path) -> None:
    """Wait until all that a demo consumes has been handled, and send it SIGINT."""
    log = directory / "demo.log"
    features = set(directory.name.split("-"))
    wanted = [" handled "] if features - {"periodic"} else []
    wanted += [" run finished "] if "periodic" in features else []

    def handled() -> bool:
        return log.exists() and all(each in log.read_text() for each in wanted)

    def pid() -> int:
        return int(next(demos.lines(f"start {directory} "), "0"))

    await eventually(handled, 120.0, what=f"{wanted} in {log}")
    os.kill(await eventually(pid), signal.SIGINT)


def test_a_project_is_installed(installed: Path, projects: dict[str, Path]) -> None:
    """pip can install a project, and all that it depends on is there."""
    install(installed, "--no-deps", projects[WHOLE])

    run(sys.executable, "-m", "pip", "--python", installed / "python", "check", cwd=installed)
