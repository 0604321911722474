"""The text of a page: what it includes, what is generated, and links that lead into the site."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from docs._generate.api import api, plain_api
from docs._generate.commands import commands
from docs._generate.exit_codes import exit_codes
from docs._generate.log_records import log_records
from docs._generate.metrics import metrics
from docs._generate.settings import options, settings

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
# Files outside of docs/ that are pages of the site: each is included by one page.
INCLUDED = {
    ROOT / "README.md": DOCS / "index.md",
    ROOT / "CONTRIBUTING.md": DOCS / "project" / "contributing.md",
    ROOT / "CHANGELOG.md": DOCS / "project" / "changelog.md",
    ROOT / "app_template" / "README.md": DOCS / "template.md",
}
GENERATORS: dict[str, Callable[..., str]] = {
    each.__name__: each
    for each in (api, commands, exit_codes, log_records, metrics, options, settings)
}
MARKER = re.compile(r"^<!-- (generated|include): (.+) -->$", re.MULTILINE)
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)#:\s]+)(#[^)]*)?\)")
_ITEM = re.compile(r"^\* \[([^\]]+)\]\(([^)#:]+\.md)\)(?:: (.*))?$")


@dataclass(frozen=True, slots=True)
class Item:
    """An item of an index: a page, in a section.

    Attributes:
        section: The heading above it; empty in an index without headings.
    """

    section: str
    title: str
    page: Path
    text: str


def sources() -> list[Path]:
    """Return all pages of the site."""
    return [each for each in sorted(DOCS.rglob("*.md")) if "_build" not in each.parts]


def expand(page: Path, *, plain: bool = False) -> str:
    """Return the text of a page with all that it includes.

    Args:
        plain: For readers of Markdown, instead of Sphinx.
    """

    def insert(marker: re.Match[str]) -> str:
        kind, (name, *arguments) = marker[1], marker[2].split()
        if kind == "include":
            return _without_title(_linked(page.parent / name, page))
        generate = plain_api if plain and name == "api" else GENERATORS[name]
        return generate(*arguments)

    text = MARKER.sub(insert, _linked(page, page))
    return text if plain or page.name != "index.md" else _with_toctrees(page, text)


def items(index: Path) -> Iterator[Item]:
    """Yield the items of an index, in order."""
    section = ""
    for line in index.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif found := _ITEM.match(line):
            target = (index.parent / found[2]).resolve()
            yield Item(section, found[1], INCLUDED.get(target, target), found[3] or "")


def _with_toctrees(index: Path, text: str) -> str:
    """Return the text of an index with a hidden table of contents for each section."""
    sections: dict[str, list[Path]] = {}
    for each in items(index):
        sections.setdefault(each.section, []).append(each.page)
    for section, pages in sections.items():
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {section}\n"
        text += "".join(f"{_relative(each, index).removesuffix('.md')}\n" for each in pages)
        text += "```\n"
    return text.replace(":caption: \n", "")


def _without_title(text: str) -> str:
    return re.sub(r"\A# .*\n+", "", text)


def _linked(source: Path, page: Path) -> str:
    """Return the text of a file with the links of a page.

    A link to a file that is no page of the site becomes its name.
    """

    def link(found: re.Match[str]) -> str:
        image, text, path, anchor = found.groups(default="")
        target = (source.parent / path).resolve()
        target = INCLUDED.get(target, target)
        if DOCS not in target.parents or (target.suffix != ".md" and not image):
            return text
        return f"{image}[{text}]({_relative(target, page)}{anchor})"

    parts = _FENCE.split(source.read_text())
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def _relative(target: Path, page: Path) -> str:
    return os.path.relpath(target, page.parent)
