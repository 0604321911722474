"""The rows of docs/reliability.md, and the tests that prove them.

A test carries its row's id in its name: `test_b3_...`. `python -m tests.rows` writes the last
column.
"""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
ROWS = [
    f"{letter}{number}"
    for letter, last in {
        "A": 6,
        "B": 8,
        "C": 8,
        "D": 9,
        "E": 3,
        "R": 8,
        "F": 8,
        "G": 4,
        "FR": 24,
        "S": 8,
        "FE": 7,
        "H": 4,
        "FH": 7,
        "FP": 17,
    }.items()
    for number in range(1, last + 1)
]
"""The page."""

_ID = re.compile(r"test_([a-z]{1,2}\d+)_")
_ROW = re.compile(r"^\| ([A-Z]{1,2}\d+) \|(.*)\|([^|]*)\|$", re.MULTILINE)


@cache
def shown_by() -> dict[str, list[str]]:
    """Return the files that have tests of each row."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                row := _ID.match(node.name)
            ):
                found[row[1].upper()].add(str(path.relative_to(TESTS).with_suffix("")))
    return {row: sorted(files) for row, files in found.items()}


def written(page: str) -> str:
    """Return the page with its last column as it should be."""
    files = shown_by()

    def row(found: re.Match[str]) -> str:
        names = ", ".join(f"`{name}`" for name in files.get(found[1], []))
        return f"| {found[1]} |{found[2]}| {names} |"

    return _ROW.sub(row, page)


def rows(page: str) -> list[str]:
    """Return the ids on the page, in order."""
    return [found[1] for found in _ROW.finditer(page)]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
