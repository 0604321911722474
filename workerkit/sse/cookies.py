"""The cookies of one stream, between its connections."""

from collections.abc import Iterable
from http.cookies import BaseCookie, Morsel, SimpleCookie

from aiohttp import CookieJar
from yarl import URL

MOST_COOKIES = 50
"""As many as a browser keeps at least for one site (RFC 6265, section 6.1)."""

LONGEST_COOKIES = 4096
"""Characters of all names and values: many servers refuse a header line of more than 8,190."""


class Cookies:
    """What a server has set, for its own origin alone; forgotten with the process.

    Cookies beyond the bounds are ignored. The jar of aiohttp knows no ports, so one of another
    origin is never given to it.
    """

    def __init__(self) -> None:
        self._jar: CookieJar | None = None
        self.ignored = 0

    def take(self, cookies: BaseCookie[str], url: URL) -> None:
        """Keep the cookies of an answer."""
        if not cookies:
            return
        if self._jar is None:
            # `unsafe` allows for hosts that are IP addresses. Values go back as they came.
            self._jar = CookieJar(unsafe=True, quote_cookie=False)
        for name, morsel in cookies.items():
            others = [each for each in self._jar if each.key != name]
            size = sum(map(_size, others)) + _size(morsel)
            if len(others) >= MOST_COOKIES or size > LONGEST_COOKIES:
                self.ignored += 1
                continue
            self._jar.update_cookies(_only(name, morsel), url)

    def header(self, url: URL) -> str:
        """The value of the header `Cookie` for a request; empty where there is none."""
        if self._jar is None:
            return ""
        found: Iterable[Morsel[str]] = self._jar.filter_cookies(url).values()
        return "; ".join(f"{each.key}={each.coded_value}" for each in found)

    def clear(self) -> None:
        """Forget all of them: a server that refuses them would go on to refuse them."""
        self._jar = None


def _size(morsel: "Morsel[str]") -> int:
    return len(morsel.key) + len(morsel.value)


def _only(name: str, morsel: "Morsel[str]") -> "SimpleCookie":
    found: SimpleCookie = SimpleCookie()
    dict.__setitem__(found, name, morsel)
    return found
