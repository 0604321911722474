"""What is sent to open an event stream."""

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

# What would end a header, or the request.
_NO_TEXT = re.compile("[\r\n\0]")


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """How a stream is asked for.

    Attributes:
        url: May contain secrets in its query.
        display: The same for logs and errors.
        headers: With the credentials.
        json: Body; None for none.
        tls: None for the system's certificates.
        server_name: That the certificate must have, instead of the host.
        connect_timeout: Seconds for name resolution, TCP and TLS.
        idle_timeout: Seconds without a byte after which the connection is lost; 0 for never.
        redirects: Which redirects are followed; none from https to http.
        trusted_origins: Other origins that get the headers, the body and the TLS identity too.
        tls_elsewhere: For origins that get no client certificate.
        proxy: Of each connection; may contain a password.
        trust_env: Take the proxy from `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.
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
        """The proxy through which *url* is reached; None for none.

        Raises:
            ValueError: The environment has something else than the URL of an HTTP proxy.
        """
        if self.proxy is not None or not self.trust_env:
            return self.proxy
        # aiohttp's own `trust_env` would also send the passwords of ~/.netrc.
        proxies = getproxies()
        text = proxies.get(url.scheme) or proxies.get("all")
        if not text or proxy_bypass(f"{url.host}:{url.port}"):
            return None
        proxy = URL(text if "://" in text else f"http://{text}")
        if proxy.scheme not in ("http", "https") or not proxy.host:
            raise ValueError
        return proxy


def retry_after_seconds(retry_after: str | None) -> float | None:
    """The header `Retry-After`, which has seconds or a date (RFC 9110, section 10.2.3).

    What cannot be read counts as absent.
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
        # It is the server's text, and the parser fails at it in more ways than it documents.
        return None


def unsendable_header(headers: Mapping[str, Any]) -> str:
    """Say which header a request cannot have, without its value; empty where each is fine."""
    names = [name for name, value in headers.items() if not (_is_text(name) and _is_text(value))]
    return f"header {names[0]!r} cannot be sent: write a str without line breaks" if names else ""


def _is_text(found: object) -> bool:
    return isinstance(found, str) and not _NO_TEXT.search(found)
