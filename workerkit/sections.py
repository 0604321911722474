"""Sections of the settings about the process itself: HTTP, health, metrics, logs."""

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
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


class HTTPSettings(ListenSettings):
    """Where the views are served; bound only when there are views.

    Attributes:
        max_body: Bytes of a request's body; more is answered with 413.
        openapi: Whether `/openapi.json` and `/docs` are served as well.
    """

    port: ListenPort = 8080
    max_body: Annotated[int, Field(gt=0)] = 1024 * 1024
    openapi: bool = True


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
