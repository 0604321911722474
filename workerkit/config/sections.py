"""Sections of the settings about the process itself: HTTP, health, metrics, logs."""

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

# The values stay out of every text of an error: one of them may be a password.
SECTION = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def lower(value: Any) -> Any:
    """Text in lower case, everything else as it is."""
    return value.lower() if isinstance(value, str) else value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _no_health_page(path: str) -> str:
    if path.startswith("/health/"):
        raise PydanticCustomError("path", "should not be that of a health page")
    return path


def _ascending(bounds: Sequence[float]) -> Sequence[float]:
    if any(one >= other for one, other in pairwise(bounds)):
        raise PydanticCustomError("buckets", "should be in ascending order, each once")
    return bounds


def _json_object(given: Any) -> Any:
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        text = "should be a Security Scheme Object, such as a JSON object with a type"
        raise PydanticCustomError("scheme", text)
    return found


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Grace = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ListenPort = Annotated[int, Field(ge=0, le=65_535)]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(lower)]
Level = Annotated[
    Literal["CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG", "NOTSET"],
    BeforeValidator(_upper),
]
MetricsPath = Annotated[str, Field(pattern=r"^/[\w./-]+$"), AfterValidator(_no_health_page)]
Bound = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Buckets = Annotated[tuple[Bound, ...], Field(min_length=1), AfterValidator(_ascending)]

# A handler takes a fraction of a millisecond, or as long as its timeout of five minutes.
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ListenSettings(BaseModel):
    """What every port of the process has.

    Attributes:
        port: 0 for any free one.
        read_timeout: Seconds for the head, and again for the body, of a request to come.
        keep_alive: Seconds that a connection may rest between two requests: longer than proxies
            usually keep it.
        max_connections: None derives it from the number of descriptors that the process may have.
        reuse_port: Share the port with other processes, between which the kernel distributes.
    """

    model_config = SECTION

    host: str = "127.0.0.1"
    port: ListenPort
    read_timeout: Seconds = 30.0
    keep_alive: Seconds = 75.0
    max_connections: Annotated[int, Field(gt=0)] | None = None
    reuse_port: bool = False


class OpenAPISettings(BaseModel):
    """The OpenAPI document of the views, with the words of OpenAPI 3.1.

    Attributes:
        enabled: Whether `/openapi.json` and `/docs` are served.
        title: None takes the name of the package of the views.
        version: Of the application; None takes `__version__` of that package.
        description: In Markdown.
        servers: URLs at which clients reach the views, if they differ from that of the document.
        security_schemes: A Security Scheme Object for each name.
        security: Names of schemes that a client needs for every view that says nothing else.
    """

    model_config = SECTION

    enabled: bool = True
    title: str | None = None
    version: str | None = None
    description: str = ""
    servers: tuple[str, ...] = ()
    security_schemes: dict[str, Any] = Field(default_factory=dict)
    security: tuple[str, ...] = ()

    @field_validator("security_schemes", mode="after")
    @classmethod
    def _scheme_objects(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Read schemes that stand in variables of their own."""
        return {name: _json_object(each) for name, each in given.items()}

    @model_validator(mode="before")
    @classmethod
    def _switched(cls, given: Any) -> Any:
        """Take `openapi=False` and `HTTP__OPENAPI=off` as well."""
        is_switch = isinstance(given, bool | int | str)
        return {"enabled": given} if is_switch else given


class HTTPSettings(ListenSettings):
    """Where the views are served; bound only when there are views.

    Attributes:
        max_body: Bytes of a request's body; more is answered with 413.
        openapi: The document at `/openapi.json`; False for none.
    """

    port: ListenPort = 8080
    max_body: Annotated[int, Field(gt=0)] = 1024 * 1024
    openapi: OpenAPISettings = OpenAPISettings()


class OpsSettings(ListenSettings):
    """Where health and metrics are served."""

    enabled: bool = True
    port: ListenPort = 8081


class MetricsSettings(BaseModel):
    """What is counted, and what it is called.

    Attributes:
        enabled: Without it nothing is counted, and there is no page.
        path: Of the page on the ops server.
        prefix: What all names begin with; an underscore follows it.
        buckets: Upper bounds, in seconds, of the histograms of handlers, publishes and requests.
        age: Measure how old deliveries are when they are settled, where they have a timestamp. It
            is off because a message's properties have to be decoded for it.
    """

    model_config = SECTION

    enabled: bool = True
    path: MetricsPath = "/metrics"
    prefix: Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")] = "workerkit"
    buckets: Buckets = _SECONDS
    age: bool = False


class LogSettings(BaseModel):
    """What is logged, and how a record looks.

    Attributes:
        level: A name of the standard library's levels, in any case.
        format: None for text when stderr is a terminal and JSON otherwise.
    """

    model_config = SECTION

    level: Level = "INFO"
    format: LogFormat | None = None

    @property
    def threshold(self) -> int:
        """The level as the number that `logging` compares."""
        return logging.getLevelNamesMapping()[self.level]
