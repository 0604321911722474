"""OpenTelemetry: spans for calls of `handle`, publishes, moves of messages, and connections.

Nothing else in the package imports `opentelemetry`, and this package only when tracing is on.
"""

import logging
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from workerkit.config.settings import WorkerSettings
from workerkit.safe_text import Redact

if TYPE_CHECKING:
    from workerkit.tracing.running import RunningTracing

log = logging.getLogger(__name__)

_API = "opentelemetry.trace"
_PROVIDER_VARIABLE = "OTEL_PYTHON_TRACER_PROVIDER"
_MISSING = "tracing is on, but opentelemetry-api is not installed: pip install 'workerkit[otel]'"


def tracing_faults(settings: WorkerSettings) -> list[str]:
    """Return the reason why tracing cannot be on, for the operator; none if it can."""
    if settings.tracing != "on" or _is_installed():
        return []
    prefix = settings.model_config.get("env_prefix", "")
    return [f"{prefix}TRACING: {_MISSING}"]


def start_tracing(settings: WorkerSettings, redact: Redact | None) -> "RunningTracing | None":
    """Return the tracing of a process; None if it is off.

    With `auto` it is on if the application has configured an SDK. This never configures one.
    """
    if settings.tracing == "off" or (settings.tracing == "auto" and not _may_be_configured()):
        # The API is not even imported.
        return None
    if not _is_installed():
        return None
    from workerkit.tracing.running import running_tracing

    try:
        tracing = running_tracing(redact, servers=_servers(settings))
    except Exception:
        # Whatever is wrong with the SDK or its exporters, the work has to be done.
        log.exception("tracing could not be started: it is off")
        return None
    if tracing is None and settings.tracing == "on":
        log.warning(
            "tracing is on, but no OpenTelemetry SDK is configured: nothing is recorded",
        )
    return tracing


def _servers(settings: WorkerSettings) -> dict[str, tuple[str, int]]:
    """Return host and port of each connection to a broker that has only one."""
    each_has = {name.casefold(): each.servers for name, each in settings.amqp.items()}
    return {
        name: (servers[0].name, servers[0].port)
        for name, servers in each_has.items()
        if len(servers) == 1 and servers[0].port is not None
    }


def _is_installed() -> bool:
    try:
        return sys.modules.get(_API) is not None or find_spec(_API) is not None
    except (ImportError, ValueError):
        return False


def _may_be_configured() -> bool:
    return _API in sys.modules or bool(os.environ.get(_PROVIDER_VARIABLE))
