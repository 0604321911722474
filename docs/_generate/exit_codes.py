"""The table of exit codes."""

from collections.abc import Iterator

from docs._generate.markdown import code, summary, table
from workerkit.cli.probe import FAILED
from workerkit.errors import StartError


def exit_codes() -> str:
    """Return a table of the exit codes and the errors that lead to them."""
    lines = [(code(0), "", "Stopped by SIGTERM or SIGINT, or the command has done its work.")]
    errors = sorted(_errors(StartError), key=lambda each: (each.exit_code, each.__name__))
    lines += [(code(each.exit_code), code(each.__name__), summary(each)) for each in errors]
    lines.append((code(2), "", "The command line is wrong."))
    lines.append((code(FAILED), "", "`workerkit probe`: the worker is unhealthy or not reached."))
    return table(("code", "error", "meaning"), lines)


def _errors(kind: type[StartError]) -> Iterator[type[StartError]]:
    for each in kind.__subclasses__():
        if each.__module__.startswith("workerkit."):
            yield each
        yield from _errors(each)
