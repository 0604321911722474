"""The console's page, as a browser displays and runs it, with sample data."""

import gzip
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files

import pytest
from playwright.sync_api import Page, expect

from tests.browser.console_api import PROCESSES, ConsoleApi, serving_console
from tests.browsing import Visit, in_background
from workerkit.console.model import Role

Visits = Callable[..., Visit]

TOKENS: dict[str, Role] = {"secret": "admin", "look": "view"}
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "\x1b[31mred\x1b]0;title\x07 \u202egpj.exe\u2066"
)


@pytest.fixture
def api() -> ConsoleApi:
    """What the server has."""
    return ConsoleApi(interval=0.2)


@contextmanager
def opened(
    api: ConsoleApi, visit: Visits, path: str = "/", *, refused: bool = False, **options: object
) -> Iterator[Page]:
    """Serve, and open the page.

    Args:
        refused: The browser notes requests that the server refuses; these are no faults.
    """
    with in_background(serving_console(api)) as url:
        tab = visit(url, **options)
        tab.page.goto(url + path)
        try:
            yield tab.page
        finally:
            tab.page.goto("about:blank")  # ends the stream, for which the server would wait
            expected = ("about:blank", *(("Failed to load", "net::ERR") if refused else ()))
            tab.faults[:] = [
                each for each in tab.faults if not any(map(each.__contains__, expected))
            ]


def test_seven_numbers_and_a_row_of_each_consumer(api: ConsoleApi, visit: Visits) -> None:
    """The first screen has the totals, the chart, and all consumers with their state."""
    with opened(api, visit) as page:
        numbers = page.locator("#numbers > div")
        expect(numbers).to_have_count(7)
        expect(numbers.nth(6)).to_contain_text("4")
        expect(page.locator("[data-row]")).to_have_count(len(api.rows))
        expect(page.locator("tr", has_text="FraudSignals").first).to_contain_text("refused")
        expect(page.locator(".chart .line").first).to_have_attribute("d", re.compile("^M.*L"))
        expect(page.locator("#live")).to_have_text("live")

        before = numbers.first.locator("b").get_attribute("class"), numbers.nth(4).inner_text()
        expect(numbers.nth(4)).not_to_have_text(before[1])


def test_pause_says_who_answered(api: ConsoleApi, visit: Visits) -> None:
    """A command says how many processes answered, and which did not; the row shows it."""
    api.silent = {PROCESSES[3]}
    with opened(api, visit) as page:
        expect(page.locator("#problems")).to_contain_text("9f04 does not answer")
        expect(page.locator("#numbers > div").nth(6)).to_contain_text("3 of 4 answer")
        line = page.locator("tr", has=page.locator("[data-row=OrderPlaced]"))
        line.get_by_role("button", name="Pause").click()

        expect(page.locator("#toasts")).to_contain_text("Pause OrderPlaced: 3 of 4 answered")
        expect(page.locator("#toasts li")).to_have_text("worker-2:4104: did not answer within 2 s")
        expect(line).to_contain_text("paused in 3 of 4")
        assert [(each.action, each.consumer) for each in api.commands] == [("pause", "OrderPlaced")]


def test_changes_of_one_consumer(api: ConsoleApi, visit: Visits) -> None:
    """Concurrency and prefetch are set in all processes or in one; a task is run."""
    with opened(api, visit, "/#/consumers/PaymentCaptured") as page:
        page.get_by_label("concurrency").fill("7")
        page.get_by_label("concurrency").press("Enter")
        expect(page.locator("#toasts")).to_contain_text(
            "Set concurrency of PaymentCaptured: 4 of 4"
        )
        expect(page.get_by_role("table", name="Processes")).to_contain_text("/ 7")
        page.locator("#scope").select_option(PROCESSES[1])
        page.get_by_label("prefetch").fill("9")
        page.locator("form", has_text="prefetch").get_by_role("button").click()
        expect(page.locator("#toasts")).to_contain_text("Set prefetch of PaymentCaptured: 1 of 1")
        page.goto(page.url.partition("#")[0] + "#/consumers/CloseDay")
        expect(page.get_by_role("table", name="Task")).to_contain_text("every day at 23:30")
        page.locator("main .tools").get_by_role("button", name="Run").click()
        expect(page.locator("#toasts")).to_contain_text("Run CloseDay: 4 of 4 answered")
        page.goto(page.url.partition("#")[0] + "#/audit")
        expect(page.get_by_role("table").locator("tbody tr")).to_have_count(3)

    sent = [(each.action, each.value, each.processes) for each in api.commands]
    assert sent == [("concurrency", 7, None), ("prefetch", 9, [PROCESSES[1]]), ("run", None, None)]


def test_keys_alone_are_enough(api: ConsoleApi, visit: Visits) -> None:
    """Search, move through rows, open, pause, close and the list of keys, without a mouse."""
    with opened(api, visit) as page:
        expect(page.locator("[data-row]").first).to_be_visible()
        page.keyboard.press("/")
        page.keyboard.type("mail.o")
        expect(page.locator("#found [role=option]")).to_have_text(["mail.outgoingqueue"])
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator("[data-row]")).to_have_text(["EmailQueued"])
        page.keyboard.press("Escape")
        expect(page.locator("[data-row]")).to_have_count(len(api.rows))
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        expect(page.locator("[data-row=PaymentCaptured]")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main h1")).to_contain_text("PaymentCaptured")
        page.keyboard.press("Escape")
        expect(page.locator("[data-row=PaymentCaptured]")).to_be_focused()
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
        page.keyboard.press("Escape")
        page.locator("[data-row=PaymentCaptured]").focus()
        while not page.evaluate("document.activeElement.textContent === 'Pause'"):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#toasts")).to_contain_text("4 of 4 answered")


def test_filters_are_part_of_the_address(api: ConsoleApi, visit: Visits) -> None:
    """State, kind and search narrow the rows, and a copied address has them."""
    with opened(api, visit, "/#/?kind=amqp") as page:
        expect(page.locator("[data-row]")).to_have_count(8)
        page.get_by_role("group", name="state").get_by_role("button", name="paused").click()
        expect(page.locator("[data-row]")).to_have_text(["LegacyImport"])
        assert page.url.endswith("#/?state=paused&kind=amqp")
        page.get_by_role("link", name="Overview").click()
        expect(page.locator("[data-row]")).to_have_count(len(api.rows))
        page.get_by_role("button", name="Rate").click()
        expect(page.locator("[data-row]").first).to_have_text(re.compile("AuditTrail|StockChanged"))


def test_hostile_texts_are_only_text(api: ConsoleApi, visit: Visits) -> None:
    """Scripts, images, escapes of terminals and marks of direction are shown, and do nothing."""
    api.rows = [(HOSTILE, *row[1:2], HOSTILE, *row[3:]) for row in api.rows[:1]]
    api.failures = [
        each.model_copy(
            update=dict.fromkeys(("consumer", "error", "text", "place", "delivery"), HOSTILE)
        )
        for each in api.failures[:3]
    ]
    with opened(api, visit) as page:
        name = page.locator("[data-row]")
        expect(name).to_contain_text("<script>window.hacked = 1</script><img src=x")
        expect(name).to_contain_text("\\u001b[31mred\\u001b]0;title\\u0007 \\u202egpj.exe\\u2066")
        expect(page.get_by_role("table", name="Last failures")).to_contain_text("<img src=x")
        assert not re.search("[\x1b\x07\u202e\u2066]", page.locator("main").inner_text())
        name.click()
        expect(page.locator("main h1")).to_contain_text("<script>window.hacked")
        page.get_by_role("button", name="Pause").first.click()
        expect(page.locator("#toasts")).to_contain_text("<script>window.hacked")

        assert page.locator("main script, main img, #toasts img").count() == 0
        assert page.evaluate("window.hacked") is None


def test_login(api: ConsoleApi, visit: Visits) -> None:
    """The page asks for a token, says when it is wrong, and keeps it in this tab only."""
    api.tokens = TOKENS
    with opened(api, visit, refused=True) as page:
        dialog = page.get_by_role("dialog", name="Log in")
        dialog.get_by_label("Token").fill("wrong")
        dialog.get_by_role("button").click()
        expect(dialog.get_by_role("alert")).to_have_text("This token is not accepted.")
        dialog.get_by_label("Token").fill("secret")
        dialog.get_by_role("button").click()
        expect(page.locator("#who")).to_have_text("admin token · admin")
        expect(page.locator("[data-row]").first).to_be_visible()

        assert page.evaluate("JSON.stringify([localStorage.length, document.cookie])") == '[0,""]'
        page.reload()
        expect(page.locator("[data-row]").first).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_role("dialog", name="Log in")).to_be_visible()


def test_locked_out(api: ConsoleApi, visit: Visits) -> None:
    """After too many failures, the page says when to try again."""
    api.tokens = TOKENS
    with opened(api, visit, refused=True) as page:
        dialog = page.get_by_role("dialog", name="Log in")
        for text in ("not accepted", "not accepted", "not accepted", "try again in 30 s"):
            dialog.get_by_label("Token").fill("wrong")
            dialog.get_by_role("button").click()
            expect(dialog.get_by_role("alert")).to_contain_text(text)
        expect(dialog.get_by_role("button")).to_be_disabled()


@pytest.mark.parametrize(
    ("mode", "token", "reason"),
    [
        ("read", "secret", "The console is read-only: OPS__CONSOLE=read."),
        ("operate", "look", "This needs the role operate; yours is view."),
    ],
)
def test_what_is_not_allowed_is_disabled(
    api: ConsoleApi, visit: Visits, mode: str, token: str, reason: str
) -> None:
    """Buttons that the operator may not use are disabled, and say why."""
    api.tokens, api.mode = TOKENS, mode
    with opened(api, visit, refused=True) as page:
        page.get_by_role("dialog").get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        button = page.get_by_role("button", name="Pause").nth(1)
        expect(button).to_be_disabled()
        expect(button).to_have_attribute("title", reason)
        expect(page.get_by_role("button", name="Drain").first).to_be_disabled()


def test_reconnects(api: ConsoleApi, visit: Visits) -> None:
    """Without answers the data is dimmed, and the page says for how long; then it goes on."""
    with opened(api, visit, refused=True) as page:
        expect(page.locator("#live")).to_have_text("live")
        api.down = True
        expect(page.locator("#live")).to_have_text("reconnecting")
        expect(page.locator("#silent")).to_have_text(
            re.compile(r"^no answer for \d+ s · The process is stopping\.$")
        )
        expect(page.locator("body")).to_have_class("stale")
        api.down = False
        expect(page.locator("#live")).to_have_text("live", timeout=30_000)
        expect(page.locator("body")).to_have_class("")
        expect(page.locator("#silent")).to_have_text("")
        page.locator("#live").click()
        expect(page.locator("#live")).to_have_text("paused")


def test_updates_change_the_rows_that_are_there(api: ConsoleApi, visit: Visits) -> None:
    """200 consumers are updated in place, without new elements."""
    api.rows = [(f"{row[0]}{n}", *row[1:]) for n in range(20) for row in api.rows[:10]]
    with opened(api, visit) as page:
        expect(page.locator("[data-row]")).to_have_count(200)
        page.evaluate(
            """() => {
              window.first = document.querySelector('[data-row]');
              window.count = document.querySelectorAll('*').length;
              window.changes = 0;
              new MutationObserver(() => { window.changes += 1; }).observe(
                document.querySelector('main'), { subtree: true, attributes: true });
            }"""
        )
        page.evaluate("new Promise((done) => setInterval(() => window.changes > 20 && done(), 50))")

        assert page.evaluate("window.first.isConnected")
        assert abs(page.evaluate("document.querySelectorAll('*').length - window.count")) < 50


def test_without_consumers_and_metrics(api: ConsoleApi, visit: Visits) -> None:
    """An empty page says what to do."""
    api.rows, api.failures, api.has_metrics = [], [], False
    with opened(api, visit) as page:
        expect(page.locator("main")).to_contain_text("No consumers yet")
        expect(page.locator("main")).to_contain_text("Nothing has failed.")
        expect(page.locator("#problems")).to_contain_text("Metrics are off")


@pytest.mark.parametrize("width", [360, 768, 1280, 2560])
@pytest.mark.parametrize("path", ["/", "/#/consumers/PaymentCaptured", "/#/processes"])
def test_fits_every_width(api: ConsoleApi, visit: Visits, width: int, path: str) -> None:
    """Nothing is wider than the window."""
    with opened(api, visit, path, viewport={"width": width, "height": 900}) as page:
        expect(page.locator("main table").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_theme_is_kept(api: ConsoleApi, visit: Visits) -> None:
    """The theme follows the system until another is chosen, which is kept."""
    with opened(api, visit, color_scheme="dark") as page:
        colour = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(colour) == "rgb(13, 17, 23)"
        page.locator("#theme").click()
        assert page.evaluate(colour) == "rgb(245, 246, 248)"
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-theme", "light")


def test_size() -> None:
    """All files of the page together, as they are sent, have less than 35 kB."""
    sizes = {
        each.name: len(gzip.compress(each.read_bytes()))
        for each in files("workerkit.console").joinpath("page").iterdir()
    }
    assert sum(sizes.values()) < 35_000, sizes
