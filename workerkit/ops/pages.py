"""What the pages of the ops server say. No I/O."""

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from workerkit.health import Health
from workerkit.readiness import Readiness

OK = 200
UNAVAILABLE = 503


def live() -> tuple[int, dict[str, Any]]:
    """That anybody answers is what it says: the event loop turns. It knows no broker."""
    return OK, {"status": "alive"}


def ready(readiness: Readiness) -> tuple[int, dict[str, Any]]:
    """Whether the process should be given work."""
    obstacles = readiness.obstacles()
    status = "not ready" if obstacles else "ready"
    body = {"status": status, "reasons": obstacles, "consumers": _consumers(readiness)}
    return UNAVAILABLE if obstacles else OK, body


def startup(readiness: Readiness) -> tuple[int, dict[str, Any]]:
    """Whether every consumer was ready once, whatever has become of it since."""
    started = readiness.was_ready
    reasons = [] if started else readiness.obstacles()
    status = "started" if started else "starting"
    body = {"status": status, "reasons": reasons, "consumers": _consumers(readiness)}
    return OK if started else UNAVAILABLE, body


def metrics(own: Collector, accept: str) -> tuple[bytes, str]:
    """What was counted here, and what users count with prometheus_client's own metrics.

    Args:
        accept: The header that says which of Prometheus' formats the reader knows.

    Returns:
        The page, and its content type.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Together([own, REGISTRY])), content_type


def _consumers(readiness: Readiness) -> dict[str, dict[str, Any]]:
    return {each.consumer: _consumer(each) for each in readiness.health}


def _consumer(health: Health) -> dict[str, Any]:
    said: dict[str, Any] = {"state": health.state.value, "reason": health.reason}
    if role := health.role():
        said["role"] = role
    if streams := {part.source: told for part in health.parts if (told := part.told())}:
        said["streams"] = streams
    return said


class _Together(Collector):
    """Several registries on one page."""

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Family]:
        for collector in self._collectors:
            yield from collector.collect()
