"""The commands `workerkit dead-letters ...`."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, TextIO

import typer

from workerkit.cli.dead_letters import text as letters
from workerkit.cli.dead_letters.clear import PURGE, REPLAY, Errand, Result, Treatment, clear
from workerkit.cli.dead_letters.read import Missing, collect, first, survey
from workerkit.cli.dead_letters.selection import Selection, since
from workerkit.cli.dead_letters.target import Whereabouts, find, named
from workerkit.cli.parameters import Container, Traceback, faults
from workerkit.errors import ConfigurationError, RunError
from workerkit.safe_text import escape

app = typer.Typer(
    help="Look through the dead letters of a queue, replay them or delete them.",
    no_args_is_help=True,
)


def _since(text: str) -> datetime:
    try:
        return since(text, datetime.now(UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


# With --url there is one of them, the queue; `named` sorts that out.
Target = Annotated[
    str | None,
    typer.Argument(
        metavar="PACKAGE",
        help="The package of its consumer, or an amqp:// URL; not with --url.",
        show_default=False,
    ),
]
QueueName = Annotated[
    str | None,
    typer.Argument(
        metavar="QUEUE", help="The queue whose dead letters are meant.", show_default=False
    ),
]
Url = Annotated[str | None, typer.Option(help="An amqp:// URL, instead of PACKAGE.", metavar="URL")]
Errors = Annotated[
    list[str] | None,
    typer.Option(
        "--error", help="Only those with this exception; may be repeated.", metavar="CLASS"
    ),
]
Consumers = Annotated[
    list[str] | None,
    typer.Option(
        "--consumer", help="Only those of this consumer; may be repeated.", metavar="NAME"
    ),
]
Ids = Annotated[
    list[str] | None,
    typer.Option("--id", help="Only those with this message id; may be repeated.", metavar="ID"),
]
Since = Annotated[
    datetime | None,
    typer.Option(
        parser=_since,
        metavar="TIME",
        help="Only those that failed since: ISO 8601, in UTC, or an age such as 2h.",
    ),
]
Connection = Annotated[
    str | None, typer.Option(help="A named connection, instead of the consumer's.")
]
VHost = Annotated[str | None, typer.Option(help="A virtual host, instead of the consumer's.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int | None, typer.Option(min=1, help="No more than so many.")]
Rate = Annotated[float | None, typer.Option(min=0.001, help="No more than so many in a second.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, say what would be done.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command("list")
def list_(
    target: Target = None,
    queue: QueueName = None,
    url: Url = None,
    errors: Errors = None,
    consumers: Consumers = None,
    since: Since = None,
    message_ids: Ids = None,
    limit: Annotated[int, typer.Option(min=1, help="No more than so many.")] = 50,
    as_json: Json = False,
    connection: Connection = None,
    vhost: VHost = None,
    container: Container = None,
    traceback: Traceback = False,
) -> None:
    """List dead letters, the oldest first."""
    selection = Selection(errors, consumers, since, message_ids)
    with faults(traceback):
        where = find(
            *named(url, target, queue),
            container=container,
            connection=connection,
            vhost=vhost,
            consumers=consumers or (),
        )
        with _missing(where, "[]" if as_json else ""):
            if as_json:
                found = asyncio.run(collect(where, selection, limit, letters.as_json))
                print(json.dumps(found.letters, indent=2))
                _print_more(found.more, sys.stderr)
            else:
                rows = asyncio.run(collect(where, selection, limit, letters.row))
                told = (
                    letters.lines(rows.letters)
                    if rows.letters
                    else [escape(_none(where, selection))]
                )
                print(*told, sep="\n")
                _print_more(rows.more, sys.stdout)


@app.command()
def show(
    target: Target = None,
    queue: QueueName = None,
    url: Url = None,
    errors: Errors = None,
    consumers: Consumers = None,
    since: Since = None,
    message_ids: Ids = None,
    as_json: Json = False,
    connection: Connection = None,
    vhost: VHost = None,
    container: Container = None,
    traceback: Traceback = False,
) -> None:
    """Show everything of the first dead letter: headers, traceback, body."""
    selection = Selection(errors, consumers, since, message_ids)
    with faults(traceback):
        where = find(
            *named(url, target, queue),
            container=container,
            connection=connection,
            vhost=vhost,
            consumers=consumers or (),
        )
        with _missing(where, "null" if as_json else ""):
            message = asyncio.run(first(where, selection))
            if message is None:
                raise RunError(_none(where, selection))
            if as_json:
                told = {**letters.as_json(message), **letters.body_as_json(message.raw)}
                print(json.dumps(told, indent=2))
            else:
                print(*letters.in_full(message), sep="\n")


@app.command()
def replay(
    target: Target = None,
    queue: QueueName = None,
    url: Url = None,
    errors: Errors = None,
    consumers: Consumers = None,
    since: Since = None,
    message_ids: Ids = None,
    limit: Limit = None,
    rate: Rate = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
    connection: Connection = None,
    vhost: VHost = None,
    container: Container = None,
    traceback: Traceback = False,
) -> None:
    """Put dead letters back into the queue they failed in, to begin with their first try."""
    selection = Selection(errors, consumers, since, message_ids)
    with faults(traceback):
        where = find(
            *named(url, target, queue),
            container=container,
            connection=connection,
            vhost=vhost,
            consumers=consumers or (),
        )
        errand = Errand(where, selection, limit, rate, datetime.now(UTC))
        _clear(REPLAY, errand, dry_run=dry_run, yes=yes, as_json=as_json)


@app.command()
def purge(
    target: Target = None,
    queue: QueueName = None,
    url: Url = None,
    errors: Errors = None,
    consumers: Consumers = None,
    since: Since = None,
    message_ids: Ids = None,
    limit: Limit = None,
    rate: Rate = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
    connection: Connection = None,
    vhost: VHost = None,
    container: Container = None,
    traceback: Traceback = False,
) -> None:
    """Delete dead letters for good."""
    selection = Selection(errors, consumers, since, message_ids)
    with faults(traceback):
        where = find(
            *named(url, target, queue),
            container=container,
            connection=connection,
            vhost=vhost,
            consumers=consumers or (),
        )
        errand = Errand(where, selection, limit, rate, datetime.now(UTC))
        _clear(PURGE, errand, dry_run=dry_run, yes=yes, as_json=as_json)


def _clear(
    treatment: Treatment, errand: Errand, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Ask, do it, and say what came of it."""
    if not (dry_run or yes or sys.stdin.isatty()):
        raise ConfigurationError(
            "there is no terminal to ask at: add --yes, or --dry-run to see what would be done"
        )
    nothing = _as_json(treatment, errand, Result(), dry_run) if as_json else ""
    with _missing(errand.where, nothing):
        if dry_run:
            result = _foreseen(errand)
        else:
            if not yes:
                _ask(treatment, errand)
            result = asyncio.run(clear(errand, treatment))
    if as_json:
        print(_as_json(treatment, errand, result, dry_run))
        return
    begin = "interrupted: " if result.interrupted else ""
    done = f"would be {treatment.done}" if dry_run else treatment.done
    later = f"; {result.later} failed since the beginning and stay" if result.later else ""
    doubt = "" if result.done else _doubt(errand.where)
    print(escape(f"{begin}{_in_words(errand, result)} {done}{later}{doubt}"))


def _ask(treatment: Treatment, errand: Errand) -> None:
    """Have somebody agree, if there is anything to be done."""
    foreseen = _foreseen(errand)
    if foreseen.done:
        question = treatment.question.format(_in_words(errand, foreseen))
        typer.confirm(escape(question), abort=True, err=True)


def _foreseen(errand: Errand) -> Result:
    """What would come of it."""
    found = asyncio.run(survey(errand.where, errand.selection))
    return Result(found.count, min(found.matching, errand.limit or found.matching))


def _in_words(errand: Errand, result: Result) -> str:
    filters = f" ({errand.selection})" if errand.selection else ""
    return f"{result.done} of {result.count} dead letters of {errand.where.queue!r}{filters}"


def _as_json(treatment: Treatment, errand: Errand, result: Result, dry_run: bool) -> str:
    told = {
        "queue": errand.where.queue,
        "count": result.count,
        treatment.done: result.done,
        "later": result.later,
        "interrupted": result.interrupted,
        "dry_run": dry_run,
    }
    return json.dumps(told)


def _print_more(more: int, file: TextIO) -> None:
    if more:
        print(f"and {more} more: ask for them with --limit", file=file)


def _none(where: Whereabouts, selection: Selection) -> str:
    filters = f" match ({selection})" if selection else ""
    return f"no dead letters of {where.queue!r}{filters}{_doubt(where)}"


def _doubt(where: Whereabouts) -> str:
    return f"; {where.doubt}" if where.doubt else ""


@contextmanager
def _missing(where: Whereabouts, instead: str = "") -> Iterator[None]:
    """Say that there is no dead-letter queue, which is no failure, and exit."""
    try:
        yield
    except Missing:
        if instead:
            print(instead)
        text = escape(f"no dead letters: there is no {where}")
        print(text, file=sys.stderr if instead else sys.stdout)
        raise typer.Exit from None
