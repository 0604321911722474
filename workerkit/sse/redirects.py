"""Where a redirect of an event stream leads, and what may be sent there. Pure: no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from workerkit.errors import StreamRefused
from workerkit.safe_text import excerpt
from workerkit.sse.request import StreamRequest

MOST_REDIRECTS = 10

# RFC 9110, section 15.4; 300 and 304 lead nowhere.
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD = frozenset({307, 308})
_LONGEST_ORIGIN = 200


@dataclass(frozen=True, slots=True)
class Hop:
    """One request on the way to a stream.

    Attributes:
        trusted: Whether it gets the headers, the cookies and the certificate that are configured.
            Once a redirect has led elsewhere, none of the next requests gets them.
        home: Whether it goes to the origin that is configured, which alone gets cookies.
    """

    method: str
    url: URL = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    json: Any = field(repr=False)
    trusted: bool = True
    home: bool = True

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return excerpt(str(self.url.origin()), _LONGEST_ORIGIN)


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirect to another origin, followed or not.

    Attributes:
        refusal: Why it is not followed; empty where it is.
    """

    origin: str
    target: str
    refusal: str = ""


def first_hop(request: StreamRequest) -> Hop:
    """The request as it is configured."""
    return Hop(request.method, request.url, request.headers, request.json)


def is_redirect(status: int) -> bool:
    """Whether an answer of this status leads to another URL."""
    return status in _REDIRECTS


def next_hop(request: StreamRequest, hop: Hop, status: int, location: str | None) -> Hop:
    """The request that a redirect asks for; whether it may be sent is not looked at.

    Headers, cookies and a body are only in it where its origin may have them.

    Raises:
        StreamRefused: *location* is no URL of HTTP.
    """
    url = _redirect_url(hop.url, location)
    if url is None:
        text = f"{request} was answered by {status} without the URL of an HTTP server"
        raise StreamRefused(text, status)
    trusted = hop.trusted and (
        url.origin() == hop.url.origin() or str(url.origin()) in request.trusted_origins
    )
    keeps = status in _SAME_METHOD or (hop.method not in ("GET", "POST") and status != 303)
    method, json = (hop.method, hop.json) if keeps else ("GET", None)
    home = trusted and url.origin() == request.url.origin()
    return Hop(method, url, hop.headers if trusted else {}, json, trusted, home)


def check_hop(request: StreamRequest, hop: Hop, following: Hop) -> Redirect | None:
    """What to report of a redirect: None where it stays on its origin and is followed."""
    same = hop.url.origin() == following.url.origin()
    reason = ""
    if request.redirects == "none":
        reason = "REDIRECTS is none"
    elif same:
        return None
    elif hop.url.scheme == "https" and following.url.scheme == "http":
        reason = "it leads from https to http"
    elif request.redirects == "same-origin" and not following.trusted:
        reason = "REDIRECTS is same-origin; TRUSTED_ORIGINS may name it"
    elif following.json is not None and not following.trusted:
        reason = "the body of the request would leave its origin; TRUSTED_ORIGINS may name it"
    return Redirect(hop.origin, following.origin, reason)


def _redirect_url(base: URL, location: str | None) -> URL | None:
    if not location:
        return None
    try:
        url = base.join(URL(location)).with_fragment(None)
        if url.scheme not in ("http", "https") or not url.host:
            return None
        # A server does not say with which password another one is asked.
        url = url.with_user(None)
        url.origin()
    except Exception:
        # It is the server's text; not chained, because it may be a secret.
        return None
    return url
