"""`llms.txt` and `llms-full.txt`: the site for language models, as llmstxt.org describes it."""

import re
from collections.abc import Iterator
from pathlib import Path

from docs._generate.pages import DOCS, ROOT, Item, expand, items

SUFFIX = ".html.md"
"""Each page is also there as Markdown: its address with `.md` at the end."""


def write(directory: Path) -> None:
    """Write both files, and each page as Markdown, into the site."""
    (directory / "llms.txt").write_text(overview())
    texts = []
    for item in every_item():
        text = expand(item.page, plain=True)
        path = directory / _address(item.page)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        texts.append(text)
    (directory / "llms-full.txt").write_text("\n\n".join(texts))


def overview() -> str:
    """Return a list of all pages, by section, with what each is about."""
    found = re.search(r"\A# ([^\n]+)\n\n(.+?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, "README.md has to begin with a title and a paragraph"
    lines = [f"# {found[1]}", "", f"> {' '.join(found[2].split())}"]
    section = ""
    for item in every_item():
        if item.section != section:
            section = item.section
            lines += ["", f"## {section}", ""]
        text = f": {item.text}" if item.text else ""
        lines.append(f"- [{item.title}]({_address(item.page)}){text}")
    return "\n".join(lines) + "\n"


def every_item(index: Path = DOCS / "index.md", section: str = "") -> Iterator[Item]:
    """Yield the pages of an index and of the indexes in it, in order."""
    for item in items(index):
        own = section or item.section
        yield Item(own, item.title, item.page, item.text)
        if item.page.name == "index.md":
            yield from every_item(item.page, own)


def _address(page: Path) -> str:
    return str(page.relative_to(DOCS).with_suffix(SUFFIX))
