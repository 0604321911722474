"""The command `workerkit top`: the console on a terminal."""

import asyncio
import json
from contextlib import ExitStack
from typing import Annotated, NoReturn

import typer

from workerkit.cli.fleet import (
    Found,
    Served,
    Views,
    Which,
    find,
    sources_of,
    this_machine,
    token_to_read,
)
from workerkit.cli.parameters import Json, Traceback, faults, quiet, spread
from workerkit.cli.terminal import (
    Cell,
    Screen,
    columns_of_terminal,
    has_screen,
    is_for_people,
    print_lines,
    screen,
)
from workerkit.cli.top_lines import UNLIMITED, Sort, lines_of
from workerkit.console.model import FleetView
from workerkit.console.overview import Overview
from workerkit.errors import RunError
from workerkit.stop_signals import exit_now, stop_signals
from workerkit.tasks import cancel_and_wait

Interval = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.2, max=3600, help="Seconds between two views.")
]
SortOption = Annotated[
    Sort, typer.Option("--sort", help="The order of the consumers.", case_sensitive=False)
]


@spread
def top(
    which: Which,
    interval: Interval = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print once and exit, as to a pipe.")
    ] = False,
    as_json: Json = False,
    sort: SortOption = Sort.STATE,
    traceback: Traceback = False,
) -> None:
    """Show all processes of an application: consumers, queues and failures.

    Without options: those of the worker whose ops server is on this machine.
    """
    quiet()
    with faults(traceback):
        asyncio.run(_top(find(which), interval, sort, as_json=as_json, once=once))


async def _top(found: Found, interval: float, sort: Sort, *, as_json: bool, once: bool) -> None:
    views = await open_views(found, interval)
    try:
        view = await views.view()
        if has_screen() and not once and not as_json:
            await Top(views, view, interval, sort).run()
            return
        # A rate needs two of them.
        await asyncio.sleep(max(interval, view.interval))
        view = await views.view()
    finally:
        await views.close()
    if as_json:
        print(json.dumps(view.model_dump(mode="json"), indent=2))
    else:
        width = columns_of_terminal() if is_for_people() else UNLIMITED
        print_lines(lines_of(view, width, UNLIMITED, sort))


async def open_views(found: Found, interval: float) -> Views:
    """Return where the views come from: one worker, several, or all over the broker.

    Raises:
        StartError: They cannot be reached.
    """
    token = token_to_read(found.settings.ops)
    if not found.has_broker and len(found.targets) < 2:
        # The worker knows the others of its application, and has a history already.
        url = found.targets[0] if found.targets else this_machine(found.settings)
        return Served(url, token)
    return Merged(Overview(found.app, sources_of(found, token), interval=interval))


class Merged:
    """The view of several processes, without a console in between."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview

    async def view(self) -> FleetView:
        """Return the state of all processes now.

        Raises:
            RunError: None answers, with the reasons.
        """
        view = await self._overview.view()
        if not view.processes:
            reasons = view.problems or [f"no process of {self._overview.app!r} answers"]
            raise RunError(*reasons)
        return view

    async def close(self) -> None:
        """Close connections."""
        await self._overview.close()


class Top:
    """The screen, until somebody leaves it."""

    def __init__(self, views: Views, view: FleetView, interval: float, sort: Sort) -> None:
        self._views = views
        self._view = view
        self._interval = interval
        self._sort = sort
        self._problem = ""
        self._left = False
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Show the views until `q`, SIGINT or SIGTERM."""
        with ExitStack() as stack:
            taken = stack.enter_context(screen(self._type, self._changed.set))

            def end(code: int) -> NoReturn:
                taken.close()
                exit_now(code)

            requested = stack.enter_context(stop_signals(self._changed.set, end))
            polling = asyncio.create_task(self._poll())
            try:
                while not self._left and not requested():
                    self._changed.clear()
                    self._draw(taken)
                    if polling.done():
                        await polling
                    await self._changed.wait()
            finally:
                await cancel_and_wait([polling])

    def _draw(self, taken: Screen) -> None:
        footer = f"q quit   s sort: {self._sort}"
        lines = lines_of(self._view, *taken.size, self._sort, footer)
        if self._problem:
            lines[1:1] = [[Cell(self._problem, "bold red")]]
        taken.show(lines)

    def _type(self, key: str) -> None:
        if key in "qQ":
            self._left = True
        elif key in "sS":
            self._sort = self._sort.next
        self._changed.set()

    async def _poll(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._interval)
                try:
                    self._view, self._problem = await self._views.view(), ""
                except RunError as error:
                    # The worker may start again.
                    self._problem = str(error)
                self._changed.set()
        finally:
            self._changed.set()
