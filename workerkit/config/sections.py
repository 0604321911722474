"""Sections of the settings for the process itself: HTTP, health, metrics, logs."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

# No error contains the values: one of them may be a password.
SECTION = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def lower(value: Any) -> Any:
    """Return text in lower case, and any other value unchanged."""
    return value.lower() if isinstance(value, str) else value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _no_other_page(path: str) -> str:
    if path.startswith("/health/"):
        raise PydanticCustomError("path", "should not be that of a health page")
    if path in ("/debug/tasks", "/debug/stacks"):
        raise PydanticCustomError("path", "should not be that of a debug page")
    if path in ("/docs", "/asyncapi.json"):
        raise PydanticCustomError("path", "should not be that of the documentation")
    if path.startswith(("/api/", "/console/")):
        raise PydanticCustomError("path", "should not be that of the console")
    return path


def _ascending(bounds: Sequence[float]) -> Sequence[float]:
    if any(one >= other for one, other in pairwise(bounds)):
        raise PydanticCustomError("buckets", "should be in ascending order, each once")
    return bounds


def _origin(given: str) -> str:
    """Return an origin in the form in which browsers send it."""
    found = given.lower().removesuffix("/")
    if found != "*" and not _ORIGIN.fullmatch(found):
        text = "should be an origin, such as https://shop.example or https://*.shop.example"
        raise PydanticCustomError("origin", text)
    # Browsers omit the default port.
    return found.removesuffix(":443" if found.startswith("https:") else ":80")


def _json_object(given: Any) -> Any:
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        text = "should be a Security Scheme Object, such as a JSON object with a type"
        raise PydanticCustomError("scheme", text)
    return found


# A wildcard stands for whole labels before at least two others: `https://*.com` is anybody.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_ORIGIN = re.compile(
    rf"https?://(?:\*\.{_LABEL}\.{_LABEL}(?:\.{_LABEL})*|{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])"
    r"(?::[0-9]{1,5})?"
)

Origin = Annotated[str, AfterValidator(_origin)]
Token = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Grace = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ListenPort = Annotated[int, Field(ge=0, le=65_535)]
MOST_PROCESSES = 1024
Processes = (
    Annotated[int, Field(ge=1, le=MOST_PROCESSES)]
    | Annotated[Literal["auto"], BeforeValidator(lower)]
)
ConsoleMode = Annotated[Literal["off", "read", "operate"], BeforeValidator(lower)]
ConsoleToken = Annotated[SecretStr, Field(min_length=8)]
FleetMode = Annotated[Literal["auto", "on", "off"], BeforeValidator(lower)]
TracingMode = Annotated[Literal["auto", "on", "off"], BeforeValidator(lower)]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(lower)]
Level = Annotated[
    Literal["CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG", "NOTSET"],
    BeforeValidator(_upper),
]
MetricsPath = Annotated[str, Field(pattern=r"^/[\w./-]+$"), AfterValidator(_no_other_page)]
Bound = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Buckets = Annotated[tuple[Bound, ...], Field(min_length=1), AfterValidator(_ascending)]

# Handlers take from a fraction of a millisecond up to their timeout of five minutes.
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ListenSettings(BaseModel):
    """The settings that every port of the process has.

    Attributes:
        host: The address to listen on; `0.0.0.0` for all of them.
        port: 0 for any free one.
        read_timeout: Seconds to receive the head of a request, and again to receive its body.
        keep_alive: Seconds that a connection may be idle between two requests: longer than proxies
            usually keep it.
        max_connections: None derives it from the limit of file descriptors of the process.
        reuse_port: Share the port with other processes; the kernel distributes connections.
        fds: File descriptors of sockets that are bound already, instead of host and port, as from
            systemd.
    """

    model_config = SECTION

    host: str = "127.0.0.1"
    port: ListenPort
    read_timeout: Seconds = 30.0
    keep_alive: Seconds = 75.0
    max_connections: Annotated[int, Field(gt=0)] | None = None
    reuse_port: bool = False
    fds: tuple[Annotated[int, Field(ge=0)], ...] = ()


class OpenAPISettings(BaseModel):
    """The OpenAPI document of the views, with the names of OpenAPI 3.1.

    Attributes:
        enabled: Whether `/openapi.json` and `/docs` are served.
        title: None uses the name of the package of the views.
        version: Version of the application; None uses `__version__` of that package, or the version
            of the installed distribution of that name.
        description: Markdown.
        license: An SPDX expression, such as `MIT`; `LicenseRef-Proprietary` for your own. None uses
            that of the installed distribution.
        servers: URLs at which clients reach the views, if they differ from the document's URL.
        security_schemes: A Security Scheme Object for each name.
        security: Names of the schemes for every view that does not state its own.
    """

    model_config = SECTION

    enabled: bool = True
    title: str | None = None
    version: str | None = None
    description: str = ""
    license: str | None = None
    servers: tuple[str, ...] = ()
    security_schemes: dict[str, Any] = Field(default_factory=dict)
    security: tuple[str, ...] = ()

    @field_validator("security_schemes", mode="after")
    @classmethod
    def _scheme_objects(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Parse schemes that have their own variables."""
        return {name: _json_object(each) for name, each in given.items()}

    @model_validator(mode="before")
    @classmethod
    def _switched(cls, given: Any) -> Any:
        """Accept `openapi=False` and `HTTP__OPENAPI=off` as well."""
        is_switch = isinstance(given, bool | int | str)
        return {"enabled": given} if is_switch else given


class CORSSettings(BaseModel):
    """Which other sites may use the views from a browser (Cross-Origin Resource Sharing).

    Attributes:
        origins: Such as `https://shop.example`, or `https://*.shop.example` for all subdomains;
            `*` for every site. None allows no other site.
        methods: That other sites may use.
        headers: Of requests that other sites may set; `*` for any.
        expose: Headers of responses that other sites may read.
        cookies: Whether browsers send cookies, which the standard calls credentials; not with the
            origin `*`.
        max_age: Seconds for which a browser may keep the answer of a preflight request.
    """

    model_config = SECTION

    origins: tuple[Origin, ...] = ()
    methods: tuple[Token, ...] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    headers: tuple[Token, ...] = ("*",)
    expose: tuple[Token, ...] = ("ETag", "Location", "Retry-After", "X-Request-ID")
    cookies: bool = False
    max_age: Annotated[int, Field(ge=0)] = 600

    @model_validator(mode="after")
    def _no_cookies_of_any_site(self) -> Self:
        if self.cookies and "*" in self.origins:
            text = "should not be true with the origin *: name the sites that may send cookies"
            raise PydanticCustomError("cookies", text)
        return self


class HTTPSettings(ListenSettings):
    """The port of the views; bound only if there are views.

    Attributes:
        max_body: Largest body of a request in bytes; a larger one gets 413.
        cors: The other sites whose pages may use the views.
        openapi: The document at `/openapi.json`; False for none.
    """

    port: ListenPort = 8080
    max_body: Annotated[int, Field(gt=0)] = 1024 * 1024
    cors: CORSSettings = CORSSettings()
    openapi: OpenAPISettings = OpenAPISettings()


class ProxySettings(BaseModel):
    """The proxies that authenticate users of the console, and the headers that they add.

    Attributes:
        addresses: Addresses or networks of the proxies, such as `10.0.0.0/8`. None trusts no
            header.
        user: The header with the name of the user.
        role: The header with the role: view, operate or admin. Without it, a user has `view`.
    """

    model_config = SECTION

    addresses: tuple[IPvAnyNetwork, ...] = ()
    user: Token = "X-Forwarded-User"
    role: Token = "X-Workerkit-Role"


class OpsSettings(ListenSettings):
    """The port of health, metrics and the console.

    Attributes:
        enabled: Whether the port is opened.
        debug: Serve `/debug/tasks` and `/debug/stacks` to clients on this machine, if the port is
            bound to a loopback address.
        docs: Serve the AsyncAPI document at `/asyncapi.json`, and `/docs` which displays it.
        console: Serve the console at `/`: `operate` for commands as well, `read` without them,
            `off` for none. It also decides what this process accepts from other processes.
        token: For clients of the console that may do everything, the role admin. On a port that
            other machines can reach, the console needs a token or a proxy.
        operate_token: For clients that may do everything but edit, delete, drain, and change the
            log level.
        view_token: For clients that may look.
        proxy: A proxy that authenticates users.
    """

    enabled: bool = True
    port: ListenPort = 8081
    debug: bool = True
    docs: bool = True
    console: ConsoleMode = "operate"
    token: ConsoleToken | None = None
    operate_token: ConsoleToken | None = None
    view_token: ConsoleToken | None = None
    proxy: ProxySettings = ProxySettings()


class FleetSettings(BaseModel):
    """How the processes of one application find each other, over RabbitMQ.

    Attributes:
        mode: `auto` does it where the permissions of the user allow it, `on` logs a warning where
            they do not, `off` does not.
        name: The name of the application, which all of its processes have. None for that of the
            package.
    """

    model_config = SECTION

    mode: FleetMode = "auto"
    name: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _mode(cls, given: Any) -> Any:
        """Accept `fleet="off"` and `FLEET=off` as well."""
        return {"mode": given} if isinstance(given, str) else given


class MetricsSettings(BaseModel):
    """The metrics and their names.

    Attributes:
        enabled: Whether metrics are collected and served.
        path: Path of the page on the ops server.
        prefix: Beginning of all names; an underscore follows it.
        buckets: Upper bounds, in seconds, of the histograms of handlers, publishes and requests.
        age: Measure the age of deliveries with a timestamp when they are settled. It is off by
            default because it requires decoding the properties of every message.
    """

    model_config = SECTION

    enabled: bool = True
    path: MetricsPath = "/metrics"
    prefix: Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")] = "workerkit"
    buckets: Buckets = _SECONDS
    age: bool = False


class LogSettings(BaseModel):
    """The level and the format of log records.

    Attributes:
        level: A level of the standard library, in upper or lower case.
        format: None for text if stderr is a terminal, JSON otherwise.
    """

    model_config = SECTION

    level: Level = "INFO"
    format: LogFormat | None = None

    @property
    def threshold(self) -> int:
        """The level as the number that `logging` compares."""
        return logging.getLevelNamesMapping()[self.level]
