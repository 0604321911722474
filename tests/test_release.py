"""What a release says about itself: its version, its licenses, and its changes."""

import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import workerkit
from tests.licenses import is_permissive, license_of, runtime_distributions
from workerkit.cli.new import template_directory

ROOT = Path(__file__).parents[1]


@pytest.fixture
def version() -> str:
    """The version that setup.cfg states."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config["metadata"]["version"]


def test_the_version_is_that_of_setup_cfg(version: str) -> None:
    """The installed package has it, and no file of the package repeats it."""
    repeating = [
        path.name
        for path in (ROOT / "workerkit").rglob("*.py")
        if re.search(rf"""["']{re.escape(version)}["']""", path.read_text())
    ]

    assert workerkit.__version__ == version
    assert repeating == []


def test_the_changelog_has_the_version(version: str) -> None:
    """What is not released yet is above it, and every other version is an earlier one."""
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[:2] == ["Unreleased", version]


def test_a_project_accepts_this_version(version: str) -> None:
    """The requirement of the template includes the version that it comes with."""
    project = tomllib.loads((template_directory() / "pyproject.toml").read_text())["project"]
    [own] = [each for each in project["dependencies"] if each.startswith("workerkit")]

    assert Requirement(own).specifier.contains(version)


def test_the_licenses_of_what_we_import() -> None:
    """Each is one that allows every use."""
    stated = {name: license_of(each) for name, each in runtime_distributions().items()}

    assert len(stated) > 30
    assert {name: each for name, each in stated.items() if not is_permissive(each)} == {}


@pytest.mark.parametrize(
    ("license_", "permissive"),
    [
        ("MIT", True),
        ("Apache-2.0 AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("none stated", False),
    ],
)
def test_which_licenses_are_permissive(license_: str, permissive: bool) -> None:
    """Every part of an expression must be, by one of its choices."""
    assert is_permissive(license_) == permissive
