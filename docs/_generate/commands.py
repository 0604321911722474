"""The commands, with their arguments and options."""

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from typing import Any
from unittest.mock import patch

import typer

from docs._generate.markdown import code, table
from workerkit.cli.commands import app
from workerkit.cli.probe import probe


def commands() -> str:
    """Return a section for each command."""
    return "\n\n".join(_section(name, each) for name, each in every_command())


def every_command() -> Iterator[tuple[str, Any]]:
    """Yield each command with its full name; those with commands only as a part of that."""
    group = typer.main.get_command(app)
    yield "workerkit", group
    yield from _inner("workerkit", group)


def _inner(name: str, group: Any) -> Iterator[tuple[str, Any]]:
    for child, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from _inner(f"{name} {child}", each)
        else:
            yield f"{name} {child}", each


def _section(name: str, command: Any) -> str:
    if name == "workerkit probe":
        return f"## {name}\n\n```text\n{_probe_help()}```"
    context = typer.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    parameters = sorted(command.params, key=lambda each: each.param_type_name)
    records = [each.get_help_record(context) for each in parameters]
    lines = [(code(names), text) for names, text in filter(None, records)]
    parts = [f"## {name}", f"```text\n{name} {usage}\n```", (command.help or "").strip()]
    if lines:
        parts.append(table(("argument or option", "meaning"), lines))
    return "\n\n".join(parts)


def _probe_help() -> str:
    """Return what `workerkit probe --help` prints: it is not a command of typer, for its speed."""
    output = io.StringIO()
    plain = {"COLUMNS": "90", "NO_COLOR": "1"}
    with patch.dict(os.environ, plain), redirect_stdout(output), suppress(SystemExit):
        probe(["--help"])
    return output.getvalue()
