"""The command `workerkit shell`: a prompt with the container and the publisher of a package.

The event loop runs in a thread of its own, and the prompt in the main thread. So connections stay
open while a person thinks, and Ctrl-C reaches the prompt, which cancels what the loop runs.
"""

import ast
import asyncio
import concurrent.futures
import dataclasses
import inspect
import sys
import threading
from code import InteractiveConsole
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from traceback import format_exception_only
from types import CodeType
from typing import Annotated, Any

import typer

from workerkit import logs
from workerkit.amqp.consumer import AMQPOptions
from workerkit.app.assembly import Assembly
from workerkit.app.process import Process
from workerkit.cli.application import loaded
from workerkit.cli.broker import example
from workerkit.cli.parameters import Container, Package, Traceback, faults
from workerkit.container import WorkerContainer, redact_of
from workerkit.describe import format_traceback
from workerkit.errors import RunError, StartError
from workerkit.runner import Runner
from workerkit.safe_text import escape, mask_passwords
from workerkit.signature import given
from workerkit.version import __version__

_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_FAILED = 1
_INTERRUPTED = 130


def shell(
    package: Package,
    container: Container = None,
    command: Annotated[
        str | None,
        typer.Option("--command", "-c", help="Run this code instead of a prompt.", metavar="CODE"),
    ] = None,
    traceback: Traceback = False,
) -> None:
    """Open a Python prompt with `await`, and the container and publisher of PACKAGE.

    Code that is piped to it is run without a prompt.
    """
    with faults(traceback):
        application = loaded(package, container)
        assembly = Runner(application, packages=[package]).assemble()
        level = assembly.settings.log.model_copy(update={"level": "WARNING"})
        logs.configure(level, redact_of(application))
        with _opened(assembly, application) as (loop, names):
            console = _Console(names, loop)
            if command is not None:
                code = console.run_text(command, "<command>")
            elif not sys.stdin.isatty():
                code = console.run_text(sys.stdin.read(), "<stdin>")
            else:
                code = console.prompt(_banner(package, assembly, application))
    raise typer.Exit(code)


@contextmanager
def _opened(
    assembly: Assembly, container: Any
) -> Iterator[tuple[asyncio.AbstractEventLoop, dict[str, Any]]]:
    """Open resources and publishers inside the block, without the consumers.

    Yields the event loop of another thread, and what has a name in the shell.

    Raises:
        RunError: A resource could not be opened, or something could not be closed.
    """
    opened: concurrent.futures.Future[Any] = concurrent.futures.Future()
    failures: list[str] = []
    process = Process(dataclasses.replace(assembly, transports=[]), container)

    async def live() -> None:
        leave = asyncio.Event()
        try:
            await process.start()
            names = await _names(assembly, container)
            opened.set_result((asyncio.get_running_loop(), names, leave))
            await leave.wait()
        except Exception as error:
            opened.set_exception(error)
        finally:
            failures.extend(await process.stop())

    # A daemon, so that code which blocks the loop does not keep the process.
    thread = threading.Thread(target=lambda: asyncio.run(live()), name="event loop", daemon=True)
    thread.start()
    try:
        loop, names, leave = opened.result()
    except StartError:
        thread.join()
        raise
    try:
        yield loop, names
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join()
    if failures:
        raise RunError(*failures)


async def _names(assembly: Assembly, container: Any) -> dict[str, Any]:
    publisher = container.providers["publisher"]()
    return {
        **{each.consumer.__name__: each.consumer for each in assembly.declared},
        "asyncio": asyncio,
        "container": container,
        "publisher": await given(publisher),
        "settings": assembly.settings,
    }


class _Console(InteractiveConsole):
    """A prompt whose code runs in an event loop of another thread."""

    def __init__(self, names: dict[str, Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"__name__": "__console__", "__doc__": None, **names})
        self.compile.compiler.flags |= _FLAGS
        self._loop = loop

    def prompt(self, banner: str) -> int:
        """Read and run code until Ctrl-D or `exit()`; return the exit code."""
        with suppress(ImportError):
            # Both are missing on some systems; then there is no completion and no history.
            import readline
            import rlcompleter

            readline.set_completer(rlcompleter.Completer(self.locals).complete)
            readline.parse_and_bind("tab: complete")
        try:
            self.interact(banner, exitmsg="")
        except SystemExit as error:
            return _exit_code(error)
        return 0

    def run_text(self, text: str, name: str) -> int:
        """Run a program; return the exit code, which is 1 after an exception."""
        try:
            code = compile(text, name, "exec", flags=_FLAGS)
        except (SyntaxError, ValueError):
            self.showsyntaxerror(name)
            return _FAILED
        error = self._run(code)
        if isinstance(error, SystemExit):
            return _exit_code(error)
        if error is not None:
            self._show(error)
        return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else bool(error) * _FAILED

    def runcode(self, code: CodeType) -> None:
        """Run one statement in the loop."""
        error = self._run(code)
        if isinstance(error, SystemExit):
            raise error
        if error is not None:
            self._show(error)

    def showsyntaxerror(self, filename: str | None = None, **more: Any) -> None:
        """Print a syntax error, without frames of this module."""
        self._print(format_exception_only(sys.exception()))

    def _run(self, code: CodeType) -> BaseException | None:
        """Run code in the loop; return what it raised, KeyboardInterrupt after Ctrl-C."""
        running = asyncio.run_coroutine_threadsafe(self._await(code), self._loop)
        try:
            return running.result()
        except KeyboardInterrupt as error:
            running.cancel()
            return error.with_traceback(None)

    async def _await(self, code: CodeType) -> BaseException | None:
        # It is returned because asyncio would end the loop with SystemExit or KeyboardInterrupt.
        try:
            result = eval(code, self.locals)
            if inspect.iscoroutine(result):
                await result
        except BaseException as error:
            # Without the frame of this function.
            raised = error.__traceback__
            return error.with_traceback(raised.tb_next if raised is not None else None)
        return None

    def _show(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.write("\nKeyboardInterrupt\n")
            return
        self._print([format_traceback(error)])

    def _print(self, parts: Iterable[str]) -> None:
        for line in mask_passwords("".join(parts)).rstrip().split("\n"):
            self.write(escape(line) + "\n")


def _exit_code(error: SystemExit) -> int:
    """Return the exit code of a `SystemExit`; print its text, if that is what it has."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(escape(str(error.code)), file=sys.stderr)
    return _FAILED


def _banner(package: str, assembly: Assembly, container: Any) -> str:
    """Return the first lines: what has a name, and three things to try."""
    names = ", ".join(each.consumer.__name__ for each in assembly.declared)
    own = [name for name in container.providers if name not in WorkerContainer.providers]
    provider = next((name for name in own if not name.startswith("_")), "publisher")
    body, queue = "text", "queue"
    for each in assembly.declared:
        if isinstance(each.options, AMQPOptions):
            body, queue = example(each.signature.body), each.options.queues[0].name
            break
    lines = [
        f"workerkit {__version__}: {package}, without its consumers running",
        f"container, publisher, settings, and the classes {names}",
        "",
        "Try:",
        f"  await publisher.publish({body.encode()!r}, {queue!r})",
        f"  container.{provider}()",
        "  settings.shutdown_grace",
        "",
        "Ctrl-C cancels what is running, Ctrl-D leaves.",
    ]
    return "\n".join(map(escape, lines))
