"""Take the pictures of the docs: `.venv/bin/python -m docs.screenshots`.

It runs `make demo`, takes its pages with Chromium, and the output of commands on a terminal.
"""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Error, Page
from rich.console import Console
from rich.text import Text

from tests.browsing import headless_chromium
from tests.ports import free_port
from tests.pseudo_terminal import at_terminal

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "_static" / "screenshots"
LARGEST = 150_000
COLUMNS = 110
WORKERKIT = (sys.executable, "-m", "workerkit")


@dataclass(frozen=True, slots=True)
class Demo:
    """The addresses of a running demo."""

    http: str
    broker: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A page of the demo.

    Attributes:
        height: In pixels.
        shown: A selector of what has to be visible first.
        press: The name of a button to press before that.
    """

    name: str
    path: str
    height: int
    shown: str
    press: str = ""


PAGES = (
    Picture("http-docs", "/docs#PlaceOrder_post", 720, "[open] .good >> text=bytes", "Send"),
    Picture("orders-live", "/", 480, "tr:nth-child(3)"),
)
COMMANDS = {
    "list": ("list", "shop"),
    "settings": ("settings", "shop"),
    "dead-letters": ("dead-letters", "list", "--url", "{broker}", "orders"),
}


def main() -> None:
    """Take all pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    take_console()
    with demo() as running:
        with headless_chromium() as browser:
            for picture in PAGES:
                take(browser, running, picture)
        publish_invalid_orders(running)
        for name, command in COMMANDS.items():
            words = [word.format(broker=running.broker) for word in command]
            save(f"{name}.svg", svg(words, asyncio.run(on_a_terminal(words))))


@contextmanager
def demo() -> Iterator[Demo]:
    """Run `make demo` inside the block, until it has printed its addresses."""
    command = ["make", "--silent", "demo"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        output = ""
        http = broker = None
        while not (http and broker):
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"make demo has ended; its output:\n{output}")
            output += line
            http = re.search(r"http://127\.0\.0\.1:\d+", output)
            broker = re.search(r"amqp://\S+?/(?=\s)", output)
        yield Demo(http[0], broker[0])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.wait(30)


CONSOLE = {
    "console": ("#/", {"width": 1280, "height": 760}, "light"),
    "console-dark": ("#/", {"width": 1280, "height": 760}, "dark"),
    "console-narrow": ("#/", {"width": 390, "height": 844}, "light"),
    "console-dead-letters": ("#/dead-letters", {"width": 1280, "height": 760}, "light"),
}


def take_console() -> None:
    """Take the pictures of the console, with the sample data of its tests."""
    port = free_port()
    command = [sys.executable, "-m", "tests.browser.console_api", "--port", str(port)]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, **quiet)
    try:
        with headless_chromium() as browser:
            for name, (route, size, scheme) in CONSOLE.items():
                context: Any = {"viewport": size, "color_scheme": scheme}
                page = browser.new_page(**context)
                open_page(page, f"http://127.0.0.1:{port}/{route}")
                page.locator("main td").first.wait_for()
                page.wait_for_timeout(3_000)  # Two more views, so that all of them are drawn.
                save(f"{name}.png", page.screenshot())
                page.close()
    finally:
        process.terminate()
        process.wait(30)


def take(browser: Browser, running: Demo, picture: Picture) -> None:
    """Take the picture of a page; say so if the demo does not have it."""
    page = browser.new_page(viewport={"width": 1100, "height": picture.height})
    if open_page(page, running.http + picture.path):
        if picture.press:
            page.get_by_role("button", name=picture.press).click()
        page.locator(picture.shown).first.wait_for()
        save(f"{picture.name}.png", page.screenshot())
    else:
        print(f"{picture.name}: the demo has no page {picture.path}")
    page.close()


def open_page(page: Page, url: str, deadline: float = 30.0) -> bool:
    """Open a page as soon as the demo listens; return whether it exists."""
    until = time.monotonic() + deadline
    while True:
        try:
            response = page.goto(url)
        except Error:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return response is not None and response.ok


def publish_invalid_orders(running: Demo) -> None:
    """Publish orders that become dead letters."""
    for body in ('{"id": 1}', "no order", '{"id": "x", "item": "tea"}'):
        command = [*WORKERKIT, "publish", running.broker, "orders", body]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def svg(words: list[str], output: str) -> bytes:
    """Return a picture of a terminal in which a command of workerkit has run."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    shown = [re.sub(r":\d+/$", ":5672/", word) for word in words]
    console.print(Text.from_ansi(f"$ workerkit {' '.join(shown)}\n{output}"))
    picture = console.export_svg(title="workerkit")
    # rich loads a font from the internet.
    return re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL).encode()


async def on_a_terminal(words: list[str]) -> str:
    """Return what a command prints on a terminal, with its colours."""
    async with at_terminal(*words, cwd=ROOT / "app_template", width=COLUMNS) as terminal:
        await terminal.ended()
        return terminal.output.replace("\r\n", "\n").rstrip()


def save(name: str, content: bytes) -> None:
    """Write a picture, which has to be small."""
    if len(content) > LARGEST:
        raise RuntimeError(f"{name} has {len(content)} bytes: take less of the page")
    (PICTURES / name).write_bytes(content)
    print(f"{name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
