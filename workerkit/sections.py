"""Sections of the settings: TLS, and a server of event streams."""

import ssl
from base64 import b64encode
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError
from yarl import URL

# The values stay out of every text of an error: one of them may be a password.
SECTION = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Grace = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TLSSettings(BaseModel):
    """How a TLS connection is made; looked at where the URL begins with `amqps` or `https`.

    Attributes:
        ca: File of the certificates to trust; those of the system by default.
        cert: File of the client's certificate, and of its key unless that has its own.
        key: File of the client's key.
        key_password: Of the key.
        server_name: That the server's certificate must have, instead of the host of the URL.
        verify: Without it anybody can pose as the server; a WARNING says so at each connection.
    """

    model_config = SECTION

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    key_password: SecretStr | None = None
    server_name: str | None = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Read the files, as they are now.

        Raises:
            OSError: A file cannot be read.
            ssl.SSLError: A file does not have what it should.
        """
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            secret = self.key_password
            password = None if secret is None else secret.get_secret_value()
            context.load_cert_chain(self.cert, self.key, password)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class SSESettings(BaseModel):
    """One named server of event streams.

    Attributes:
        url: `https://host/path`, to which a consumer's routes are appended. A user and a password
            in it are sent as basic authentication, a query goes with each request.
        headers: Sent with each request.
        token: Sent as `Authorization: Bearer`.
        user: For basic authentication, instead of the URL's.
        password: For basic authentication, instead of the URL's.
        connect_timeout: Seconds for name resolution, TCP and TLS.
        idle_timeout: Seconds without a byte, a comment or the answer after which the connection
            counts as lost; 0 for never.
    """

    model_config = SECTION

    url: SecretStr
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    token: SecretStr | None = None
    user: str | None = None
    password: SecretStr | None = None
    connect_timeout: Seconds = 10.0
    idle_timeout: Grace = 90.0
    tls: TLSSettings = TLSSettings()

    def address(self, route: str = "") -> URL:
        """Build the URL of a route, without user and password; the query may contain secrets."""
        base = self._url.with_user(None).with_fragment(None)
        if not route:
            return base
        added = URL(route)
        url = base.with_path(base.raw_path.rstrip("/") + added.raw_path, encoded=True)
        return url.with_query(base.query_string).update_query(added.query)

    def display(self, route: str = "") -> str:
        """Return the address for logs and people: no user, no password, no query."""
        return str(self.address(route).with_query(None))

    def request_headers(self) -> dict[str, str]:
        """The headers of each request, with the credentials in them."""
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

    @field_validator("url")
    @classmethod
    def _check_url(cls, given: SecretStr) -> SecretStr:
        check_stream_url(given.get_secret_value())
        return given

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if self.token is not None and (self.user is not None or self.password is not None):
            raise PydanticCustomError("sse_credentials", "should have a token or a user, not both")
        return self


def check_stream_url(text: str) -> str:
    """Refuse what is no address of an event stream, without quoting it.

    Raises:
        PydanticCustomError: Which is a `ValueError`.
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
