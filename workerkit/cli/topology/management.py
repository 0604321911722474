"""Look at queues and bindings by RabbitMQ's management API, where it can be reached."""

import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from time import monotonic
from typing import Any
from urllib.parse import quote

from yarl import URL

from workerkit.config.connections import AMQPSettings
from workerkit.errors import ConfigurationError
from workerkit.safe_text import excerpt

_PORT, _TLS_PORT = 15672, 15671
_TIMEOUT = 5.0
_LONGEST_READ = 15.0
_LARGEST_BODY = 16 * 1024 * 1024
_PIECE = 64 * 1024
_LONGEST_REASON = 200


class NoManagement(Exception):
    """The management API cannot be used; the text is the reason."""


class Management:
    """The management API of one broker. Its methods block.

    Args:
        url: Its address, with user and password if they are not those of *settings*.
        settings: The connection of which it has the credentials and the certificates.
    """

    def __init__(self, url: URL, settings: AMQPSettings, vhost: str) -> None:
        self.address = str(url.with_user(None).with_query(None).with_fragment(None))
        login = url if url.user is not None else settings.address()
        pair = f"{login.user or ''}:{login.password or ''}"
        self._headers = {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
        self._path = url.raw_path.rstrip("/")
        self._vhost = quote(vhost, safe="")
        self._connection = _connection(url, settings)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def check(self, cluster: str) -> None:
        """Check that the API answers for this virtual host of this cluster.

        Args:
            cluster: Its name; empty if that is unknown.

        Raises:
            NoManagement: It does not.
        """
        if not isinstance(self._get(f"/api/vhosts/{self._vhost}"), dict):
            raise NoManagement("it does not know the virtual host, or another server answers")
        overview = self._get("/api/overview")
        found = overview.get("cluster_name") if isinstance(overview, dict) else None
        if cluster and found and found != cluster:
            names = f"{excerpt(str(found), _LONGEST_REASON)}, not of {cluster}"
            raise NoManagement(f"it is that of the cluster {names}: see --management-url")

    def queue(self, name: str) -> dict[str, Any]:
        """Return the description of a queue; empty if there is none."""
        return self._description("queues", name)

    def exchange(self, name: str) -> dict[str, Any]:
        """Return the description of an exchange; empty if there is none."""
        return self._description("exchanges", name)

    def bindings(self, queue: str) -> list[dict[str, Any]]:
        """Return the bindings of a queue."""
        found = self._get(f"/api/queues/{self._vhost}/{quote(queue, safe='')}/bindings")
        return found if isinstance(found, list) else []

    def _description(self, kind: str, name: str) -> dict[str, Any]:
        found = self._get(f"/api/{kind}/{self._vhost}/{quote(name, safe='')}")
        return found if isinstance(found, dict) else {}

    def _get(self, path: str) -> Any:
        """Return the JSON of a page; None if there is none.

        Raises:
            NoManagement: It does not answer, or not with JSON.
        """
        try:
            self._connection.request("GET", self._path + path, headers=self._headers)
            response = self._connection.getresponse()
            body = _read(response)
            # `read1` does not notice the end of a body; the next request needs a closed response.
            response.close()
            if response.status == 404:
                return None
            if response.status != 200:
                raise NoManagement(f"status {response.status}{_HINTS.get(response.status, '')}")
            return json.loads(body)
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            # A part of an answer may be left on the connection.
            self._connection.close()
            text = excerpt(str(error) or type(error).__name__, _LONGEST_REASON)
            raise NoManagement(text) from error


def _read(response: HTTPResponse) -> bytes:
    """Return a body. The timeout of the connection is for each piece, and this one for all.

    Raises:
        OSError: It is too large or too slow.
    """
    body, latest = bytearray(), monotonic() + _LONGEST_READ
    while piece := response.read1(_PIECE):
        body += piece
        if len(body) > _LARGEST_BODY:
            raise OSError(f"its answer is larger than {_LARGEST_BODY} bytes")
        if monotonic() > latest:
            raise TimeoutError(f"its answer took longer than {_LONGEST_READ:g} s")
    return bytes(body)


_HINTS = {
    401: ": the user needs the tag `monitoring` or `management`, or the login is wrong",
    403: ": the user may not use this virtual host",
}


@contextmanager
def management(
    settings: AMQPSettings, vhost: str, urls: Sequence[URL], cluster: str
) -> Iterator[Management]:
    """Provide the management API at the first of *urls* where the one of *cluster* answers.

    Raises:
        ConfigurationError: A certificate cannot be read.
        NoManagement: No server has it.
    """
    reasons = []
    for each in urls:
        api = Management(each, settings, vhost)
        with closing(api):
            try:
                api.check(cluster)
            except NoManagement as error:
                reasons.append(f"{api.address}: {error}")
                continue
            yield api
            return
    raise NoManagement("; ".join(reasons))


def _connection(url: URL, settings: AMQPSettings) -> HTTPConnection:
    host, port = str(url.host), url.port
    if url.scheme == "http":
        return HTTPConnection(host, port, timeout=_TIMEOUT)
    try:
        context = settings.tls.context()
    except OSError as error:
        raise ConfigurationError(f"the certificates cannot be read: {error}") from error
    return HTTPSConnection(host, port, timeout=_TIMEOUT, context=context)


def management_urls(settings: AMQPSettings, url: str | None) -> list[URL]:
    """Return where the management API may be: at *url*, or at the servers of the connection.

    Without a URL the password is sent as the connection sends it: by TLS if that uses TLS.

    Raises:
        ConfigurationError: The URL is wrong.
    """
    if url is not None:
        return [_checked(url)]
    scheme, port = ("https", _TLS_PORT) if settings.is_encrypted else ("http", _PORT)
    hosts = dict.fromkeys(server.name for server in settings.servers)
    return [URL.build(scheme=scheme, host=host, port=port) for host in hosts]


def _checked(text: str) -> URL:
    """Parse the option; its value is not quoted, because it may contain a password."""
    try:
        url = URL(text)
    except ValueError:
        raise ConfigurationError("--management-url is wrong: should be a valid URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(
            "--management-url is wrong: should be http:// or https://, a host and a port"
        )
    return url
