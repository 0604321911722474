"""Redirects of event streams: the next request, and what it may contain. Pure: no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from workerkit.errors import StreamRefused
from workerkit.safe_text import excerpt
from workerkit.sse.request import StreamRequest

MAX_REDIRECTS = 10

# RFC 9110, section 15.4; 300 and 304 do not redirect.
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD = frozenset({307, 308})
_MAX_ORIGIN_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Hop:
    """One request in a chain of redirects.

    Attributes:
        trusted: Whether it may contain the configured headers and use the client certificate.
            After a redirect to an untrusted origin, none of the following requests may.
        configured_origin: Whether its origin is the configured one, the only one that gets cookies.
    """

    method: str
    url: URL = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    json: Any = field(repr=False)
    trusted: bool = True
    configured_origin: bool = True

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return excerpt(str(self.url.origin()), _MAX_ORIGIN_LENGTH)


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirect to another origin, followed or not.

    Attributes:
        refusal: Why it is not followed; "" if it is followed.
    """

    origin: str
    target: str
    refusal: str = ""


def first_hop(request: StreamRequest) -> Hop:
    """Return the first request, as it is configured."""
    return Hop(request.method, request.url, request.headers, request.json)


def is_redirect(status: int) -> bool:
    """Return whether a response with this status redirects to another URL."""
    return status in _REDIRECTS


def next_hop(request: StreamRequest, hop: Hop, status: int, location: str | None) -> Hop:
    """Return the request for a redirect; `check_hop` decides whether it may be sent.

    It contains headers only if its origin is trusted.

    Raises:
        StreamRefused: *location* is not an HTTP URL.
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
    configured_origin = trusted and url.origin() == request.url.origin()
    return Hop(method, url, hop.headers if trusted else {}, json, trusted, configured_origin)


def check_hop(request: StreamRequest, hop: Hop, following: Hop) -> Redirect | None:
    """Return the redirect to report; None if it stays within its origin and is followed."""
    same = hop.url.origin() == following.url.origin()
    reason = ""
    if request.redirects == "none":
        reason = "REDIRECTS is 'none'"
    elif same:
        return None
    elif hop.url.scheme == "https" and following.url.scheme == "http":
        reason = "it goes from https to http"
    elif request.redirects == "same-origin" and not following.trusted:
        reason = "REDIRECTS is 'same-origin'; to allow it, add the origin to TRUSTED_ORIGINS"
    elif following.json is not None and not following.trusted:
        reason = (
            "the body of the request would be sent to another origin; to allow it, add the origin "
            "to TRUSTED_ORIGINS"
        )
    return Redirect(hop.origin, following.origin, reason)


def _redirect_url(base: URL, location: str | None) -> URL | None:
    if not location:
        return None
    try:
        url = base.join(URL(location)).with_fragment(None)
        if url.scheme not in ("http", "https") or not url.host:
            return None
        # User and password in the URL of a redirect are ignored.
        url = url.with_user(None)
        url.origin()
    except Exception:
        # The server's text cannot be parsed. Not chained: it may contain a secret.
        return None
    return url
