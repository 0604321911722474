"""A browser, its tabs, and servers that run beside it."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

T = TypeVar("T")

CHROMIUM = shutil.which("chromium")
OPTIONS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    " --disable-sync --no-first-run"
).split()


@contextmanager
def headless_chromium() -> Iterator[Browser]:
    """Run Chromium inside the block. While it runs, this thread can run no event loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS, timeout=60_000)
        yield browser
        browser.close()


class Visit:
    """A tab, and what went wrong in it.

    Attributes:
        faults: Messages of the console, exceptions, and requests to other hosts.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.faults: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))

    def open(self, path: str) -> Page:
        """Open a page of the server, and wait until its document is displayed."""
        self.page.goto(self.url + path)
        self.page.locator("main h1").wait_for()
        return self.page

    def _note(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "blob:")):
            self.faults.append(f"request to {url}")


@contextmanager
def in_background(server: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Run a server in the event loop of another thread."""
    loop, stopped = asyncio.new_event_loop(), asyncio.Event()
    opened: Future[T] = Future()

    async def run() -> None:
        try:
            async with server as value:
                opened.set_result(value)
                await stopped.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        yield opened.result(60.0)
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(60.0)
        loop.close()
