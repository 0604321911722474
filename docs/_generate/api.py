"""The reference of the API: what Sphinx's autodoc reads, and the same as plain Markdown."""

import inspect
from importlib import import_module
from typing import Any

from docs._generate.markdown import summary

# Public because transports and other parts of the package call them, but of no use to applications.
_INTERNAL = {
    "Consumer": "options options_type signatures claims is_abstract body_types",
    "AMQPConsumer": "options body_types",
    "SSEConsumer": "options body_types",
    "HTTPView": "options signatures claims",
    "PeriodicTask": "options signatures",
    "SimpleConsumer": "options",
    "AMQPMessage": "again cloud_event content count_failure_in_place decide decoded handed_on_id"
    " has_deadline log_context log_failure log_fields past trace_carrier trace_details trace_links"
    " trace_source unknown_content returns",
    "SSEEvent": "again cloud_event content decide decoded handed_on_id log_context log_failure"
    " log_fields trace_carrier trace_details trace_links trace_source unknown_content",
    "Queue": "arguments_for dead_letter_queue dead_letters declared_arguments for_process"
    " has_no_limit is_permanent is_plain is_stream known_delivery_limit retry_queue"
    " with_default_type",
    "Exchange": "declared_arguments",
    "Publisher": "open send send_observed",
    "RetryPolicy": "covers most_in_place steps tries",
    "Action": "without_broker",
    "WorkerSettings": "model_post_init settings_customise_sources",
    "AMQPSettings": "address servers",
    "SSESettings": "address request_headers",
}
# workerkit creates them; tests use `fake_message` and `fake_event`.
NOT_CREATED = frozenset({"AMQPMessage", "SSEEvent", "Call", "Settled", "Run"})
# Those whose bases are not in the reference.
_WITH_INHERITED = ("AMQPMessage", "SSEEvent")


def api(*names: str) -> str:
    """Return directives of autodoc for public names of `workerkit` or a module of it."""
    lines = [line for name in names for line in (*_directive(name), "")]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def plain_api(*names: str) -> str:
    """Return signatures and docstrings."""
    return "\n\n".join(_plain(name) for name in names)


def find(name: str) -> Any:
    """Return what a name such as `Queue` or `testing.running` of `workerkit` means."""
    module, _, last = f"workerkit.{name}".rpartition(".")
    return getattr(import_module(module), last)


def _directive(name: str) -> list[str]:
    found = find(name)
    if not isinstance(found, type):
        kind = "function" if inspect.isfunction(found) else "data"
        return [f".. auto{kind}:: workerkit.{name}"]
    if issubclass(found, Exception):
        return [f".. autoexception:: workerkit.{name}", "   :show-inheritance:"]
    lines = [f".. autoclass:: workerkit.{name}", "   :members:"]
    if name in _INTERNAL:
        lines.append(f"   :exclude-members: {', '.join(_INTERNAL[name].split())}")
    if name in _WITH_INHERITED:
        lines.append("   :inherited-members: Generic")
    elif found.__bases__ != (object,):
        lines.append("   :show-inheritance:")
    return lines


def _plain(name: str) -> str:
    found = find(name)
    parts = [f"## workerkit.{name}", _signature(name, found), inspect.getdoc(found) or ""]
    if isinstance(found, type) and not issubclass(found, Exception):
        for member, value in vars(found).items():
            method = getattr(value, "__func__", value)
            internal = member.startswith("_") or member in _INTERNAL.get(name, "").split()
            if not internal and inspect.isfunction(method):
                parts.append(f"### {member}\n\n{_signature(member, method)}\n\n{summary(method)}")
    return "\n\n".join(part for part in parts if part)


def _signature(name: str, found: Any) -> str:
    if name in NOT_CREATED:
        return ""
    try:
        return f"```python\n{name}{inspect.signature(found)}\n```"
    except (TypeError, ValueError):  # An alias of a type, or an exception without a constructor.
        return ""
