"""List the consumers of an application with their options, for people and for programs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from workerkit.amqp.queue import Queue
from workerkit.app.assembly import Assembly
from workerkit.cli.terminal import Cell, Column, print_line, print_table
from workerkit.describe import describe_class
from workerkit.retry import RetryPolicy
from workerkit.safe_text import HIDDEN, one_line
from workerkit.signature import shown_type

DEFAULT = "default"
"""The source of a value that nothing has set."""

_SOURCES = {DEFAULT: "dim", "class": "cyan", "settings": "magenta"}
_WIDEST = 40


def rows_of(assembly: Assembly) -> Iterator[dict[str, Any]]:
    """Yield one row for each consumer, of values that JSON has."""
    for transport, consumers in assembly.transports:
        for each in consumers:
            options = each.options
            values = {
                field.name: _plain(getattr(options, field.name))
                for field in dataclasses.fields(options)
                if field.name != "name" and field.name in options.sources
            }
            yield {
                "name": options.name,
                "kind": transport.kind,
                "class": f"{each.consumer.__module__}.{each.consumer.__qualname__}",
                "source": transport.source(options),
                "connection": getattr(options, "connection", None),
                "options": values,
                "sources": {name: str(options.sources[name]) for name in values},
                "interceptors": [str(create) for create in each.interceptors],
                "place": describe_class(each.consumer),
            }


def lines_of(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that a pipe gets for one row: the consumer, then each of its options."""
    yield one_line(f"{row['name']}  {row['kind']}  {row['source']}  ({row['class']})")
    for option, value in row["options"].items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        yield one_line(f"    {option} = {text}  [{row['sources'][option]}]")
    if row["interceptors"]:
        yield one_line(f"    interceptors = {', '.join(row['interceptors'])}")


def print_tables(rows: Sequence[Mapping[str, Any]], *, all_values: bool) -> None:
    """Print a table for each consumer, for people.

    Args:
        all_values: Also options with their default.
    """
    tables = [_cells(row, all_values) for row in rows]
    widths = [
        min(max((len(cells[column].text) for each in tables for cells in each), default=0), _WIDEST)
        for column in range(2)
    ]
    columns = [
        *(Column(width=width) for width in widths),
        Column(width=len("environment"), whole=True),
    ]
    for row, table in zip(rows, tables, strict=True):
        print_line(Cell(row["name"], "bold"), Cell(row["kind"]), Cell(row["source"]))
        print_line(Cell(""), Cell(row["place"], "dim"))
        print_table(columns, table, indent=2)
        print_line()
    hidden = sum(source == DEFAULT for row in rows for source in row["sources"].values())
    if hidden and not all_values:
        print_line(Cell(f"{hidden} options have their default; --all shows them", "dim"))


def value_cells(name: str, value: str, source: str) -> tuple[Cell, Cell, Cell]:
    """Return the cells of a value: one that differs from its default stands out.

    What the environment has set stands out most: an operator can change it.
    """
    if source == DEFAULT:
        return Cell(name, "dim"), Cell(value, "dim"), Cell(source, "dim")
    return Cell(name), Cell(value, "bold"), Cell(source, _SOURCES.get(source, "bold green"))


def _cells(row: Mapping[str, Any], all_values: bool) -> list[tuple[Cell, Cell, Cell]]:
    """Return the cells of the table of one consumer."""
    cells = []
    if row["interceptors"]:
        cells.append((Cell("interceptors"), Cell(", ".join(row["interceptors"])), Cell("")))
    return cells + [
        value_cells(option, _words(value), row["sources"][option])
        for option, value in row["options"].items()
        if all_values or row["sources"][option] != DEFAULT
    ]


def _words(value: Any) -> str:
    """Return the value of an option for people."""
    if isinstance(value, Mapping):
        parts = ((name, _words(each)) for name, each in value.items())
        return "; ".join(f"{name} {text}" for name, text in parts if text)
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "-" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Return the value of an option for JSON."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, Queue):
        return value.name
    if isinstance(value, RetryPolicy):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if value is None or isinstance(value, str | int | float | list):
        return value
    return shown_type(value)
