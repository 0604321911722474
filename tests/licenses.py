"""List the licenses of everything that an installed workerkit may import: `make licenses`."""

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution

from packaging.requirements import Requirement

PERMISSIVE = {
    "Apache-2.0",
    "Apache Software License",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSD License",
    "3-Clause BSD License",
    "ISC License (ISCL)",
    "MIT",
    "MIT License",
    "PSF-2.0",
    "Python Software Foundation License",
}
"""Licenses that allow a user to do everything but to remove them: SPDX identifiers, and the names
that older packages have."""


def runtime_distributions() -> dict[str, Distribution]:
    """Return workerkit's dependencies by name: those of its extras, and those of all of them."""
    extras = distribution("workerkit").metadata.get_all("Provides-Extra", [])
    found: dict[str, Distribution] = {}
    waiting = [Requirement(f"workerkit[{','.join(each for each in extras if each != 'dev')}]")]
    for requirement in waiting:
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found:
            continue
        found[name] = distribution(name)
        waiting += _needed(found[name], requirement.extras)
    del found["workerkit"]
    return dict(sorted(found.items()))


def license_of(package: Distribution) -> str:
    """Return the license that a package states, as an expression or in a classifier."""
    metadata = package.metadata
    for expression in metadata.get_all("License-Expression", []):
        return str(expression)
    classifiers = metadata.get_all("Classifier", [])
    names = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License ::")]
    # Of packages without either: the first line may be a name, or that of a whole text.
    texts = metadata.get_all("License", ["none stated"])
    return " AND ".join(names) or str(texts[0]).partition("\n")[0]


def is_permissive(license_: str) -> bool:
    """Return whether each part of an expression allows what `PERMISSIVE` allows."""
    return all(
        any({choice, choice.strip("()")} & PERMISSIVE for choice in part.split(" OR "))
        for part in license_.split(" AND ")
    )


def _needed(package: Distribution, extras: set[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, package.requires or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": each}) for each in ("", *extras)):
            yield requirement


if __name__ == "__main__":
    for name, package in runtime_distributions().items():
        print(f"{name:<28}{package.version:<14}{license_of(package)}")
