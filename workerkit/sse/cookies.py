"""The cookies of one stream, between its connections."""

from collections.abc import Iterable
from http.cookies import BaseCookie, Morsel, SimpleCookie

from aiohttp import CookieJar
from yarl import URL

MAX_COOKIES = 50
"""The number that browsers keep at least for one site (RFC 6265, section 6.1)."""

MAX_COOKIE_SIZE = 4096
"""Characters of all names and values: many servers reject header lines of over 8,190 bytes."""


class Cookies:
    """The cookies that a server has set, for its own origin only; kept in memory.

    Cookies beyond the limits are ignored. aiohttp's jar ignores ports, so cookies of other origins
    must not be added.

    Attributes:
        ignored: The number of cookies that were ignored.
    """

    def __init__(self) -> None:
        self._jar: CookieJar | None = None
        self.ignored = 0

    def add(self, cookies: BaseCookie[str], url: URL) -> None:
        """Add the cookies of a response."""
        if not cookies:
            return
        if self._jar is None:
            # `unsafe` allows hosts that are IP addresses. Values are sent back unchanged.
            self._jar = CookieJar(unsafe=True, quote_cookie=False)
        for name, morsel in cookies.items():
            others = [each for each in self._jar if each.key != name]
            size = sum(map(_size, others)) + _size(morsel)
            if len(others) >= MAX_COOKIES or size > MAX_COOKIE_SIZE:
                self.ignored += 1
                continue
            self._jar.update_cookies(_only(name, morsel), url)

    def header(self, url: URL) -> str:
        """Return the value of the header `Cookie` for a request; "" if there are no cookies."""
        if self._jar is None:
            return ""
        found: Iterable[Morsel[str]] = self._jar.filter_cookies(url).values()
        return "; ".join(f"{each.key}={each.coded_value}" for each in found)

    def clear(self) -> None:
        """Discard all cookies: a server that refused them would refuse them again."""
        self._jar = None


def _size(morsel: "Morsel[str]") -> int:
    return len(morsel.key) + len(morsel.value)


def _only(name: str, morsel: "Morsel[str]") -> "SimpleCookie":
    found: SimpleCookie = SimpleCookie()
    dict.__setitem__(found, name, morsel)
    return found
