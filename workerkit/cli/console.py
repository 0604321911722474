"""The command `workerkit console`: the console alone, without a worker in the same process."""

import asyncio
import os
import webbrowser
from ipaddress import ip_address
from typing import Annotated, Any

import typer
from aiohttp import web
from yarl import URL

from workerkit import logs
from workerkit.app.console import lone_console
from workerkit.cli.fleet import ANY_ADDRESS, Found, Which, find, sources_of
from workerkit.cli.parameters import Traceback, faults, spread
from workerkit.config.settings import WorkerSettings
from workerkit.config.variables import Variables
from workerkit.errors import ConfigurationError, RunError
from workerkit.ops.port import OpsPort, Page
from workerkit.ops.server import json_page, live
from workerkit.stop_signals import stop_signals


@spread
def console(
    which: Which,
    host: Annotated[
        str,
        typer.Option(help="The address to listen on; others than this machine need a token."),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(min=0, max=65_535, help="The port to listen on; 0 picks a free one."),
    ] = 8089,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    traceback: Traceback = False,
) -> None:
    """Serve the console for all processes of an application, until SIGTERM or SIGINT.

    Its address is the first line of the output.
    """
    with faults(traceback):
        found = find(which)
        settings = settings_for(found, host, port)
        logs.configure_unless_done(settings.log, None, None)
        asyncio.run(_serve(found, settings, open_browser=open_))


def settings_for(found: Found, host: str, port: int) -> WorkerSettings:
    """Return the settings of the console: those that were found, with another port.

    Raises:
        ConfigurationError: There is nothing to show, or the console may not be served there.
    """
    settings = found.settings
    name = Variables(type(settings)).name
    if not found.has_broker and not found.targets:
        raise ConfigurationError("name the processes with PACKAGE, --url or --targets")
    if settings.ops.console == "off":
        raise ConfigurationError(f"{name(('ops', 'console'))} is off: set it to read or operate")
    ops = settings.ops.model_copy(
        update={"host": host, "port": port, "fds": (), "reuse_port": False, "enabled": True}
    )
    tokens = (ops.token, ops.operate_token, ops.view_token)
    if not _is_loopback(host) and not any(tokens) and not ops.proxy.addresses:
        raise ConfigurationError(
            f"--host {host}: other machines can reach it, and could act: set"
            f" {name(('ops', 'token'))}, or {name(('ops', 'proxy', 'addresses'))} for a proxy"
            " that authenticates users"
        )
    changed: WorkerSettings = settings.model_copy(update={"ops": ops})
    return changed


class Console:
    """The console of the processes that were found, on a port of its own."""

    def __init__(self, found: Found, settings: WorkerSettings) -> None:
        self._found = found
        self._settings = settings
        self._port = OpsPort(settings, None, None, serves_views=False)
        # A command needs the token of the role admin.
        token = settings.ops.token
        sources = sources_of(found, None if token is None else token.get_secret_value())
        self._page = lone_console(settings, found.app, sources, found.declared)

    @property
    def url(self) -> str:
        """Return its address for a browser on this machine."""
        url = URL(self._port.url)
        return str(url.with_host(ANY_ADDRESS.get(url.host or "", url.host or "")))

    async def open(self) -> None:
        """Listen.

        Raises:
            RunError: The port cannot be opened.
        """
        pages: dict[str, Page] = {"/health/live": _live, "/health/ready": _live}
        try:
            await self._port.open(pages, _status, self._page)
        except OSError as error:
            # asyncio's own text repeats the address.
            number = error.errno or 0
            reason = os.strerror(number) if number > 0 else error.strerror
            raise RunError(
                f"no console at {self._port.url}: {reason}; choose another --host or --port"
            ) from error

    async def close(self) -> None:
        """Close the port and all connections."""
        await self._port.close()


async def _serve(found: Found, settings: WorkerSettings, *, open_browser: bool) -> None:
    served = Console(found, settings)
    stop = asyncio.Event()
    with stop_signals(stop.set):
        await served.open()
        try:
            print(f"console at {served.url}", flush=True)
            # A browser of a terminal would block.
            if open_browser and not await asyncio.to_thread(webbrowser.open, served.url):
                print("no browser found: open the address yourself", flush=True)
            await stop.wait()
        finally:
            await served.close()


async def _live(_: web.Request) -> web.Response:
    return json_page(*live())


async def _status() -> dict[str, Any]:
    return {"status": "alive", "reasons": []}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
