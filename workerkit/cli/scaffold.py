"""The texts of a new project, made from those of the template.

A template is the directory of a project that works. Some of it is only for projects with certain
features. A condition is `amqp`, `amqp and http`, `without amqp` or `sse without http`:

* for a file, `.scaffold.toml` has one under `[files]`, by the path or by a pattern of `fnmatch`;
* for lines, it stands in a comment before them, after `with` unless it begins with `without`, and a
  comment `end` stands after them: `# with amqp`, or `<!-- with amqp -->`. They are not nested.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

FEATURES = ("amqp", "http", "sse", "periodic")
"""What a project may consume."""

TABLE = ".scaffold.toml"
"""The file of a template with conditions of its files; it is in no project."""

TEMPLATE_PACKAGE = "shop"
"""The package of the template."""

LINE_LENGTH = 100
"""Of the code of a project: an import that gets longer is wrapped as ruff does it."""

# Texts, because to compile these patterns delays the start of every other command.
_SOME = rf"(?:{'|'.join(FEATURES)})(?: and (?:{'|'.join(FEATURES)}))*"
_CONDITION = rf"with (?P<with>{_SOME}(?: without {_SOME})?)|(?P<without>without {_SOME})"
_MARKER = rf"\s*(?:#|<!--) (?:{_CONDITION}|end)(?: -->)?\s*"
_NAMES = r"\bshop-worker\b|\bshop\b|(?<![A-Za-z0-9])SHOP(?![A-Za-z0-9])"
# The rules of ruff want an empty line between an import and a comment, but not between two imports.
_END_OF_IMPORTS = r"\n\n# end\n(?=from |import )"
_IMPORT = r"(from \S+ import )([^()\n]+)\n"


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a project.

    Attributes:
        project: Of its distribution, its image and what runs it: `my-orders` for `shop-worker`.
        package: `my_orders` for `shop`. In capitals it begins the environment variables:
            `MY_ORDERS_` for `SHOP_`.
    """

    project: str
    package: str

    def replace(self, text: str) -> str:
        """Return a text of the template with these names, which replace whole words."""
        return re.sub(_NAMES, self._name, text)

    def _name(self, found: re.Match[str]) -> str:
        word = found[0]
        if word == "SHOP":
            return self.package.upper()
        return self.package if word == "shop" else self.project


def files(template: Path, names: Names, features: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Return the files of a new project: their paths inside it, and their texts.

    What `.gitignore` of the template names is no part of it.

    Raises:
        ValueError: A region of the template has no beginning, or no end.
    """
    conditions = _conditions(template)
    for path in sorted(kept(template)):
        name = path.as_posix()
        wanted = [each for pattern, each in conditions.items() if fnmatchcase(name, pattern)]
        if name == TABLE or not all(_holds(each, features) for each in wanted):
            continue
        text = (template / path).read_text(encoding="utf-8")
        is_code = path.suffix == ".py"
        if is_code:
            text = re.sub(_END_OF_IMPORTS, "\n# end\n", text)
        try:
            text = names.replace("".join(_selected(text, features)))
        except ValueError as error:
            raise ValueError(f"{template / path}:{error}") from None
        yield Path(names.replace(name)), _wrapped(text) if is_code else text


def kept(template: Path) -> Iterator[Path]:
    """Return the files of a template that its `.gitignore` does not name, relative to it."""
    lines = (template / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = [line.strip("/") for line in lines if line and not line.startswith("#")]
    for path in template.rglob("*"):
        inside = path.relative_to(template)
        if path.is_file() and not any(
            fnmatchcase(part, pattern) for part in inside.parts for pattern in ignored
        ):
            yield inside


def _conditions(template: Path) -> Mapping[str, str]:
    table = template / TABLE
    if not table.exists():
        return {}
    import tomllib

    conditions: Mapping[str, str] = tomllib.loads(table.read_text(encoding="utf-8"))["files"]
    return conditions


def _holds(condition: str, features: Collection[str]) -> bool:
    present, _, absent = condition.partition("without")
    needed = set(present.split()) - {"and"}
    return needed <= set(features) and set(absent.split()).isdisjoint(features)


def _selected(text: str, features: Collection[str]) -> Iterator[str]:
    """Return the lines for *features*, without the comments around regions.

    Raises:
        ValueError: With the line of a comment that has no other one.
    """
    begun = 0
    wanted = True
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        found = re.fullmatch(_MARKER, line)
        if found is None:
            if wanted:
                yield line
            continue
        condition = found["with"] or found["without"]
        if bool(condition) == bool(begun):
            raise ValueError(f"{number}: a region inside of a region, or an end without one")
        begun = number if condition else 0
        wanted = not condition or _holds(condition, features)
    if begun:
        raise ValueError(f"{begun}: a region without an end")


def _wrapped(text: str) -> str:
    """Return the code with each import that is too long on several lines."""
    return "".join(chain.from_iterable(map(_lines, text.splitlines(keepends=True))))


def _lines(line: str) -> Iterator[str]:
    found = re.fullmatch(_IMPORT, line) if len(line) > LINE_LENGTH + 1 else None
    if found is None:
        yield line
        return
    yield f"{found[1]}(\n"
    for name in found[2].split(", "):
        yield f"    {name},\n"
    yield ")\n"
