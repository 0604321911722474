"""A headless Chromium."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.browsing import Visit, headless_chromium


# Not of the whole session: while playwright runs, this thread can run no other event loop.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser."""
    with headless_chromium() as browser:
        yield browser


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visit]]:
    """Open a tab for a server; options are those of a browser context. It ends without faults."""
    with ExitStack() as stack:
        visits = []

        def opened(url: str, **options: Any) -> Visit:
            context = chromium.new_context(**options)
            stack.callback(context.close)
            visits.append(Visit(context, url))
            return visits[-1]

        yield opened
        assert [fault for each in visits for fault in each.faults] == []
