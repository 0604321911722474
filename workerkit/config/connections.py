"""Settings of connections: message brokers, servers of event streams, TLS."""

import ssl
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from yarl import URL

from workerkit.config.broker_url import (
    BYTE_ORDER_MARK,
    DEFAULT_PORTS,
    SEPARATORS,
    USE_HOSTS,
    check_broker_url,
    check_credential,
    check_vhost,
    heartbeat_of,
    vhost_of,
)
from workerkit.config.hosts import Host, parse_host
from workerkit.config.sections import SECTION, Grace, Seconds, lower

Port = Annotated[int, Field(ge=1, le=65_535)]
Declare = Annotated[Literal["missing", "always", "never"], BeforeValidator(lower)]
EvidenceStyle = Annotated[Literal["full", "brief"], BeforeValidator(lower)]
DefaultType = Annotated[Literal["quorum", "classic"], BeforeValidator(lower)]
Auth = Annotated[Literal["plain", "external"], BeforeValidator(lower)]
CorruptCursors = Annotated[Literal["set-aside", "wait"], BeforeValidator(lower)]
Redirects = Annotated[Literal["any", "same-origin", "none"], BeforeValidator(lower)]


class TLSSettings(BaseModel):
    """TLS options of a connection; used if the URL begins with `amqps` or `https`.

    Attributes:
        ca: File with trusted certificates; those of the system by default.
        cert: File with the client's certificate, and with its key unless `key` is set.
        key: File with the client's key.
        key_password: Password of the key.
        server_name: Name that the server's certificate must contain, instead of the URL's host.
        verify: Verify the server's certificate. Without it, any server can impersonate the right
            one: each connection logs a WARNING.
    """

    model_config = SECTION

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    key_password: SecretStr | None = None
    server_name: str | None = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Build the TLS context from the current files.

        Raises:
            OSError: A file cannot be read.
            ssl.SSLError: A file has invalid content.
        """
        context = ssl.create_default_context(cafile=self.ca)
        self.load_client_certificate(context)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def load_client_certificate(self, context: ssl.SSLContext) -> None:
        """Read the client's certificate and key into *context*, if there are any."""
        if self.cert is not None:
            secret = self.key_password
            # Without a password, OpenSSL would prompt for it at the terminal.
            password = "" if secret is None else secret.get_secret_value()
            context.load_cert_chain(self.cert, self.key, password)


class SSESettings(BaseModel):
    """One named server of event streams.

    Attributes:
        url: `https://host/path`, to which a consumer's routes are appended. A user and a password
            in it are sent as basic authentication, and its query with each request.
        headers: Sent with each request.
        token: Sent as `Authorization: Bearer`.
        user: For basic authentication, instead of the URL's.
        password: For basic authentication, instead of the URL's.
        connect_timeout: Seconds for name resolution, TCP and TLS.
        idle_timeout: Seconds without any byte after which the connection counts as lost; 0 for no
            limit. Comments count as bytes; waiting for the response counts as idle.
        redirects: Redirects to follow: to any origin, only to the URL's own origin, or none. A
            redirect from https to http is never followed.
        trusted_origins: Other origins, such as `https://eu.example`, that also get the headers, the
            credentials and the client's certificate if the server redirects to them.
        proxy: URL of an HTTP proxy, with user and password if it requires them.
        trust_env: Use the proxies of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` if none is set.
    """

    model_config = SECTION

    url: SecretStr
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    token: SecretStr | None = None
    user: str | None = None
    password: SecretStr | None = None
    connect_timeout: Seconds = 10.0
    idle_timeout: Grace = 90.0
    redirects: Redirects = "any"
    trusted_origins: tuple[str, ...] = ()
    proxy: SecretStr | None = None
    trust_env: bool = False
    tls: TLSSettings = TLSSettings()

    def address(self, route: str = "") -> URL:
        """Build the URL of a route, without user and password; the query may contain secrets."""
        base = self._url.with_user(None).with_fragment(None)
        if not route:
            return base
        added = URL(route)
        url = base.with_path(base.raw_path.rstrip("/") + added.raw_path, encoded=True)
        return url.with_query(base.query).update_query(added.query)

    def display(self, route: str = "") -> str:
        """Return the address for logs and people: no user, no password, no query."""
        return str(self.address(route).with_query(None))

    def request_headers(self) -> dict[str, str]:
        """Return the headers of each request, including the credentials."""
        headers = {name: value.get_secret_value() for name, value in self.headers.items()}
        url, token, secret = self._url, self.token, self.password
        if token is not None:
            headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        elif (user := self.user or url.user) is not None:
            password = (url.password or "") if secret is None else secret.get_secret_value()
            pair = b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        return headers

    @property
    def _url(self) -> URL:
        return URL(self.url.get_secret_value())

    @field_validator("url", "proxy")
    @classmethod
    def _check_url(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None:
            check_stream_url(given.get_secret_value())
        return given

    @field_validator("trusted_origins")
    @classmethod
    def _check_origins(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_origin(number, text) for number, text in enumerate(given, 1))

    @field_validator("token")
    @classmethod
    def _check_token(cls, given: SecretStr | None) -> SecretStr | None:
        # A line break would end the header.
        if given is not None and not {"\r", "\n", "\0"}.isdisjoint(given.get_secret_value()):
            raise PydanticCustomError("sse_token", "should have no line break")
        if given is not None and given.get_secret_value().startswith(BYTE_ORDER_MARK):
            raise PydanticCustomError("sse_token", "should not begin with a byte order mark")
        return given

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if self.token is not None and (self.user is not None or self.password is not None):
            raise PydanticCustomError("sse_credentials", "should have a token or a user, not both")
        if self.password is not None and self.user is None and self._url.user is None:
            raise PydanticCustomError("sse_credentials", "should have a user beside the password")
        return self


def _origin(number: int, text: str) -> str:
    """Normalize an origin: `https://Host:443/` is `https://host`."""
    check_stream_url(text)
    url = URL(text)
    if url.user is not None or url.path != "/" or url.query or url.fragment:
        # The entry is not quoted: it may be a URL with a password.
        text = f"entry {number} should be an origin alone, such as https://eu.example"
        raise PydanticCustomError("sse_origin", text)
    return str(url.origin())


def check_stream_url(text: str) -> str:
    """Check the URL of an event stream, without quoting it in errors.

    Raises:
        PydanticCustomError: It is invalid. The error is a `ValueError`.
    """
    try:
        url = URL(text)
    except ValueError:
        # yarl's text may quote a part of the URL, and a chained error would print it.
        raise PydanticCustomError("sse_url", "should be a valid URL") from None
    if url.scheme not in ("http", "https"):
        raise PydanticCustomError("sse_url", "should start with http:// or https://")
    if not url.host:
        raise PydanticCustomError("sse_url", "should name a host")
    return text


class AMQPSettings(BaseModel):
    """One named connection to a message broker.

    Attributes:
        url: `amqp://user:password@host:port/vhost`, or `amqps`; parts are percent-encoded. An empty
            path and `/` both mean the vhost `/`. The only query parameter is `?heartbeat=60`.
        host: Instead of the URL's.
        port: Instead of the URL's, which defaults to 5672, with TLS to 5671.
        user: Instead of the URL's; not percent-encoded.
        password: Instead of the URL's; not percent-encoded.
        vhost: Instead of the URL's; not percent-encoded.
        hosts: The nodes of a cluster, each `host` or `host:port`, instead of the URL's host. The
            next one is tried when an attempt fails or a connection is lost.
        heartbeat: Seconds between two heartbeat frames; AMQP requires an integer. Instead of the
            URL's.
        declare: The queues to declare: those that are missing, all, or none.
        queue_type: Type of a missing queue whose class states none, and of its dead-letter queue;
            None uses the default of the virtual host. An existing queue keeps its type.
        evidence: Details of the failure in the headers of a dead letter: `full`, or `brief` for the
            class of the exception and its location, without any text.
        connect_timeout: Seconds for one attempt to connect.
        auth: `external` logs in with the client's certificate instead of a password.
        max_message_size: The largest body of a message in bytes, also after decompression. A larger
            body is discarded; see docs/consumers.md for what happens to the message. The default
            is RabbitMQ 3's limit.
    """

    model_config = SECTION

    url: SecretStr = SecretStr("amqp://guest:guest@127.0.0.1:5672/")
    host: str | None = None
    port: Port | None = None
    user: str | None = None
    password: SecretStr | None = None
    vhost: str | None = None
    hosts: tuple[str, ...] = ()
    heartbeat: Annotated[int, Field(ge=1, le=65_535)] = 15
    declare: Declare = "missing"
    queue_type: DefaultType | None = None
    evidence: EvidenceStyle = "full"
    connect_timeout: Seconds = 10.0
    auth: Auth = "plain"
    max_message_size: Annotated[int, Field(ge=1)] = 128 * 1024 * 1024
    tls: TLSSettings = TLSSettings()

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return URL(self.url.get_secret_value()).scheme == "amqps"

    def vhost_name(self, vhost: str | None = None) -> str:
        """Return the vhost as the broker knows it, neither encoded nor empty.

        Args:
            vhost: Instead of the connection's own.
        """
        name = self.vhost if vhost is None else vhost
        return vhost_of(self.url.get_secret_value()) if name is None else name or "/"

    @property
    def servers(self) -> tuple[Host, ...]:
        """The servers to connect to, each with its port; at least one."""
        url = URL(self.url.get_secret_value())
        port = self.port or url.port or DEFAULT_PORTS[url.scheme]
        written = map(parse_host, self.hosts) if self.hosts else [Host(self.host or str(url.host))]
        every = (Host(each.name, each.port or port) for each in written)
        return tuple(dict.fromkeys(every))

    def address(self, vhost: str | None = None, server: Host | None = None) -> URL:
        """Build the URL for aiormq, which parses exactly these credentials from it.

        It parses the vhost as well, unless its name contains `%2F`. The URL contains the password:
        log `display()` instead.

        Args:
            vhost: Instead of the connection's own; not percent-encoded.
            server: One of `servers`; the first of them by default.
        """
        name = self.vhost_name(vhost)
        server = server or self.servers[0]
        url = URL(self.url.get_secret_value()).with_host(server.name).with_port(server.port)
        if self.user is not None:
            url = url.with_user(self.user).with_password(url.password)
        if self.password is not None:
            url = url.with_password(self.password.get_secret_value())
        path = "/" if name == "/" else "/" + quote(name, safe="")
        return url.with_path(path, encoded=True)

    def display(self, vhost: str | None = None, server: Host | None = None) -> str:
        """Return the address for logs and people: no password.

        Args:
            vhost: Instead of the connection's own.
            server: One of `servers`; all of them by default, separated by commas.
        """
        url = self.address(vhost, server)
        if server is not None or len(self.servers) == 1:
            return str(url.with_password(None))
        user = f"{url.raw_user}@" if url.raw_user else ""
        return f"{url.scheme}://{user}{','.join(map(str, self.servers))}{url.raw_path}"

    @field_validator("url")
    @classmethod
    def _check_url(cls, given: SecretStr) -> SecretStr:
        check_broker_url(given.get_secret_value())
        return given

    @field_validator("host")
    @classmethod
    def _check_host(cls, given: str | None) -> str | None:
        if given is not None:
            if not SEPARATORS.isdisjoint(given):
                raise PydanticCustomError("amqp_host", f"should be one host: {USE_HOSTS}")
            if not _is_name(given):
                text = "should be a host name or an IP address alone"
                raise PydanticCustomError("amqp_host", text)
        return given

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for number, text in enumerate(given, 1):
            try:
                name = parse_host(text).name
            except ValueError as error:
                # The entry is not quoted: it may be a URL with a password.
                raise PydanticCustomError("amqp_hosts", f"entry {number} {error}") from None
            if not _is_name(name):
                text = f"entry {number} should have a host name or an IP address"
                raise PydanticCustomError("amqp_hosts", text)
        return given

    @field_validator("vhost")
    @classmethod
    def _check_vhost(cls, given: str | None) -> str | None:
        if given is not None:
            check_vhost(given)
            if "%2F" in given:
                # Probably copied from a URL, where it means a slash.
                text = "should not contain '%2F': write the name plainly, without percent-encoding"
                raise PydanticCustomError("amqp_vhost", text)
        return given

    @field_validator("user", "password")
    @classmethod
    def _check_credential(cls, given: str | SecretStr | None) -> str | SecretStr | None:
        if given is not None:
            check_credential(given if isinstance(given, str) else given.get_secret_value())
        return given

    @model_validator(mode="before")
    @classmethod
    def _take_heartbeat(cls, given: Any) -> Any:
        """Use the heartbeat of the URL unless the setting is given."""
        if not isinstance(given, Mapping) or "heartbeat" in given:
            return given
        url = given.get("url")
        text = url.get_secret_value() if isinstance(url, SecretStr) else url
        found = heartbeat_of(text) if isinstance(text, str) else None
        return given if found is None else {**given, "heartbeat": found}

    @model_validator(mode="after")
    def _check_host_or_hosts(self) -> Self:
        if self.host is not None and self.hosts:
            raise PydanticCustomError("amqp_hosts", "should have HOST or HOSTS, not both")
        return self


def _is_name(host: str) -> bool:
    """Return whether *host* is valid in a URL."""
    try:
        URL("amqp://127.0.0.1/").with_host(host)
    except ValueError:
        return False
    return True
