"""The page of dead letters on a real worker's console, with hostile messages, in a browser."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.browsing import CHROMIUM, OPTIONS
from tests.command import running, write_package
from workerkit.testing import embedded_broker

expect.set_options(timeout=30_000)

CONSUMERS = """
    from workerkit import AMQPConsumer


    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: dict[str, int]) -> None: ...
"""
SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
HOSTILE = f"{SCRIPT}\x1b[31m\x1b]0;title\x07\u202egpj.exe\u2066\0"
BODIES = [
    SCRIPT.encode(),
    HOSTILE.encode(),
    b"\xff\xfe\x00" * 50,
    b"[" * 20_000,
    b'{"a": "' + b"x" * 1_000_000 + b'"}',
    b'{"__proto__": {"x": 1}, "constructor": 2}',
    b"",
]


@asynccontextmanager
async def console(directory: Path, bodies: list[bytes], **variables: str) -> AsyncIterator[Page]:
    """Run a worker whose consumer refuses these bodies; yield a tab with its dead letters."""
    write_package(directory, "app", consumers=CONSUMERS)
    faults: list[str] = []
    async with embedded_broker() as broker:
        given: dict[str, Any] = {
            "WORKERKIT_AMQP__DEFAULT__URL": broker.url,
            "WORKERKIT_OPS__ENABLED": "true",
            "WORKERKIT_OPS__PORT": "0",
            **variables,
        }
        async with running("app", cwd=directory, **given) as app, async_playwright() as playwright:
            await app.says("consuming")
            await publish(broker.url, bodies)
            url = next(app.lines("ops server at "))
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
            page = await browser.new_page()
            page.set_default_timeout(30_000)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda message: faults.append(message.text))
            page.on("request", lambda each: None if url in each.url else faults.append(each.url))
            await page.goto(f"{url}/#/dead-letters")
            yield page
            await browser.close()
    assert faults == []


async def publish(url: str, bodies: list[bytes]) -> None:
    """Publish messages with hostile ids and headers."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        for number, body in enumerate(bodies):
            message = aio_pika.Message(
                body,
                message_id=f"{number} {HOSTILE[:150]}",
                headers={HOSTILE[:100]: HOSTILE, "deep": {"a": [{"b": [1, 2, {"c": None}]}]}},
                content_type="application/json",
            )
            await channel.default_exchange.publish(message, "orders")


async def test_hostile_messages(tmp_path: Path) -> None:
    """Each is shown in all forms, and none has any effect."""
    async with console(tmp_path, BODIES) as page:
        rows = page.get_by_role("table", name="Dead letters").locator("tbody tr")
        await expect(rows).to_have_count(len(BODIES))
        await expect(rows.first).to_contain_text("<script>")
        await expect(rows.first).to_contain_text("\\u202e")
        for number in range(len(BODIES)):
            await rows.nth(number).get_by_role("link").click()
            dialog = page.get_by_role("dialog")
            for tab in await dialog.get_by_role("tab").all():
                await tab.click()
                await expect(dialog.get_by_role("tabpanel")).not_to_be_empty()
            await dialog.get_by_role("button", name="Close").click()
            await expect(dialog).to_have_count(0)
        assert await page.evaluate("window.hacked") is None
        assert await page.title() == "Dead letters · app"


async def test_delete_and_undo(tmp_path: Path) -> None:
    """The number has to be typed, and the button to undo counts down."""
    async with console(tmp_path, [b"1", b"2", b"3"]) as page:
        rows = page.get_by_role("table", name="Dead letters").locator("tbody tr")
        await expect(rows).to_have_count(3)
        await rows.nth(0).get_by_role("checkbox").check()
        await rows.nth(1).get_by_role("checkbox").check()
        await page.get_by_role("button", name="Delete").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("Delete 2 dead letters?")
        await expect(dialog.get_by_role("button", name="Delete")).to_be_disabled()
        await dialog.get_by_label("Type 2").fill("2")
        await dialog.get_by_role("button", name="Delete").click()

        await page.get_by_role("button", name="Undo (").click()
        jobs = page.get_by_role("table", name="Jobs")
        await expect(jobs).to_contain_text("2 are in the queue again")
        await expect(rows).to_have_count(3)


async def test_the_keyboard(tmp_path: Path) -> None:
    """Arrows move through the rows, space selects, Enter opens, Escape closes."""
    async with console(tmp_path, [b"1", b"2", b"3"]) as page:
        rows = page.get_by_role("table", name="Dead letters").locator("tbody tr")
        await expect(rows).to_have_count(3)
        await page.locator("main").focus()
        for key in ("ArrowDown", "ArrowDown", "Space"):
            await page.keyboard.press(key)
        await expect(page.get_by_text("1 selected")).to_be_visible()
        await expect(rows.nth(1).get_by_role("checkbox")).to_be_checked()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize(
    ("token", "replays"),
    [("view-secret", False), ("operate-secret", True)],
)
async def test_roles(tmp_path: Path, token: str, replays: bool) -> None:
    """A button that the role does not allow is disabled, and says why."""
    tokens = {
        "WORKERKIT_OPS__TOKEN": "admin-secret",
        "WORKERKIT_OPS__OPERATE_TOKEN": "operate-secret",
        "WORKERKIT_OPS__VIEW_TOKEN": "view-secret",
    }
    write_package(tmp_path, "app", consumers=CONSUMERS)
    async with embedded_broker() as broker:
        given: dict[str, Any] = {
            "WORKERKIT_AMQP__DEFAULT__URL": broker.url,
            "WORKERKIT_OPS__ENABLED": "true",
            "WORKERKIT_OPS__PORT": "0",
            **tokens,
        }
        async with running("app", cwd=tmp_path, **given) as app, async_playwright() as playwright:
            await app.says("consuming")
            await publish(broker.url, [b"1"])
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
            page = await browser.new_page()
            await page.goto(f"{next(app.lines('ops server at '))}/#/dead-letters")
            await page.get_by_label("Token").fill(token)
            await page.get_by_role("button", name="Log in").click()
            row = page.get_by_role("table", name="Dead letters").locator("tbody tr")
            await row.get_by_role("checkbox").check()
            replay = page.get_by_role("button", name="Replay", exact=True)
            delete = page.get_by_role("button", name="Delete", exact=True)
            await (expect(replay).to_be_enabled() if replays else expect(replay).to_be_disabled())
            await expect(delete).to_be_disabled()
            await expect(delete).to_have_attribute(
                "title", f"This needs the role admin; yours is {token.partition('-')[0]}."
            )
            await asyncio.wait_for(browser.close(), 30)
