"""How exchanges of the types `topic` and `headers` decide. Pure."""

from collections.abc import Sequence

from workerkit.embedded.refusals import Refusal
from workerkit.embedded.table import Field, Table

_MODES = ("all", "any", "all-with-x", "any-with-x")


def topic_matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Match the words of a routing key: `*` stands for one word, `#` for any number, zero too.

    Takes at most `len(pattern) * len(words)` steps, whatever a client binds.
    """
    at, word = 0, 0
    retry: tuple[int, int] | None = None  # The last `#`, and where what it swallows ends.
    while word < len(words):
        if at < len(pattern) and pattern[at] == "#":
            retry = at, word
            at += 1
        elif at < len(pattern) and pattern[at] in ("*", words[word]):
            at, word = at + 1, word + 1
        elif retry is not None:
            retry = retry[0], retry[1] + 1
            at, word = retry[0] + 1, retry[1]
        else:
            return False
    return all(rest == "#" for rest in pattern[at:])


def headers_match(wanted: Table, headers: Table, *, floats_equal_integers: bool = True) -> bool:
    """Match the headers of a message against the arguments of a binding.

    Arguments that begin with `x-` count only in the two modes `...-with-x`. An argument without a
    value (`void`) asks for the header alone.

    Args:
        floats_equal_integers: Whether 5 and 5.0 are the same.
    """
    mode = wanted["x-match"].value if "x-match" in wanted else "all"
    results = (
        name in headers
        and (field.type == "void" or _same(field, headers[name], floats_equal_integers))
        for name, field in wanted.items()
        if name != "x-match" and (mode.endswith("-with-x") or not name.startswith("x-"))
    )
    return all(results) if mode.startswith("all") else any(results)


def _same(wanted: Field, found: Field, floats_equal_integers: bool) -> bool:
    if not floats_equal_integers and wanted.is_integer != found.is_integer:
        return False
    return (wanted.type_class, wanted.value) == (found.type_class, found.value)


def check_headers_binding(wanted: Table) -> None:
    """Refuse a binding to a headers exchange whose `x-match` is none of the four modes."""
    field = wanted.get("x-match")
    if field is None:
        return
    if field.type != "longstr":
        raise Refusal(
            "PRECONDITION_FAILED",
            f"Invalid x-match field type {field.type} (value {field}); expected longstr",
        )
    if field.value not in _MODES:
        raise Refusal(
            "PRECONDITION_FAILED",
            f'Invalid x-match field value <<"{field}">>;'
            " expected all, any, all-with-x, or any-with-x",
        )
