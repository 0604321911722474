"""Four processes and ten thousand dead letters, looked at and mended in a browser."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aio_pika
from playwright.async_api import Page, async_playwright, expect

from tests.browsing import CHROMIUM, OPTIONS
from tests.command import running, write_package
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually

expect.set_options(timeout=60_000)

COUNT = 10_000
CONSUMERS = """
    import os
    from pathlib import Path

    from pydantic import BaseModel

    from workerkit import AMQPConsumer
    from workerkit.delivery import Action


    class Order(BaseModel):
        id: int
        note: str = ""


    class Orders(AMQPConsumer):
        queues = ["orders"]
        on_exception = Action.DEAD_LETTER

        def __init__(self) -> None:
            self.handled = (Path(os.environ["HANDLED"]) / str(os.getpid())).open("a", buffering=1)

        async def handle(self, order: Order) -> None:
            if order.note != "mended" and Path(os.environ["BROKEN"]).exists():
                raise ValueError(f"no price for order {order.id}")
            self.handled.write(f"{order.id}\\n")
"""


@asynccontextmanager
async def tab(url: str, faults: list[str]) -> AsyncIterator[Page]:
    """Open the console in a browser inside the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda each: None if url in each.url else faults.append(each.url))
        await page.goto(url)
        yield page
        await browser.close()


async def publish(url: str, first: int, count: int) -> None:
    """Publish orders, each with an id."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        for start in range(first, first + count, 500):
            numbers = range(start, min(start + 500, first + count))
            await asyncio.gather(
                *(
                    channel.default_exchange.publish(
                        aio_pika.Message(
                            json.dumps({"id": number}).encode(),
                            message_id=f"m{number}",
                            content_type="application/json",
                        ),
                        "orders",
                    )
                    for number in numbers
                )
            )


def handled(directory: Path) -> Counter[int]:
    """Return how often each order was handled, by any process."""
    return Counter(int(line) for each in directory.iterdir() for line in each.read_text().split())


async def replay_all(page: Page) -> None:
    """Replay everything that is in the queue."""
    await page.get_by_label("Select all", exact=True).check()
    await page.get_by_role("button", name="Replay", exact=True).click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Seconds to wait for failures").fill("1")
    await dialog.get_by_role("button", name="Replay").click()


async def edit_one(page: Page) -> None:
    """Find one dead letter by its id, change its body, and replay it."""
    await page.get_by_label("Message id").fill("m1234")
    await page.get_by_role("button", name="Search").click()
    await expect(page.get_by_text("1 match in")).to_be_visible()
    await page.get_by_role("link", name="m1234").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("no price for order 1234")
    await dialog.get_by_role("tab", name="Model").click()
    await expect(dialog.get_by_role("tabpanel")).to_contain_text("as Order")
    await dialog.get_by_role("button", name="Edit and replay").click()
    form = page.get_by_role("dialog")
    await form.get_by_label("Body").fill('{"id": 1234, "note": "mended"}')
    await form.get_by_role("button", name="Review").click()
    await page.get_by_role("dialog").get_by_role("button", name="Replay").click()


async def test_the_whole(rabbit: PrivateRabbit, vhost: str, tmp_path: Path) -> None:
    """One process is killed; consumers are paused and resumed; dead letters are searched, edited
    and replayed; every order is handled exactly once."""
    broken, done = tmp_path / "broken", tmp_path / "done"
    faults: list[str] = []
    broken.touch()
    done.mkdir()
    write_package(tmp_path, "app", consumers=CONSUMERS)
    variables = {
        "WORKERKIT_AMQP__DEFAULT__URL": rabbit.url(vhost),
        "WORKERKIT_OPS__ENABLED": "true",
        "WORKERKIT_OPS__PORT": "0",
        "HANDLED": str(done),
        "BROKEN": str(broken),
    }
    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(running("app", cwd=tmp_path, uvloop=True, **variables))
            for _ in range(4)
        ]
        for each in processes:
            await each.says("consuming")
        await publish(rabbit.url(vhost), 0, COUNT)
        await eventually(lambda: rabbit.queues(vhost)["orders.dlq"].ready == COUNT, 120.0)
        url = next(processes[0].lines("ops server at "))
        page = await stack.enter_async_context(tab(url, faults))

        numbers = page.locator("#numbers")
        await expect(numbers).to_contain_text("10,000 in queues")
        await expect(numbers).to_contain_text("all answer")
        os.kill(processes[3].pid, signal.SIGKILL)
        await expect(numbers).to_contain_text("3 of 4 answer")

        await page.get_by_role("button", name="Pause", exact=True).click()
        await expect(page.locator("#toasts")).to_contain_text("3 of 4 answered")
        await expect(page.get_by_role("button", name="Resume")).to_be_visible()
        await publish(rabbit.url(vhost), COUNT, 50)
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready == 50)
        await expect(page.get_by_role("table", name="Consumers")).to_contain_text("paused")
        assert not handled(done)

        await page.get_by_role("link", name="Dead letters").click()
        await expect(page.get_by_role("table", name="Groups")).to_contain_text("ValueError")
        await edit_one(page)
        await expect(page.get_by_role("table", name="Jobs")).to_contain_text("1 of 1 replayed")
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready == 51)

        await page.get_by_role("link", name="Overview").click()
        await page.get_by_role("button", name="Resume").click()
        # The new ones fail as well, and the edited one is handled.
        await eventually(lambda: rabbit.queues(vhost)["orders.dlq"].ready == COUNT - 1 + 50, 60.0)
        assert handled(done) == {1234: 1}

        await page.get_by_role("link", name="Dead letters").click()
        await expect(page.get_by_text("10,049 dead letters")).to_be_visible()
        await replay_all(page)
        await expect(page.get_by_role("table", name="Jobs")).to_contain_text("1 failed again")
        await eventually(lambda: rabbit.queues(vhost)["orders.dlq"].ready == COUNT - 1 + 50)

        broken.unlink()
        await replay_all(page)
        await expect(page.get_by_role("table", name="Jobs")).to_contain_text(
            "10049 of 10049 replayed", timeout=180_000
        )
        await eventually(lambda: sum(handled(done).values()) == COUNT + 50, 60.0)
        assert handled(done) == Counter(range(COUNT + 50))
        assert all(each.ready == each.unacked == 0 for each in rabbit.queues(vhost).values())
    assert faults == []
