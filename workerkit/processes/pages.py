"""The ops server of a parent, which answers for all of its processes."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from workerkit.config.settings import WorkerSettings
from workerkit.console.server import Console
from workerkit.ops.debug_pages import STACKS, TASKS, DebugPages
from workerkit.ops.port import OpsPort, Page
from workerkit.ops.server import OK, OPEN_METRICS, UNAVAILABLE, json_page
from workerkit.processes.child import Child, Slot
from workerkit.processes.sums import Sums

_DEADLINE = 0.8  # Seconds: less than a probe waits.
_JSON = "application/json"
_NO_RESPONSE = f"no response within {_DEADLINE:g} s"


class AllProcesses:
    """Serves health, metrics and debug pages of all processes.

    Each page queries the ops servers of the processes, which only this machine can reach. A process
    that hangs is reported, and not waited for.

    Args:
        slots: The processes.
        children: Returns all that run, those that are being replaced included.
        stopping: Returns whether all of them are about to end.
        sums: None for no page of metrics.
        describe: Creates the AsyncAPI document.
        serves_views: Whether the processes have HTTP views.
        console: For all of them; None for none.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        slots: Sequence[Slot],
        children: Callable[[], Collection[Child]],
        stopping: Callable[[], bool],
        sums: Sums | None,
        describe: Callable[[], Mapping[str, Any]],
        *,
        serves_views: bool,
        console: Console | None = None,
    ) -> None:
        self._console = console
        self._access = DebugPages(None) if settings.ops.debug else None
        self._port = OpsPort(settings, self._access, describe, serves_views=serves_views)
        self._slots = slots
        self._children = children
        self._stopping = stopping
        self._sums = sums
        self._path = settings.metrics.path
        self._client: ClientSession | None = None

    @property
    def url(self) -> str:
        """Return where it listens, or before `open`, where it will."""
        return self._port.url

    async def open(self) -> None:
        """Listen.

        Raises:
            OSError: The port cannot be opened.
        """
        pages: dict[str, Page] = {
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/health/startup": self._startup,
        }
        if self._sums is not None:
            pages[self._path] = self._metrics
        if self._access is not None:
            pages |= {TASKS: self._debug, STACKS: self._debug}
        await self._port.open(pages, self._status, self._console)
        self._client = ClientSession(timeout=ClientTimeout(total=_DEADLINE))

    async def close(self) -> None:
        """Close the port and all connections to it."""
        await self._port.close()
        if self._client is not None:
            await self._client.close()

    async def _live(self, _: web.Request) -> web.Response:
        # One that is started again is no reason to end the others.
        slots = [each for each in self._slots if not each.obstacle]
        bodies = await self._of_slots("/health/live", slots)
        return _health_page(self._health("alive", "not alive", bodies))

    async def _ready(self, _: web.Request) -> web.Response:
        return _health_page(await self._status())

    async def _status(self) -> dict[str, Any]:
        bodies = await self._of_slots("/health/ready", self._slots)
        return self._health("ready", "not ready", bodies)

    async def _startup(self, _: web.Request) -> web.Response:
        # A process that dies later does not take the start of the others back.
        slots = [each for each in self._slots if each.last_ready is None]
        bodies = await self._of_slots("/health/startup", slots)
        return _health_page(self._health("started", "starting", bodies))

    async def _metrics(self, request: web.Request) -> web.Response:
        assert self._sums is not None
        children = [each for each in self._children() if each.was_started]
        pages = await asyncio.gather(
            *(self._get(each, self._path, OPEN_METRICS) for each in children)
        )
        self._sums.up = {each.number: False for each in self._slots}
        for child, (status, page) in zip(children, pages, strict=True):
            if status == OK and child.code is None:
                read = self._sums.update(child.pid, child.number, page)
                self._sums.up[child.number] = read
        ready = [
            self._sums.up[each.number] and each.running.ready
            for each in self._slots
            if each.running
        ]
        self._sums.ready = len(ready) == len(self._slots) and all(ready) and not self._stopping()
        body, content_type = self._sums.page(", ".join(request.headers.getall("Accept", [])))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _debug(self, request: web.Request) -> web.Response:
        """Respond with the reports of all processes, or of that which `?process=` names."""
        assert self._access is not None
        as_json = self._access.wants_json(request)
        wanted = request.query.get("process")
        slots = [each for each in self._slots if wanted in (None, str(each.number))]
        if not slots:
            raise web.HTTPBadRequest(text=f"process should be from 1 to {len(self._slots)}")
        accept = _JSON if as_json else "text/plain"
        reports = await self._of_slots(request.path, slots, accept)
        if as_json:
            return json_page(OK, {"processes": {str(n): body for n, (_, body) in reports.items()}})
        pids = {each.number: each.child.pid for each in slots if each.child is not None}
        texts = [f"process {n}, pid {pids.get(n)}\n\n{body}" for n, (_, body) in reports.items()]
        return web.Response(text="\n\n".join(texts), headers={"Cache-Control": "no-store"})

    def _health(
        self, good: str, bad: str, bodies: Mapping[int, tuple[int, dict[str, Any]]]
    ) -> dict[str, Any]:
        reasons = ["stopping"] if self._stopping() and good == "ready" else []
        for number, (status, body) in bodies.items():
            if status != OK:
                found = body.get("reasons") or [body.get("status", f"status {status}")]
                reasons += [f"process {number}: {each}" for each in found]
        processes = {str(number): body for number, (_, body) in bodies.items()}
        return {"status": bad if reasons else good, "reasons": reasons, "processes": processes}

    async def _of_slots(
        self, path: str, slots: Sequence[Slot], accept: str = _JSON
    ) -> dict[int, tuple[int, Any]]:
        """Return status and body of a page of each process."""
        bodies = await asyncio.gather(*(self._of_slot(each, path, accept) for each in slots))
        return {slot.number: body for slot, body in zip(slots, bodies, strict=True)}

    async def _of_slot(self, slot: Slot, path: str, accept: str) -> tuple[int, Any]:
        child, reason = slot.running, slot.obstacle
        if child is None or reason:
            status, body = UNAVAILABLE, None
        else:
            status, body = await self._get(child, path, accept)
            reason = _NO_RESPONSE
        if body is None:
            return status, {"reasons": [reason]} if accept == _JSON else f"{reason}\n"
        return status, body

    async def _get(self, child: Child, path: str, accept: str) -> tuple[int, Any]:
        """Return status and body; no body where there was no response in time."""
        assert self._client is not None
        try:
            async with self._client.get(
                f"{child.ops_url}{path}", headers={"Accept": accept}
            ) as response:
                found = response.json() if accept == _JSON else response.text()
                return response.status, await found
        except (ClientError, TimeoutError, ValueError):
            return UNAVAILABLE, None


def _health_page(body: dict[str, Any]) -> web.Response:
    return json_page(UNAVAILABLE if body["reasons"] else OK, body)
