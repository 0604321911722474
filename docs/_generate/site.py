"""The extension of Sphinx that connects the generators to the site."""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring

import workerkit
from docs._generate import llms
from docs._generate.api import NOT_CREATED
from docs._generate.pages import DOCS, MARKER, expand

_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_NO_LINKS = (nodes.title, nodes.reference, pending_xref)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the events of Sphinx."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("source-read", _read)
    app.connect("env-get-outdated", _outdated)
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-process-signature", _signature)
    app.connect("doctree-read", _link_names)
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True}


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = expand(DOCS / f"{name}.md")


def _outdated(app: Sphinx, env: BuildEnvironment, *changes: set[str]) -> Sequence[str]:
    """Return the pages that include other files or the code, which Sphinx does not watch."""
    pages = {name: DOCS / f"{name}.md" for name in env.found_docs}
    return [name for name, page in pages.items() if MARKER.search(page.read_text())]


def _docstring(
    app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]
) -> None:
    """Change blocks of code from Markdown, which docstrings have, to reStructuredText."""

    def block(fence: re.Match[str]) -> str:
        indent, language, text = fence.groups()
        inner = "\n".join(f"   {line}" for line in text.splitlines())
        return f"{indent}.. code-block:: {language}\n\n{inner}\n"

    if what == "property":
        # napoleon reads text before a colon as the type of a property; ours have sentences.
        doc = inspect.getdoc(found) or ""
        lines[:] = GoogleDocstring(doc, app.config, app, "method", name, found, options).lines()
    lines[:] = _FENCE.sub(block, "\n".join(lines)).split("\n")


def _signature(
    app: Sphinx, what: str, name: str, found: Any, options: Any, given: str, returned: str
) -> tuple[str, str] | None:
    """Remove the constructors that no application calls."""
    return ("", "") if name.rpartition(".")[2] in NOT_CREATED else None


def _link_names(app: Sphinx, tree: nodes.document) -> None:
    """Link each public name that is written as code to its entry in the reference."""
    for literal in list(tree.findall(nodes.literal)):
        name = literal.astext().removeprefix("workerkit.")
        if name not in workerkit.__all__ or any(map(_is_in_link, _parents(literal))):
            continue
        link = pending_xref(
            "", refdomain="py", reftype="obj", reftarget=f"workerkit.{name}", refexplicit=True
        )
        link["refdoc"] = app.env.docname
        literal.replace_self(link)
        link += literal


def _parents(node: nodes.Node) -> list[nodes.Node]:
    found = []
    while (parent := node.parent) is not None:
        found.append(parent)
        node = parent
    return found


def _is_in_link(node: nodes.Node) -> bool:
    return isinstance(node, _NO_LINKS)


def _finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        llms.write(Path(app.outdir))
