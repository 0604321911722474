"""The request that opens an event stream."""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from workerkit.config.connections import Redirects

# Characters that would end a header or the request.
_LINE_ENDS = re.compile("[\r\n\0]")


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """The request for a stream, and how it is sent.

    Attributes:
        url: Its query may contain secrets.
        display: The URL for logs and errors.
        headers: Including credentials.
        json: The body; None for no body.
        tls: None to use the system's certificates.
        server_name: The name that the certificate must have, instead of the host.
        connect_timeout: Seconds for name resolution, TCP and TLS.
        idle_timeout: Seconds without data after which the connection is closed; 0 for no limit.
        redirects: Which redirects are followed; never from https to http.
        trusted_origins: Other origins that get the headers, the body and the client certificate.
        tls_elsewhere: TLS for origins that do not get the client certificate.
        proxy: The proxy; its URL may contain a password.
        trust_env: Whether to use the proxies of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.
    """

    method: str
    url: URL = field(repr=False)
    display: str
    headers: Mapping[str, str] = field(repr=False)
    json: Any
    tls: ssl.SSLContext | None
    server_name: str | None
    connect_timeout: float
    idle_timeout: float
    redirects: Redirects = "any"
    trusted_origins: frozenset[str] = frozenset()
    tls_elsewhere: ssl.SSLContext | None = None
    proxy: URL | None = field(default=None, repr=False)
    trust_env: bool = False

    def __str__(self) -> str:
        text = f"{self.method} {self.display}"
        return text if self.proxy is None else f"{text} through {self.proxy.origin()}"

    def proxy_for(self, url: URL) -> URL | None:
        """Return the proxy for *url*; None for a direct connection.

        Raises:
            ValueError: The environment variable is not the URL of an HTTP proxy.
        """
        if self.proxy is not None or not self.trust_env:
            return self.proxy
        # aiohttp's own `trust_env` would also send passwords from ~/.netrc.
        proxies = getproxies()
        text = proxies.get(url.scheme) or proxies.get("all")
        if not text or proxy_bypass(f"{url.host}:{url.port}"):
            return None
        proxy = URL(text if "://" in text else f"http://{text}")
        if proxy.scheme not in ("http", "https") or not proxy.host:
            raise ValueError
        return proxy


def retry_after_seconds(retry_after: str | None) -> float | None:
    """Return the seconds of `Retry-After`, a number or a date (RFC 9110, section 10.2.3).

    An invalid value counts as absent.
    """
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        date = parsedate_to_datetime(retry_after)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max((date - datetime.now(UTC)).total_seconds(), 0.0)
    except Exception:
        # The parser raises more kinds of exceptions for invalid texts than it documents.
        return None


def unsendable_header(headers: Mapping[str, Any]) -> str:
    """Return the fault of the first header that cannot be sent, without its value; "" if none."""
    names = [name for name, value in headers.items() if not (_is_text(name) and _is_text(value))]
    return f"header {names[0]!r} cannot be sent: write a str without line breaks" if names else ""


def _is_text(found: object) -> bool:
    return isinstance(found, str) and not _LINE_ENDS.search(found)
