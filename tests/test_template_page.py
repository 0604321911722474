"""The page of the template, in a browser."""

import signal
from contextlib import AsyncExitStack
from pathlib import Path

from playwright.async_api import Page, async_playwright, expect

from tests.browsing import CHROMIUM, OPTIONS
from tests.command import Application, running
from tests.ports import free_port
from workerkit.testing import embedded_broker

TEMPLATE = Path(__file__).parents[1] / "app_template"
expect.set_options(timeout=30_000)


async def place(page: Page, item: str, quantity: str) -> None:
    """Fill in the form, and send it."""
    await page.get_by_label("Item").fill(item)
    await page.get_by_label("Quantity").fill(quantity)
    await page.get_by_role("button", name="Place order").click()


async def test_the_page(tmp_path: Path) -> None:
    """It shows orders as they are booked, also after the service was started again."""
    port = str(free_port())
    url = f"http://127.0.0.1:{port}/"
    strange: list[str] = []
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(embedded_broker())
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        stack.push_async_callback(browser.close)
        page, other = await browser.new_page(), await browser.new_page()
        page.on("pageerror", lambda error: strange.append(str(error)))
        page.on("request", lambda each: None if url in each.url else strange.append(each.url))
        rows = page.locator("tbody tr")
        state = page.locator("#state")

        async def start() -> Application:
            shop = await stack.enter_async_context(
                running(
                    "shop",
                    cwd=TEMPLATE,
                    SHOP_DATABASE_URL=f"sqlite:///{tmp_path / 'shop.db'}",
                    SHOP_AMQP__DEFAULT__URL=broker.url,
                    SHOP_HTTP__PORT=port,
                    SHOP_SSE__SHOP__URL=url,
                    SHOP_OPS__ENABLED="false",
                )
            )
            await shop.says("listening")
            return shop

        shop = await start()
        await page.goto(url)
        await other.goto(url)
        await expect(state).to_have_text("live")
        await expect(page.get_by_text("No orders yet")).to_be_visible()

        await place(page, "<b>tea</b>", "3")
        for each in (page, other):
            await expect(each.locator("tbody tr:not(.waiting)")).to_contain_text("<b>tea</b>3")

        await place(page, "tea", "3000000000")
        await expect(page.locator("#answer")).to_contain_text("quantity: ")

        shop.send(signal.SIGTERM)
        assert await shop.ended() == 0, shop
        await expect(state).to_have_text("reconnecting")
        await start()
        await expect(state).to_have_text("live")
        await place(other, "a cup", "1")
        await expect(rows.first).to_contain_text("a cup")
        await expect(rows).to_have_count(2)

    assert strange == []
