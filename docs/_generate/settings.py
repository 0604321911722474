"""The tables of the settings, and of the options of consumers."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from docs._generate import example
from docs._generate.markdown import code, described, table
from workerkit import AMQPSettings, Runner, SSESettings, WorkerContainer, WorkerSettings
from workerkit.cli.settings import Row, inventory
from workerkit.config.annotations import members
from workerkit.options import class_only_options, snake_case
from workerkit.retry import RetryPolicy

PREFIX = "WORKERKIT_"
_CONNECTIONS: dict[str, type[BaseModel]] = {"amqp": AMQPSettings, "sse": SSESettings}
_KINDS = (example.OrderPlaced, example.Deployments, example.OrderView, example.Cleanup)


@cache
def rows() -> tuple[Row, ...]:
    """Return a row for each variable of the settings and of the options of one consumer each."""
    given = {"sse": {"marathon": {"url": "https://marathon.example"}}}
    settings = WorkerSettings(_env_file=None, **given)
    container = WorkerContainer()
    container.settings.override(settings)
    return tuple(inventory(Runner(container, packages=[example.__name__]).assemble()))


def settings() -> str:
    """Return a table of the variables that every application has, by section."""
    every = [row for row in rows() if not row.variable.startswith(f"{PREFIX}CONSUMERS__")]
    sections: dict[str, list[Row]] = {}
    for row in every:
        section, nested, _ = _steps(row).partition("__")
        sections.setdefault(section if nested else "", []).append(row)
    process = sections.pop("")
    return "\n\n".join(
        f"## {title}\n\n{_setting_table(found)}"
        for title, found in [
            ("The process", process),
            *((code(f"{section.upper()}__"), found) for section, found in sections.items()),
        ]
    )


def options(kind: str) -> str:
    """Return a table of the options of a kind of consumer, such as `AMQPConsumer`."""
    [consumer] = [each for each in _KINDS if kind in (base.__name__ for base in each.__mro__)]
    beginning = f"{PREFIX}CONSUMERS__{snake_case(consumer.__name__).upper()}__"
    texts = described(consumer) | described(consumer.options_type())
    found = []
    for row in rows():
        if row.variable.startswith(beginning):
            name = row.variable.removeprefix(beginning).lower()
            option, _, part = name.partition("__")
            meaning = described(RetryPolicy)[part] if part else texts[option]
            label = f"{option}.{part}" if part else option
            found.append((code(label), row.type, code(_shown(row.default)), meaning))
    found += [
        (code(option), "in the class only", "", texts[option])
        for option in class_only_options(consumer.options_type())
    ]
    return table(("option", "type", "default", "meaning"), found)


def _setting_table(found: list[Row]) -> str:
    lines = []
    for row in found:
        default, meaning = _field(row)
        lines.append((code(row.variable), row.type, code(default), meaning))
    return table(("variable", "type", "default", "meaning"), lines)


def _steps(row: Row) -> str:
    return row.variable.removeprefix(PREFIX).lower()


def _field(row: Row) -> tuple[str, str]:
    """Return the default of the field that a variable sets, and the text of its docstring."""
    model: type[BaseModel] = WorkerSettings
    *path, name = _steps(row).split("__")
    while path:
        step = path.pop(0)
        if model is WorkerSettings and step in _CONNECTIONS:
            model = _CONNECTIONS[step]
            path.pop(0)  # The name of the connection.
        else:
            model = next(_models(model.model_fields[step].annotation))
    default = model.model_fields[name].get_default(call_default_factory=True, validated_data={})
    return _shown(default), described(model)[name]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for each in members(annotation):
        if isinstance(each, type) and issubclass(each, BaseModel):
            yield each


def _shown(value: Any) -> str:
    """Return a default as an operator writes it; empty if there is none."""
    if value is None or value is PydanticUndefined or value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(_shown, value))
    if hasattr(value, "get_secret_value"):
        return str(value.get_secret_value())
    return (
        "" if isinstance(value, dict) else f"{value:g}" if isinstance(value, float) else str(value)
    )
