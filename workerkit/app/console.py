"""The console of a process: it reports, takes commands, and finds the other processes."""

from collections.abc import Iterable

from workerkit.amqp.connection import Connection
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.transport import AMQPTransport
from workerkit.app.assembly import Assembly
from workerkit.config.settings import WorkerSettings
from workerkit.console.audit import Audit
from workerkit.console.commands import Commands
from workerkit.console.dead_letters.desk import Desk
from workerkit.console.fleet import Fleet, LoneFleet
from workerkit.console.overview import Local, Overview
from workerkit.console.server import Console
from workerkit.console.snapshot import ProcessAgent, Snapshot
from workerkit.console.sources import Source
from workerkit.health import Readiness
from workerkit.ops.metrics import Metrics
from workerkit.safe_text import Redact
from workerkit.transport import Declared, Transport


class ProcessConsole:
    """What a process shows of itself, and how it takes part in the fleet.

    Args:
        number: Of this process among those of `--processes`; 0 if it is the only one.

    Attributes:
        page: What the ops server serves; None if it serves no console.
    """

    def __init__(
        self,
        assembly: Assembly,
        readiness: Readiness,
        metrics: Metrics | None,
        redact: Redact | None,
        number: int = 0,
    ) -> None:
        settings = self._settings = assembly.settings
        prefix = str(settings.model_config.get("env_prefix", "")).upper()
        commands = Commands(readiness, settings.ops.console, f"{prefix}OPS__CONSOLE")
        snapshot = Snapshot(
            assembly.name,
            settings,
            assembly.transports,
            readiness,
            metrics,
            drained=lambda: bool(readiness.drained_by),
            number=number or None,
            redact=redact,
        )
        self._agent = ProcessAgent(snapshot, commands)
        self._app = assembly.name
        self._fleet: Fleet | None = None
        self.page: Console | None = None
        self._overview: Overview | None = None
        if settings.ops.enabled and settings.ops.console != "off":
            audit = Audit()
            desk = Desk(settings, assembly.declared, redact, audit)
            self._overview = Overview(assembly.name, [Local(self._agent)], desk.depths)
            self.page = Console(
                settings, self._overview, desk, audit, self._agent, redact, guessable=not number
            )

    def join(self, transports: Iterable[Transport]) -> None:
        """Find the other processes over the connection that consumers have, if there is one."""
        settings = self._settings
        if settings.fleet.mode == "off" or settings.ops.console == "off":
            return
        connection = _first_connection(transports)
        if connection is None:
            return
        self._fleet = Fleet(self._app, settings.fleet, connection, self._agent)
        self._fleet.start()
        if self._overview is not None:
            self._overview.add(self._fleet)

    async def leave(self) -> None:
        """Leave the fleet, before the connection is closed."""
        if self._fleet is not None:
            await self._fleet.close()


def lone_console(
    settings: WorkerSettings,
    app: str,
    sources: Iterable[Source],
    declared: Iterable[Declared] = (),
    redact: Redact | None = None,
) -> Console:
    """Return a console that shows other processes, and runs no consumers itself."""
    audit = Audit()
    desk = Desk(settings, list(declared), redact, audit)
    overview = Overview(app, list(sources), desk.depths)
    return Console(settings, overview, desk, audit, None, redact)


def lone_fleet(assembly: Assembly) -> LoneFleet | None:
    """Return the fleet of an application, for a process that runs none of its consumers."""
    found = fleet_connection(assembly)
    if found is None or assembly.settings.fleet.mode == "off":
        return None
    return LoneFleet(assembly.name, assembly.settings, *found)


def fleet_connection(assembly: Assembly) -> tuple[str, str | None] | None:
    """Return the name of the connection that processes choose, and its virtual host."""
    options = [each.options for each in assembly.declared]
    found = [each for each in options if isinstance(each, AMQPOptions)]
    if not found:
        return None
    first = next((each for each in found if each.connection.casefold() == "default"), found[0])
    return first.connection.casefold(), first.vhost


def _first_connection(transports: Iterable[Transport]) -> Connection | None:
    for each in transports:
        if isinstance(each, AMQPTransport) and each.first_connection is not None:
            return each.first_connection
    return None
