"""Tables, progress and whole screens for people at a terminal. No other module uses rich.

rich is imported when something is printed to a terminal, because that takes longer than most
commands need: what a pipe reads is printed without it.
"""

import asyncio
import os
import re
import signal
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from workerkit.safe_text import one_line
from workerkit.tasks import cancel_and_wait

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_DELAY = 1.0
_REFRESH = 0.1
_LINE_EVERY = 2.0
_GAP = 2
_NARROW = 10  # Columns that are left to texts that can be folded.
_KEYS = 64  # Bytes that are read at once.
_LONG_KEYS = re.compile(r"\x1b(?:\[[0-9;?]*[~A-Za-z]|O.|)")  # Of several characters, as arrows.

# The alternate screen of the terminal without a cursor, and back. Lines are not wrapped.
_TAKE = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_RETURN = "\x1b[?7h\x1b[?25h\x1b[?1049l"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text with a style.

    Attributes:
        text: From anywhere: it is printed escaped, on one line, and never read as markup.
        style: A style of rich, such as `bold`. It needs to be legible on dark and light terminals.
    """

    text: str
    style: str = ""


Lines = list[Cell]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        header: Its title; none of the columns has one, or each of them.
        width: The smallest width; ignored if the terminal is too narrow for all columns then.
        most: The largest width; 0 for no limit.
        wide: The column is only for terminals of this width or more.
        whole: Its cells are not folded, unless little room would be left for the other columns: for
            numbers, short words, and what is copied.
        right: Its cells are aligned on the right.
    """

    header: str = ""
    width: int = 0
    most: int = 0
    wide: int = 0
    whole: bool = False
    right: bool = False


def is_for_people(file: TextIO | None = None) -> bool:
    """Return whether *file*, standard output by default, is a terminal.

    `FORCE_COLOR` makes it one, as for other tools; `0` and the empty text do not.
    """
    forced = os.environ.get("FORCE_COLOR", "")
    return forced not in ("", "0") or (file or sys.stdout).isatty()


def print_line(*cells: Cell) -> None:
    """Print texts in one line, with a gap between them; the terminal's width wraps it."""
    from rich.text import Text

    _console(sys.stdout).print(Text(" " * _GAP).join(map(_text, cells)))


def print_table(
    columns: Sequence[Column], rows: Iterable[Sequence[Cell | Lines]], *, indent: int = 0
) -> None:
    """Print a table that fits into the terminal: long cells are folded, and nothing is cut off.

    If a cell is a list of lines, an empty line separates the rows.
    """
    from rich.padding import Padding
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        header_style="bold",
        show_header=any(each.header for each in columns),
    )
    console = _console(sys.stdout)
    shown = [number for number, each in enumerate(columns) if each.wide <= console.width]
    table_rows = [[row[number] for number in shown] for row in rows]
    columns = [columns[number] for number in shown]
    widths = [_widest(each, [row[at] for row in table_rows]) for at, each in enumerate(columns)]
    room = console.width - indent - _GAP * len(columns)
    fits = sum(each.width or width for each, width in zip(columns, widths, strict=True)) <= room
    whole = room >= sum(
        width if each.whole else min(width, _NARROW)
        for each, width in zip(columns, widths, strict=True)
    )
    for each in columns:
        table.add_column(
            each.header,
            min_width=each.width if fits else None,
            max_width=each.most or None,
            no_wrap=each.whole and whole,
            justify="right" if each.right else "left",
            overflow="fold",
        )
    for row in table_rows:
        if table.row_count and any(isinstance(cell, list) for cell in row):
            table.add_row()
        table.add_row(*map(_text, row))
    console.print(Padding(table, (0, 0, 0, indent), expand=False))


def table_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int
) -> list[Lines]:
    """Return a table of one line for each row, the header first; long cells are cut off.

    Args:
        width: Of the terminal.
    """
    shown = [number for number, each in enumerate(columns) if each.wide <= width]
    columns = [columns[number] for number in shown]
    cells = [[Cell(each.header, "bold") for each in columns]]
    cells += [[row[number] for number in shown] for row in rows]
    widths = [_widest(each, [row[at] for row in cells]) for at, each in enumerate(columns)]
    widths = [min(each, width) for each in widths]
    excess = sum(widths) + _GAP * (len(columns) - 1) - width
    while excess > 0:
        # The widest is cut first.
        most, at = max((0 if c.whole else widths[at], at) for at, c in enumerate(columns))
        if most <= _NARROW:
            break
        widths[at] -= 1
        excess -= 1
    return [
        _joined(
            Cell(fitted(cell.text, size, right=each.right), cell.style)
            for cell, each, size in zip(row, columns, widths, strict=True)
        )
        for row in cells
    ]


def fitted(text: str, width: int, *, right: bool = False) -> str:
    """Return text from anywhere escaped, on one line, and in exactly *width* columns."""
    from rich.cells import cell_len, set_cell_size

    text = one_line(text)
    missing = width - cell_len(text)
    if missing < 0:
        return set_cell_size(set_cell_size(text, max(width - 1, 0)) + "…", width)
    return " " * missing + text if right else text + " " * missing


def plain(line: Lines) -> str:
    """Return the cells of a line as text."""
    return "".join(one_line(cell.text) for cell in line).rstrip()


class Screen:
    """The whole terminal.

    Args:
        input_: The file descriptor of the keyboard; None if that is no terminal.
    """

    def __init__(self, console: "Console", input_: int | None) -> None:
        self._console = console
        self._input = input_
        self._before = None if input_ is None else termios.tcgetattr(input_)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows; they change when somebody resizes the window."""
        return self._console.width, self._console.height

    def show(self, lines: Sequence[Lines]) -> None:
        """Show lines instead of those before; what does not fit is cut off."""
        from rich.text import Text

        width, height = self.size
        texts = []
        for line in lines[:height]:
            text = Text().join(map(_text, line))
            text.truncate(width, pad=True)
            texts.append(text)
        # Lines are overwritten, not cleared first: that would flicker. The last one has no end,
        # because the terminal would scroll.
        with self._console.capture() as captured:
            self._console.print(Text("\n").join(texts), end="", no_wrap=True, crop=False)
        self._write("\x1b[H" + captured.get().replace("\n", "\x1b[K\r\n") + "\x1b[0J")

    def open(self) -> None:
        """Take the terminal, and read single keys."""
        if self._input is not None and self._before is not None:
            mode = termios.tcgetattr(self._input)
            mode[3] &= ~(termios.ECHO | termios.ICANON)
            # Ctrl-Z and Ctrl-\\ would leave the terminal like this, and Ctrl-S would block a write.
            mode[6][termios.VSUSP] = mode[6][termios.VQUIT] = b"\0"
            mode[0] &= ~termios.IXON
            termios.tcsetattr(self._input, termios.TCSADRAIN, mode)
        self._write(_TAKE)

    def close(self) -> None:
        """Give the terminal back as it was before."""
        self._write(_RETURN)
        if self._input is not None and self._before is not None:
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def screen(on_key: Callable[[str], None], on_resize: Callable[[], None]) -> Iterator[Screen]:
    """Take the whole terminal inside the block, which runs in an event loop.

    Args:
        on_key: Called with each key that is typed.
        on_resize: Called when the size has changed.
    """
    loop = asyncio.get_running_loop()
    input_ = sys.stdin.fileno() if sys.stdin.isatty() else None
    taken = Screen(_console(sys.stdout), input_)

    def read() -> None:
        assert input_ is not None
        keys = os.read(input_, _KEYS)
        if not keys:
            loop.remove_reader(input_)
        for each in _LONG_KEYS.sub("", keys.decode(errors="ignore")):
            on_key(each)

    loop.add_signal_handler(signal.SIGWINCH, on_resize)
    try:
        taken.open()
        if input_ is not None:
            loop.add_reader(input_, read)
        yield taken
    finally:
        if input_ is not None:
            loop.remove_reader(input_)
        loop.remove_signal_handler(signal.SIGWINCH)
        taken.close()


def has_screen() -> bool:
    """Return whether standard output is a terminal that can show a whole screen."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def print_lines(lines: Iterable[Lines]) -> None:
    """Print lines: with styles on a terminal."""
    from rich.text import Text

    if not is_for_people():
        print(*map(plain, lines), sep="\n", flush=True)
        return
    console = _console(sys.stdout)
    for line in lines:
        console.print(Text().join(map(_text, line)), soft_wrap=True)


def columns_of_terminal() -> int:
    """Return the width of standard output."""
    return _console(sys.stdout).width


def _joined(cells: Iterable[Cell]) -> Lines:
    found: Lines = []
    for cell in cells:
        found += [Cell(" " * _GAP), cell] if found else [cell]
    return found


def _widest(column: Column, cells: Iterable[Cell | Lines]) -> int:
    """Return the width of a column in which nothing is folded, up to its largest width."""
    from rich.cells import cell_len

    lines = [line for text in map(_text, cells) for line in text.plain.split("\n")]
    width = max(map(cell_len, [column.header, *lines]))
    return min(width, column.most or width)


@asynccontextmanager
async def progress(
    report: Callable[[], str], share: Callable[[], tuple[int, int]] | None = None
) -> AsyncIterator[None]:
    """Show the progress of the block on stderr, once it has taken a second.

    On a terminal that is one line, which disappears at the end. Elsewhere it is a line every few
    seconds, and nothing without *share*.

    Args:
        report: Returns the state in words.
        share: Returns what is done, and the total; None if there is no total.
    """
    if is_for_people(sys.stderr):
        showing = asyncio.create_task(_show(report, share))
    elif share is not None:
        showing = asyncio.create_task(_print_lines(report))
    else:
        yield
        return
    try:
        yield
    finally:
        await cancel_and_wait([showing])


async def _show(report: Callable[[], str], share: Callable[[], tuple[int, int]] | None) -> None:
    await asyncio.sleep(_DELAY)
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    column = SpinnerColumn() if share is None else BarColumn()
    text = TextColumn("{task.description}", markup=False)
    console = _console(sys.stderr)
    # Without a thread of rich, which would print while the commands do.
    with Progress(column, text, console=console, transient=True, auto_refresh=False) as shown:
        task = shown.add_task("", total=None)
        while True:
            done, total = share() if share is not None else (0, None)
            shown.update(task, description=one_line(report()), completed=done, total=total)
            shown.refresh()
            await asyncio.sleep(_REFRESH)


async def _print_lines(report: Callable[[], str]) -> None:
    while True:
        await asyncio.sleep(_LINE_EVERY)
        print(one_line(report()), file=sys.stderr, flush=True)


def _console(file: TextIO) -> "Console":
    """Return a console; it has no colours with `NO_COLOR` and no styles with `TERM=dumb`."""
    from rich.console import Console

    return Console(file=file, force_terminal=True, highlight=False, markup=False, emoji=False)


def _text(cell: Cell | Lines) -> "Text":
    from rich.text import Text

    if isinstance(cell, list):
        return Text("\n", overflow="fold").join(map(_text, cell))
    return Text(one_line(cell.text), cell.style, overflow="fold")
