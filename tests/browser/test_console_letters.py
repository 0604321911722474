"""The page of dead letters on a real worker's console, with hostile messages, in a browser."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from playwright.async_api import Locator, Page, async_playwright, expect

from tests.browsing import CHROMIUM, OPTIONS
from tests.command import running, write_package
from tests.waiting import eventually
from workerkit.testing import embedded_broker

expect.set_options(timeout=30_000)

CONSUMERS = """
    from workerkit import AMQPConsumer


    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: dict[str, int]) -> None: ...
"""
# It fails as long as there is a file, and notes what it has handled.
FAILING = """
    import base64
    import json
    import os
    from pathlib import Path

    from workerkit import AMQPConsumer, AMQPMessage
    from workerkit.delivery import Action


    class Payments(AMQPConsumer):
        queues = ["orders"]
        on_exception = Action.DEAD_LETTER

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            number = int((message.message_id or "0").split()[0])
            if Path(os.environ["BROKEN"]).exists():
                raise KeyError(number) if number % 10 == 3 else ValueError(f"no price for {number}")
            line = {
                "body": base64.b64encode(message.raw).decode(),
                "headers": {each: repr(value) for each, value in message.sent.items()},
                "type": message.content_type,
            }
            with Path(os.environ["HANDLED"]).open("a") as file:
                file.write(json.dumps(line) + "\\n")
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
async def console(
    directory: Path, bodies: list[bytes], consumers: str = CONSUMERS, **variables: str
) -> AsyncIterator[Page]:
    """Run a worker whose consumer refuses these bodies; yield a tab with its dead letters."""
    write_package(directory, "app", consumers=consumers)
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
                headers={
                    HOSTILE[:100]: HOSTILE,
                    "deep": {"a": [{"b": [1, 2, {"c": None}]}]},
                    "lines": "one\r\ntwo",
                    "number": number,
                },
                content_type="application/json",
            )
            await channel.default_exchange.publish(message, "orders")


@asynccontextmanager
async def failing(directory: Path, bodies: list[bytes]) -> AsyncIterator[Page]:
    """Run a worker whose consumer fails until `broken` is removed, and notes the rest."""
    (directory / "broken").touch()
    variables = {"BROKEN": str(directory / "broken"), "HANDLED": str(directory / "handled")}
    async with console(directory, bodies, FAILING, **variables) as page:
        await expect(rows_of(page)).to_have_count(min(len(bodies), 50))
        yield page


def rows_of(page: Page) -> Locator:
    """Return the rows of the table of dead letters."""
    return page.get_by_role("table", name="Dead letters").locator("tbody tr")


async def handled(directory: Path, count: int) -> list[dict[str, Any]]:
    """Wait for a number of handled messages; return what the consumer has noted of them."""
    file = directory / "handled"
    await eventually(lambda: file.exists() and file.read_bytes().count(b"\n") == count)
    return [json.loads(line) for line in file.read_text().splitlines()]


async def replay(page: Page, wait: str = "0.5") -> None:
    """Confirm the dialog of a replay."""
    dialog = page.get_by_role("dialog").last
    await dialog.get_by_label("Seconds to wait for failures").fill(wait)
    await dialog.get_by_role("button", name="Replay", exact=True).click()


async def test_search_and_pages(tmp_path: Path) -> None:
    """Dead letters come page by page, by group, and by what is searched."""
    async with failing(tmp_path, [b"%d" % each for each in range(70)]) as page:
        rows, status = rows_of(page), page.get_by_role("status")
        await page.get_by_role("button", name="Load more").click()
        await expect(rows).to_have_count(70)
        await expect(page.get_by_role("button", name="Load more")).to_have_count(0)

        groups = page.get_by_role("table", name="Groups")
        await expect(groups.locator("tbody tr")).to_have_count(2)
        await expect(groups.locator("tbody tr").first).to_contain_text("63")
        await groups.get_by_role("button", name="KeyError").click()
        await expect(rows).to_have_count(7)
        await expect(status.filter(has_text="7 match in 70 searched")).to_be_visible()
        await expect(page.get_by_text("all 7 that match")).to_be_visible()

        await page.locator("main").focus()
        for text in ("/", "FOR 12"):
            await page.keyboard.type(text)
        await page.keyboard.press("Enter")
        await expect(rows).to_have_count(1)
        await expect(rows).to_contain_text("no price for 12")
        await page.get_by_role("button", name="Clear").click()
        await expect(rows).to_have_count(50)
        for label, text, count in (
            ("Header", "number=42", 1),
            ("Header", "missing", 0),
            ("Error class", "KeyError", 7),
            ("Consumer", "Nobody", 0),
        ):
            await page.get_by_label(label, exact=True).fill(text)
            await page.get_by_role("button", name="Search").click()
            await expect(rows).to_have_count(count)
            await page.get_by_role("button", name="Clear").click()
            await expect(rows).to_have_count(50)
        await page.get_by_label("Age", exact=True).select_option("range")
        await page.get_by_label("Failed until").fill("2020-01-01T00:00:00")
        await page.get_by_role("button", name="Search").click()
        await expect(page.get_by_text("No dead letter matches.")).to_be_visible()


async def test_ranges_and_stop(tmp_path: Path) -> None:
    """A range is selected with the shift key; a job stops when its first message fails again."""
    async with failing(tmp_path, [b"%d" % each for each in range(20)]) as page:
        rows, jobs = rows_of(page), page.get_by_role("table", name="Jobs")
        await rows.nth(2).get_by_role("checkbox").click()
        await rows.nth(8).get_by_role("checkbox").click(modifiers=["Shift"])
        await expect(page.get_by_text("7 selected")).to_be_visible()
        await page.get_by_label("Select all", exact=True).check()
        await rows.nth(0).get_by_role("checkbox").click()
        await expect(page.get_by_text("19 selected")).to_be_visible()
        await expect(rows.nth(0).get_by_role("checkbox")).not_to_be_checked()
        await page.get_by_label("Select all shown").click()
        await page.get_by_role("button", name="Replay", exact=True).click()
        await expect(page.get_by_role("dialog")).to_contain_text("first 1, then 10 and then")
        await replay(page, "5")
        await expect(jobs).to_contain_text("1 failed again")
        await expect(jobs).to_contain_text("stopped")
        await expect(rows).to_have_count(20)

        (tmp_path / "broken").unlink()
        await page.get_by_label("Select all", exact=True).check()
        await page.get_by_role("button", name="Replay", exact=True).click()
        await page.get_by_role("dialog").get_by_label("Messages per second").fill("4")
        await replay(page)
        running = jobs.locator("tr", has_text="running")
        await expect(running).to_contain_text(re.compile(r"[1-9]\d? of 20"))
        await running.get_by_role("button", name="Stop").click()
        await expect(jobs).to_contain_text("stopped; ")
        await page.get_by_label("Select all", exact=True).check()
        await page.get_by_role("button", name="Replay", exact=True).click()
        await replay(page)
        await expect(page.get_by_text("No dead letters.")).to_be_visible()
        found = sorted(int(base64.b64decode(each["body"])) for each in await handled(tmp_path, 20))
        assert found == list(range(20))


async def test_an_edit_changes_only_what_was_edited(tmp_path: Path) -> None:
    """A body with other ends of lines, texts that no input can have, and a long body stay whole."""
    lines, long = b'{\r\n "id": 1\r\n}', b'{"id": "' + b"x" * 400_000 + b'"}'
    async with failing(tmp_path, [lines, lines, long, b"\xff\xfe"]) as page:
        (tmp_path / "broken").unlink()
        await edit(page, 0)
        form = page.get_by_role("dialog", name="Edit and replay")
        await form.get_by_role("button", name="Review").click()
        await expect(form.get_by_role("alert")).to_have_text("Nothing was changed.")
        await form.get_by_label("Value of number").fill("x")
        await form.get_by_role("button", name="Review").click()
        await expect(form.get_by_role("alert")).to_contain_text("should be JSON")
        await form.get_by_label("Value of number").fill("7")
        await form.get_by_label("Remove header deep").click()
        await form.get_by_role("button", name="Add header").click()
        await page.keyboard.type("tenant")
        await form.get_by_label("Header value").fill("acme")
        await form.get_by_role("button", name="Review").click()
        review = page.get_by_role("dialog", name="Replay this?")
        await expect(review.locator("del").first).to_contain_text("0")
        await review.get_by_role("button", name="Back").click()
        await expect(form.get_by_label("Header value")).to_have_value("acme")
        await form.get_by_role("button", name="Review").click()
        await replay(page)
        (first,) = await handled(tmp_path, 1)
        headers = first["headers"]
        assert base64.b64decode(first["body"]) == lines
        assert (headers["number"], headers["tenant"]) == ("7", "'acme'")
        assert headers["lines"] == repr("one\r\ntwo")
        assert headers[HOSTILE[:100]] == repr(HOSTILE)
        assert "deep" not in headers
        assert "number" in headers["x-workerkit-original-headers"]

        await expect(rows_of(page)).to_have_count(3)
        await edit(page, 1)
        await form.get_by_label("Body").fill('{\n "id": 2\n}')
        await expect(form.get_by_role("status")).to_contain_text("Valid JSON · changed")
        await form.get_by_role("button", name="Review").click()
        await expect(review.locator("ins")).to_have_text("2")
        await replay(page)
        second = (await handled(tmp_path, 2))[1]
        assert base64.b64decode(second["body"]) == lines.replace(b"1", b"2")
        assert second["headers"]["x-workerkit-original-body"] == repr(lines)

        await expect(rows_of(page)).to_have_count(2)
        await edit(page, 2)
        assert len(await form.get_by_label("Body").input_value()) == len(long)
        await form.get_by_label("Content type").fill("text/plain")
        await form.get_by_role("button", name="Review").click()
        await replay(page)
        third = (await handled(tmp_path, 3))[2]
        assert base64.b64decode(third["body"]) == long
        assert third["type"] == "text/plain"

        await expect(rows_of(page)).to_have_count(1)
        await edit(page, 3)
        await expect(form.get_by_label("Body")).to_be_disabled()
        await form.get_by_label("Value of number").fill("9")
        await page.keyboard.press("Escape")
        await page.get_by_role("dialog", name="Discard").get_by_role("button").first.click()
        await expect(form.get_by_label("Value of number")).to_have_value("9")
        await form.get_by_role("button", name="Review").click()
        await replay(page)
        assert base64.b64decode((await handled(tmp_path, 4))[3]["body"]) == b"\xff\xfe"


async def edit(page: Page, number: int) -> None:
    """Open the form for a dead letter."""
    await rows_of(page).get_by_role("link", name=re.compile(f"^{number} ")).click()
    await page.get_by_role("dialog").get_by_role("button", name="Edit and replay").click()


async def test_too_large_an_edit_keeps_the_form(tmp_path: Path) -> None:
    """What the server refuses is said in the dialog, and nothing that was typed is lost."""
    async with failing(tmp_path, [b'"' + b"x" * 60_000 + b'"']) as page:
        await edit(page, 0)
        form = page.get_by_role("dialog", name="Edit and replay")
        await form.get_by_label("Body").fill('"mended"')
        await form.get_by_role("button", name="Review").click()
        await replay(page)
        review = page.get_by_role("dialog", name="Replay this?")
        await expect(review.get_by_role("alert")).to_contain_text("kept in the headers")
        await review.get_by_role("button", name="Back").click()
        await expect(form.get_by_label("Body")).to_have_value('"mended"')
        await page.go_back()
        await expect(page.get_by_role("dialog")).to_have_count(0)


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
        dialog = page.get_by_role("dialog")
        await expect(dialog.get_by_role("tab", name="Model")).to_be_focused()
        await page.keyboard.press("ArrowRight")
        await expect(dialog.get_by_role("tab", name="Headers")).to_have_attribute(
            "aria-selected", "true"
        )
        await expect(dialog.get_by_role("tabpanel")).to_contain_text("number")
        await page.keyboard.press("Escape")
        await expect(dialog).to_have_count(0)
        await expect(rows.nth(1).get_by_role("link")).to_be_focused()


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
