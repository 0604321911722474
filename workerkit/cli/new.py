"""The command `workerkit new`."""

import json
import keyword
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path
from secrets import token_hex
from typing import Annotated
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer

from workerkit.cli.parameters import Traceback, faults
from workerkit.cli.scaffold import FEATURES, TEMPLATE_PACKAGE, Names, files, kept
from workerkit.errors import ConfigurationError
from workerkit.safe_text import one_line

MAX_NAME_LENGTH = 18
"""Longest name in characters. With a longer one, some lines of a project would be too long."""

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_DESCRIPTIONS = {
    "tests": "its tests, at three levels",
    "migrations": "the schema of its database",
    "demo.py": "the service with customers, on your machine: make demo",
    "Makefile": "make help lists the targets",
    "Dockerfile": "its image",
    "compose.yaml": "the image with all that it needs, and monitoring: docker compose up",
    "deploy": "for Kubernetes, and for systemd",
    "monitoring": "a dashboard for Grafana, and alerts for Prometheus",
    "README.md": "where to begin",
}


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name of the project, such as my-orders.")
    ],
    with_: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="FEATURES",
            help=f"What the worker consumes: some of {','.join(FEATURES)}; all by default.",
        ),
    ] = ",".join(FEATURES),
    path: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The directory of the project; NAME by default.", show_default=False
        ),
    ] = None,
    traceback: Traceback = False,
) -> None:
    """Create a project: a service with tests, a database, an image and monitoring.

    It works as it is. Nothing that exists is overwritten.
    """
    with faults(traceback):
        features = features_of(with_)
        directory = path or Path(name)
        written = create(name, features, directory, template_directory())
    print(one_line(f"created {directory}: {len(written)} files, with {', '.join(features)}"))
    for entry, description in _summary(written, package_of(name)):
        print(f"  {entry:<20} {description}".rstrip())
    print("\nNow type:")
    print(one_line(f"  cd {shlex.quote(str(directory))}"))
    # A project needs workerkit as well: from the same place, if that is no index.
    place = origin(_direct_url())
    print(one_line(f"  make demo WORKERKIT={shlex.quote(place)}" if place else "  make demo"))


def package_of(name: str) -> str:
    """Return the package of the project *name*."""
    return name.replace("-", "_")


def template_directory() -> Path:
    """Return the template: inside of the installed package, or beside it in a clone."""
    package = Path(__file__).parents[1]
    installed = package / "app_template"
    return installed if installed.exists() else package.parent / "app_template"


def origin(direct_url: str | None) -> str:
    """Return what pip installed workerkit from: a clone, a wheel, or an address for pip.

    Args:
        direct_url: The text of `direct_url.json` (PEP 610); None after an installation from an
            index.

    Returns:
        Empty for an index, and for files that are no longer there.
    """
    if direct_url is None:
        return ""
    found = json.loads(direct_url)
    url: str = found["url"]
    if vcs := found.get("vcs_info"):
        return f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    if not url.startswith("file:"):
        return url
    path = Path(url2pathname(urlsplit(url).path))
    return str(path) if path.exists() else ""


def _direct_url() -> str | None:
    try:
        return distribution("workerkit").read_text("direct_url.json")
    except PackageNotFoundError:
        return None


def features_of(text: str) -> list[str]:
    """Return the features that the option `--with` names.

    Raises:
        ConfigurationError: One of them is unknown, or there is none.
    """
    chosen = list(dict.fromkeys(each.strip() for each in text.split(",") if each.strip()))
    unknown = [each for each in chosen if each not in FEATURES]
    known = ", ".join(FEATURES)
    if unknown:
        raise ConfigurationError(
            f"--with: {unknown[0]!r} is unknown; write one or more of {known}, with commas"
        )
    if not chosen:
        raise ConfigurationError(f"--with names nothing; write one or more of {known}, with commas")
    return chosen


def create(name: str, features: Sequence[str], directory: Path, template: Path) -> list[Path]:
    """Create a project, whole or not at all.

    Args:
        name: `my-orders` or `my_orders`; both have the package `my_orders`.
        features: Some of `FEATURES`.
        directory: The new one; its parents are created. It may exist if it is empty.
        template: The directory of the template.

    Returns:
        The files, relative to the directory.

    Raises:
        ConfigurationError: The name or the directory cannot be used.
    """
    if reason := _refused(name, template):
        raise ConfigurationError(reason)
    names = Names(name.replace("_", "-"), package_of(name))
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigurationError(
                f"{directory} already exists and is not an empty directory; nothing was written:"
                " choose another one with --path"
            )
        return _write(dict(files(template, names, features)), directory)
    except OSError as error:
        raise ConfigurationError(
            f"cannot create {directory}: {error.strerror or error}; choose another directory"
            " with --path"
        ) from error


def _write(texts: Mapping[Path, str], directory: Path) -> list[Path]:
    """Write everything into a temporary directory, and then move it to *directory*."""
    target = directory.absolute()
    # An empty directory is kept, because it may be the current one of a shell.
    parent = target if target.exists() else target.parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = parent / f".new-{token_hex(8)}"
    temporary.mkdir()
    try:
        for path, text in texts.items():
            file = temporary / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
        if parent is target:
            for entry in temporary.iterdir():
                entry.rename(target / entry.name)
            temporary.rmdir()
        else:
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sorted(texts)


def _refused(name: str, template: Path) -> str:
    """Return why a project cannot have this name; empty if it can."""
    if not _NAME.fullmatch(name):
        similar = "-".join(re.findall(r"[a-z0-9]+", name.lower())).lstrip("-0123456789")
        possible = name.isascii() and _NAME.fullmatch(similar) and not _refused(similar, template)
        return (
            f"the name {name!r} is not valid: write lower-case letters and digits of ASCII, with a"
            " letter first and single hyphens or underscores between words, such as"
            f" {similar if possible else 'my-orders'}"
        )
    if len(name) > MAX_NAME_LENGTH:
        return (
            f"the name {name!r} has {len(name)} characters; at most {MAX_NAME_LENGTH} are possible"
        )
    reason = _conflict(package_of(name), template)
    return f"the name {name!r} is not possible: {reason}; choose another one" if reason else ""


def _conflict(package: str, template: Path) -> str:
    """Return what else has the name of a package; empty if nothing has."""
    entries = {path.parts[0].partition(".")[0]: path.parts[0] for path in kept(template)}
    if keyword.iskeyword(package):
        return f"{package} is a keyword of Python"
    # The module `test` is missing in the list.
    if package in sys.stdlib_module_names or package == "test":
        return f"{package} is a module of Python's standard library"
    if package in _requirements(template):
        return f"the project depends on {package}"
    if package != TEMPLATE_PACKAGE and package in entries:
        return f"the project has another {entries[package]}"
    if _is_installed(package):
        return f"a package {package} is installed"
    return ""


def _is_installed(package: str) -> bool:
    """Return whether a package could be imported from elsewhere than the current directory."""
    elsewhere = [each for each in sys.path if Path(each).resolve() != Path.cwd()]
    return PathFinder.find_spec(package, elsewhere) is not None


def _requirements(template: Path) -> Iterator[str]:
    """Return the distributions that a project depends on, with the names that packages have."""
    import tomllib

    project = tomllib.loads((template / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for requirement in chain(project["dependencies"], *extras):
        yield re.split(r"[^\w.-]", requirement)[0].lower().replace("-", "_")


def _summary(written: Sequence[Path], package: str) -> Iterator[tuple[str, str]]:
    """Return the entries of the directory that a newcomer opens, and then the others together."""
    entries = dict.fromkeys(path.parts[0] for path in written)
    described = {package: "the service"} | _DESCRIPTIONS
    for entry, description in described.items():
        if entry in entries:
            slash = "/" if Path(entry) not in written else ""
            yield entry + slash, description
    yield ", ".join(entry for entry in entries if entry not in described), ""
