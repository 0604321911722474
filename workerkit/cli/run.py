"""The command `workerkit run`."""

from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import typer

from workerkit.cli.application import loaded
from workerkit.cli.broker import embedded_broker
from workerkit.cli.parameters import Container, Package, Traceback, faults
from workerkit.runner import Runner

Only = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Run only the consumer with this name; repeatable."),
]


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
    traceback: Traceback = False,
) -> None:
    """Run the consumers of PACKAGE until SIGTERM or SIGINT."""
    with faults(traceback), ExitStack() as stack:
        application = loaded(package, container)
        if with_broker:
            stack.enter_context(embedded_broker(application, package, only or ()))
        runner = Runner(application, packages=[package], only=only or ())
        runner.run(traceback=traceback, log_level=log_level, burst=burst)
