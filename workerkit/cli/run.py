"""The command `workerkit run`."""

import re
from contextlib import ExitStack
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from workerkit.app.assembly import settings_source
from workerkit.cli.application import add_current_directory, loaded
from workerkit.cli.broker import embedded_broker
from workerkit.cli.parameters import Container, Package, Traceback, faults
from workerkit.config.load import load_settings
from workerkit.config.sections import MOST_PROCESSES
from workerkit.container import redact_of
from workerkit.errors import ConfigurationError
from workerkit.processes.cpus import available_cpus
from workerkit.processes.link import ParentLink
from workerkit.runner import Runner

_COUNTS = range(1, MOST_PROCESSES + 1)

Only = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Run only the consumer with this name; repeatable."),
]

Processes = Annotated[
    str | None,
    typer.Option(metavar="N", help="Run N processes, or auto: one per CPU; overrides PROCESSES."),
]
Reload = Annotated[
    bool, typer.Option("--reload", help="Start again when a file changes, for development.")
]
ReloadDirs = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Another directory that --reload watches; repeatable.",
    ),
]


_BROKER_OF_ONE = (
    "--embedded-broker is for one process, not {}: run `workerkit broker` beside it, and set the"
    " URL of the connection to the one that it prints"
)


class LogLevel(StrEnum):
    """The log levels of the option `--log-level`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def run(
    package: Package,
    only: Only = None,
    container: Container = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            metavar="LEVEL",
            help="debug, info, warning or error; overrides LOG__LEVEL.",
            case_sensitive=False,
        ),
    ] = None,
    with_broker: Annotated[
        bool,
        typer.Option("--embedded-broker", help="Use an in-process broker, for demos."),
    ] = False,
    burst: Annotated[
        bool, typer.Option("--burst", help="Handle what there is, then exit: for jobs.")
    ] = False,
    processes: Processes = None,
    reload: Reload = False,
    reload_dir: ReloadDirs = None,
    traceback: Traceback = False,
) -> None:
    """Run the consumers of PACKAGE until SIGTERM or SIGINT."""
    parent = ParentLink.inherited()
    with faults(traceback), ExitStack() as stack:
        if burst:
            _check_burst(processes, reload)
        if reload and parent is None:
            _check_reload(processes)
            add_current_directory()
            # The modules of several processes take long to import, and most workers run in one.
            from workerkit.processes.reload import Reloader

            raise typer.Exit(Reloader(package, reload_dir or ()).run())
        application = loaded(package, container)
        count = 1 if parent or burst else _number_of_processes(processes, application)
        if count > 1:
            if with_broker:
                raise ConfigurationError(_BROKER_OF_ONE.format(count))
            from workerkit.processes.supervisor import Supervisor

            assembly = Runner(application, packages=[package], only=only or ()).assemble()
            supervisor = Supervisor(assembly, count, redact_of(application))
            raise typer.Exit(supervisor.run(log_level))
        if with_broker:
            stack.enter_context(embedded_broker(application, package, only or ()))
        runner = Runner(application, packages=[package], only=only or ())
        runner.run(traceback=traceback, log_level=log_level, burst=burst, parent=parent)


def _number_of_processes(option: str | None, application: Any) -> int:
    """Return the number that the option states, or else the settings.

    Raises:
        ConfigurationError: The option is neither a possible number nor `auto`.
    """
    wanted: object = option
    if option is None:
        settings, _ = load_settings(*settings_source(application))
        # The faults of the settings are reported with those of the package.
        wanted = 1 if settings is None else settings.processes
    if isinstance(wanted, str) and wanted.lower() == "auto":
        return available_cpus()
    if not re.fullmatch("[0-9]{1,4}", str(wanted)) or int(str(wanted)) not in _COUNTS:
        raise ConfigurationError(
            f"--processes {option}: should be a number from 1 to {MOST_PROCESSES}, or auto"
        )
    return int(str(wanted))


def _check_burst(processes: str | None, reload: bool) -> None:
    """Check whether one process is run, once.

    Raises:
        ConfigurationError: Another option starts several processes, or starts it again.
    """
    if reload or processes not in (None, "1"):
        other = "--reload" if reload else f"--processes {processes}"
        raise ConfigurationError(
            f"--burst is for one process that ends, not {other}: leave one of them out;"
            " several jobs may run at the same time"
        )


def _check_reload(processes: str | None) -> None:
    """Check whether the process can be restarted when a file changes.

    Raises:
        ConfigurationError: watchfiles is missing, or there are several processes.
    """
    if processes not in (None, "1"):
        raise ConfigurationError(
            f"--reload is for one process, not --processes {processes}: leave one of them out"
        )
    if find_spec("watchfiles") is None:
        raise ConfigurationError("--reload needs watchfiles: pip install 'workerkit[reload]'")
