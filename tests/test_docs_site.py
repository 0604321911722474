"""The site of the docs: built without a warning, complete, and independent of the internet."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser

import workerkit
from docs._generate import commands, llms, log_records, pages, settings
from tests.browsing import headless_chromium
from workerkit import testing
from workerkit.ops.counting import METRICS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(300)  # The first test waits for the build.


class Page(HTMLParser):
    """What a page refers to, and what can be referred to.

    Attributes:
        loaded: Addresses of scripts, styles and pictures.
        text: All its text.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one element has."""
        found = {name: value or "" for name, value in attrs}
        self.ids.add(found.get("id", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(found["href"])
        elif "src" in found:
            self.loaded.append(found["src"])

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the site."""
    directory = tmp_path_factory.mktemp("site")
    doctrees = str(directory / "doctrees")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "-d", doctrees]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(directory / "html")],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return directory / "html"


@pytest.fixture(scope="module")
def html(site: Path) -> dict[Path, Page]:
    """The pages of the site."""
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_every_page_has_a_place(html: dict[Path, Page], site: Path) -> None:
    """Each file of docs/ is a page, and an index has a line for it."""
    expected = {each.relative_to(pages.DOCS).with_suffix("") for each in pages.sources()}
    listed = {each.page.relative_to(pages.DOCS).with_suffix("") for each in llms.every_item()}

    assert listed | {Path("index")} == expected
    assert expected <= {each.relative_to(site).with_suffix("") for each in html}


def test_every_link_leads_somewhere(html: dict[Path, Page]) -> None:
    """Each link inside the site leads to a file, and to an element of it."""
    lost = []
    for path, page in html.items():
        for link in page.links:
            file, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            target = (path.parent / file).resolve() if file else path
            if not target.is_file() or (anchor and anchor not in html[target].ids):
                lost.append(f"{path.name}: {link}")
    assert lost == []


def test_nothing_is_loaded_from_elsewhere(html: dict[Path, Page], site: Path) -> None:
    """Scripts, styles, fonts and pictures are files of the site."""
    for path, page in html.items():
        for address in page.loaded:
            if not address.startswith("data:"):
                assert (path.parent / address.partition("?")[0]).resolve().is_file(), address
    styles = [each.read_text() for each in site.rglob("*.css")]
    assert [
        found for each in styles for found in re.findall(r"url\(['\"]?(?:https?:)?//", each)
    ] == []


def test_the_reference_is_complete(html: dict[Path, Page], site: Path) -> None:
    """Every public name, command, variable, option, metric and log record is on its page."""
    ids = {each for page in html.values() for each in page.ids}
    names = [f"workerkit.{name}" for name in workerkit.__all__ if name != "__version__"]
    names += [f"workerkit.testing.{name}" for name in testing.__all__]

    assert [name for name in names if name not in ids] == []
    for page, texts in {
        "commands": [name for name, _ in commands.every_command()],
        "settings": [row.variable for row in settings.rows() if "CONSUMERS" not in row.variable],
        "metrics": [f"workerkit_{each.name}" for each in METRICS],
        "log-records": [each.text.replace("%s", "…") for each in log_records.records()],
        "exit-codes": ["69"],
    }.items():
        shown = " ".join(html[site / "reference" / f"{page}.html"].text.split())
        assert [text for text in texts if " ".join(text.split()) not in shown] == [], page


def test_every_call_of_the_log_has_a_record() -> None:
    """None is written in a way that the reference cannot read, and all have a level."""
    calls = {
        (log_records.module_name(path), number)
        for path in log_records.PACKAGE.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\blog\.(debug|info|warning|error|exception|critical|log|makeRecord)\(", line)
    }
    found = log_records.records()

    assert calls - {(each.module, each.line) for each in found} == set()
    assert {level for each in found for level in each.levels} <= set(log_records.LEVELS)
    assert [each for each in found if not each.levels] == []


def test_a_language_model_finds_every_page(site: Path) -> None:
    """Each link of llms.txt is a page as Markdown, and llms-full.txt has all of them."""
    overview, everything = ((site / name).read_text() for name in ("llms.txt", "llms-full.txt"))
    links = re.findall(r"\]\((.+?)\)", overview)

    assert overview.startswith("# workerkit\n\n> A Python framework")
    assert len(links) == len(set(links)) == len(pages.sources()) - 1  # index.md is llms.txt itself
    for link in links:
        text = (site / link).read_text()
        assert text in everything
        assert not pages.MARKER.search(text), link


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with headless_chromium() as browser:
        yield browser


def test_the_search_works_offline(site: Path, browser: Browser) -> None:
    """Opened as a file, the page finds a term, and requests nothing from a server."""
    requested: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: requested.append(request.url))
    page.goto((site / "index.html").as_uri())
    page.get_by_placeholder("Search").first.fill("prefetch")
    page.keyboard.press("Enter")
    page.locator("ul.search li a", has_text="Back-pressure").first.wait_for()
    page.close()

    assert [url for url in requested if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("name", ["index", "consumers", "reference/settings"])
def test_a_page_fits_every_screen(site: Path, browser: Browser, name: str) -> None:
    """From a telephone to a large screen, nothing but tables and code has to be scrolled."""
    page = browser.new_page()
    page.goto((site / f"{name}.html").as_uri())
    widths = [375, 768, 1024, 1280, 1320, 1366, 1440, 1920]
    shown = []
    for width in widths:
        page.set_viewport_size({"width": width, "height": 800})
        shown.append(page.evaluate("document.documentElement.scrollWidth"))
    page.close()

    assert shown == widths
