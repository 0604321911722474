"""The commands `workerkit dead-letters ...`."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, TextIO

import typer

from workerkit.cli.dead_letters import text as letters
from workerkit.cli.dead_letters.clear import PURGE, REPLAY, Operation, Result, clear
from workerkit.cli.dead_letters.read import NoDeadLetterQueue, collect, count, first
from workerkit.cli.dead_letters.selection import Selection
from workerkit.cli.dead_letters.target import DeadLetterQueue, Target, find
from workerkit.cli.parameters import Json, Traceback, faults, spread
from workerkit.cli.terminal import is_for_people
from workerkit.errors import ConfigurationError, RunError
from workerkit.safe_text import escape

app = typer.Typer(
    help="List the dead letters of a queue, show, replay or delete them.",
    no_args_is_help=True,
)


@dataclass(frozen=True, slots=True)
class ClearOptions:
    """Options of the commands that remove dead letters."""

    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of dead letters.", metavar="NUMBER")
    ] = None
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Maximum messages per second.", metavar="NUMBER")
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; report what would be done.")
    ] = False
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False
    as_json: Json = False


@app.command("list")
@spread
def list_(
    *,
    selection: Selection,
    limit: Annotated[
        int, typer.Option(min=1, help="Maximum number of dead letters.", metavar="NUMBER")
    ] = 50,
    as_json: Json = False,
    target: Target,
    traceback: Traceback = False,
) -> None:
    """List dead letters, oldest first."""
    with faults(traceback):
        queue = find(target, selection.consumers or ())
        with _no_queue(queue, "[]" if as_json else ""):
            if as_json:
                page = asyncio.run(collect(queue, selection, limit, letters.as_json))
                print(json.dumps(page.letters, indent=2))
                _print_more(page.more, sys.stderr)
            else:
                rows = asyncio.run(collect(queue, selection, limit, letters.row))
                if not rows.letters:
                    print(_none(queue, selection))
                elif is_for_people():
                    letters.print_letters(rows.letters)
                else:
                    print(*letters.lines(rows.letters), sep="\n")
                _print_more(rows.more, sys.stdout)


@app.command()
@spread
def show(
    *, selection: Selection, as_json: Json = False, target: Target, traceback: Traceback = False
) -> None:
    """Show all of the first dead letter: headers, traceback, body."""
    with faults(traceback):
        queue = find(target, selection.consumers or ())
        with _no_queue(queue, "null" if as_json else ""):
            message = asyncio.run(first(queue, selection))
            if message is None:
                raise RunError(_none(queue, selection))
            if as_json:
                letter = {**letters.as_json(message), **letters.body_as_json(message.raw)}
                print(json.dumps(letter, indent=2))
            else:
                print(*letters.in_full(message), sep="\n")


@app.command()
@spread
def replay(
    *, selection: Selection, options: ClearOptions, target: Target, traceback: Traceback = False
) -> None:
    """Return dead letters to the queue where they failed, as new first attempts."""
    with faults(traceback):
        _clear(REPLAY, target, selection, options)


@app.command()
@spread
def purge(
    *, selection: Selection, options: ClearOptions, target: Target, traceback: Traceback = False
) -> None:
    """Delete dead letters permanently."""
    with faults(traceback):
        _clear(PURGE, target, selection, options)


def _clear(
    operation: Operation, target: Target, selection: Selection, options: ClearOptions
) -> None:
    """Ask for confirmation, replay or purge, and print a summary."""
    queue = find(target, selection.consumers or ())
    if not (options.dry_run or options.yes or sys.stdin.isatty()):
        raise ConfigurationError(
            "there is no terminal to ask for confirmation: "
            "add --yes, or --dry-run to see what would be done"
        )
    started = datetime.now(UTC)
    empty = _as_json(operation, queue, Result(), options.dry_run) if options.as_json else ""
    with _no_queue(queue, empty):
        if options.dry_run:
            result = _expected(queue, selection, options.limit)
        else:
            if not options.yes:
                _confirm(operation, queue, selection, options.limit)
            result = asyncio.run(
                clear(
                    operation,
                    queue,
                    selection,
                    limit=options.limit,
                    rate=options.rate,
                    until=started,
                )
            )
    if options.as_json:
        print(_as_json(operation, queue, result, options.dry_run))
        return
    begin = "interrupted: " if result.interrupted else ""
    verb = "would be " if options.dry_run else ""
    later = f"; left {result.later} that failed after the command started" if result.later else ""
    note = "" if result.done else _note(queue)
    subject = _subject(queue, selection, result)
    print(escape(f"{begin}{subject} {verb}{operation.participle}{later}{note}"))


def _confirm(
    operation: Operation, queue: DeadLetterQueue, selection: Selection, limit: int | None
) -> None:
    """Ask for confirmation, if there is anything to do.

    Raises:
        typer.Abort: The answer is no.
    """
    expected = _expected(queue, selection, limit)
    if expected.done:
        question = operation.question.format(_subject(queue, selection, expected))
        typer.confirm(escape(question), abort=True, err=True)


def _expected(queue: DeadLetterQueue, selection: Selection, limit: int | None) -> Result:
    """Return the result of an operation without doing it."""
    total, matching = asyncio.run(count(queue, selection))
    return Result(total, min(matching, limit or matching))


def _subject(queue: DeadLetterQueue, selection: Selection, result: Result) -> str:
    filters = f" ({selection})" if selection else ""
    return f"{result.done} of {result.count} dead letters of {queue.source!r}{filters}"


def _as_json(operation: Operation, queue: DeadLetterQueue, result: Result, dry_run: bool) -> str:
    summary = {
        "queue": queue.source,
        "count": result.count,
        operation.participle: result.done,
        "later": result.later,
        "interrupted": result.interrupted,
        "dry_run": dry_run,
    }
    return json.dumps(summary)


def _print_more(more: int, file: TextIO) -> None:
    if more:
        print(f"{more} more; increase --limit to see all", file=file)


def _none(queue: DeadLetterQueue, selection: Selection) -> str:
    filters = f" match ({selection})" if selection else ""
    return escape(f"no dead letters of {queue.source!r}{filters}{_note(queue)}")


def _note(queue: DeadLetterQueue) -> str:
    return f"; {queue.note}" if queue.note else ""


@contextmanager
def _no_queue(queue: DeadLetterQueue, output: str) -> Iterator[None]:
    """Report that there is no dead-letter queue, which is not an error, and exit.

    Args:
        output: Printed on stdout instead of the report, which then goes to stderr.
    """
    try:
        yield
    except NoDeadLetterQueue:
        if output:
            print(output)
        text = escape(f"no dead letters: {queue} does not exist")
        print(text, file=sys.stderr if output else sys.stdout)
        raise typer.Exit from None
