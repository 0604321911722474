"""The parent of one process that starts it again when a file changes, for development."""

import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from signal import SIGCHLD, SIGKILL

from workerkit.errors import ConfigurationError
from workerkit.processes.child import Child, signal_name
from workerkit.safe_text import one_line
from workerkit.stop_signals import exit_now, stop_signals

SUFFIXES = frozenset(
    ".cfg .css .html .ini .j2 .jinja .jinja2 .js .json .proto .py .sql .toml .yaml .yml".split()
)
"""Suffixes of the files that count: not logs and data, which the application may write."""

_MOST_NAMES = 3


class Reloader:
    """Runs the command line of this process in another one, and again after each change.

    It does not import the application, so a fault of the code ends only that process.

    Args:
        package: Its directory is watched, and the `.env` and `.toml` files of the current one.
        directories: Watched as well.

    Raises:
        ConfigurationError: There is no such package.
    """

    def __init__(self, package: str, directories: Sequence[Path] = ()) -> None:
        self._directories = [*_directories_of(package), *(each.resolve() for each in directories)]
        self._changed: dict[str, None] = {}
        self._child: Child | None = None

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit code."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        self._woken = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(SIGCHLD, self._collect)
        watching = [
            asyncio.create_task(self._watch(self._directories, _counts)),
            asyncio.create_task(self._watch([Path.cwd()], _configures, recursive=False)),
        ]
        _say(f"watching {', '.join(map(_shown, self._directories))}")
        with stop_signals(self._woken.set, self._exit) as requested:
            while not requested():
                child = self._child = Child(0, on_change=self._woken.set)
                while not (requested() or self._changed):
                    self._woken.clear()
                    await self._woken.wait()
                if self._changed:
                    _say(f"restarting: {_names(self._changed)}")
                child.stop()
                await child.ended()
                # The next process reads what has changed in the meantime, too.
                self._changed.clear()
            for each in watching:
                each.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        return 0

    async def _watch(
        self, directories: Sequence[Path], counts: Callable[[Path], bool], *, recursive: bool = True
    ) -> None:
        """Note the files that change; many changes within a moment arrive together."""
        from watchfiles import Change, DefaultFilter, awatch

        ignores = DefaultFilter()

        def wanted(change: Change, path: str) -> bool:
            return ignores(change, path) and counts(Path(path))

        async for changes in awatch(*directories, watch_filter=wanted, recursive=recursive):
            self._changed.update(dict.fromkeys(sorted(path for _, path in changes)))
            self._woken.set()

    def _collect(self) -> None:
        child = self._child
        if child is not None and (code := child.collect()) is not None and not child.stop_requested:
            end = f"code {code}" if code >= 0 else signal_name(-code)
            _say(f"ended with {end}: waiting for a change")

    def _exit(self, code: int) -> None:
        if self._child is not None:
            self._child.send(SIGKILL)
        exit_now(code)


def _directories_of(package: str) -> list[Path]:
    """Return where a package is, without importing it."""
    name = package.partition(".")[0]
    spec = find_spec(name)
    if spec is None:
        raise ConfigurationError(f"there is no package {name!r} in {Path.cwd()} or on sys.path")
    places = spec.submodule_search_locations
    found = [str(Path(spec.origin).parent)] if places is None and spec.origin else places or ()
    return [Path(each).resolve() for each in found]


def _counts(path: Path) -> bool:
    return path.suffix in SUFFIXES or _configures(path)


def _configures(path: Path) -> bool:
    return path.name.startswith(".env") or path.suffix == ".toml"


def _names(changed: Iterable[str]) -> str:
    names = [_shown(Path(each)) for each in changed]
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _say(text: str) -> None:
    print(one_line(f"reload: {text}"), file=sys.stderr, flush=True)
