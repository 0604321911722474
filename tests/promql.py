"""Read the names of metrics, labels and functions in expressions of PromQL."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_CLAUSE = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*+)\s*(?:\{([^{}]*)\})?(\s*\[[^\]]*\])?(?!\s*\()")
_MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")
_CALL = re.compile(r"\b([a-z_]+)\s*\(")
_WORDS = frozenset("and or unless offset bool inf nan".split())
_NO_NAME = re.compile(r"\boffset\s+\$?\w+|\b\d[\w.]*")


@dataclass(frozen=True, slots=True)
class Selector:
    """One selector of an expression.

    Attributes:
        matchers: Label, operator and value of each matcher.
        has_range: It is one like `name[5m]`.
        functions: The functions around it, the innermost first.
    """

    name: str
    matchers: tuple[tuple[str, str, str], ...]
    has_range: bool
    functions: tuple[str, ...]


def selectors(expression: str) -> list[Selector]:
    """Return the selectors of an expression."""
    plain = _blanked(expression)
    return [
        Selector(
            found[1],
            tuple(_MATCHER.findall(expression[slice(*found.span(2))] if found[2] else "")),
            found[3] is not None,
            tuple(_around(plain, found.start())),
        )
        for found in _SELECTOR.finditer(plain)
        if found[1] not in _WORDS
    ]


def grouped_by(expression: str) -> set[str]:
    """Return the labels in clauses such as `by (job)`."""
    clauses = _CLAUSE.findall(expression)
    return {label.strip() for clause in clauses for label in clause.split(",") if label.strip()}


def calls(expression: str, function: str) -> Iterator[str]:
    """Yield the arguments of each call of a function."""
    for found in re.finditer(rf"\b{function}\s*\(", expression):
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(expression[end], 0)
            end += 1
        yield expression[found.end() : end - 1]


def _blanked(expression: str) -> str:
    """Return the expression with blanks instead of clauses, values of matchers and numbers."""

    def blanks(found: re.Match[str]) -> str:
        return " " * len(found[0])

    without_values = re.sub(r'"[^"]*"', lambda m: '"' + " " * (len(m[0]) - 2) + '"', expression)
    # The value of a matcher keeps its quotes, so that offsets are those of the expression.
    return _NO_NAME.sub(blanks, _CLAUSE.sub(blanks, without_values))


def _around(expression: str, position: int) -> Iterator[str]:
    """Yield the functions whose parentheses contain a position, the innermost first."""
    depth = 0
    for index in range(position - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(expression[index], 0)
        if depth < 0:
            depth = 0
            name = re.search(r"([a-z_]+)\s*$", expression[:index])
            if name is not None and name[1] not in _WORDS:
                yield name[1]
