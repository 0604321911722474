"""Tracing, without an application: what is decided, read, written, and survived."""

import asyncio
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import providers
from opentelemetry import trace
from opentelemetry.context import Context, get_current, get_value, set_value
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.semconv import schemas
from opentelemetry.trace import NonRecordingSpan, NoOpTracerProvider, Status, StatusCode

from tests.application import package_of
from tests.tracing import Spans, configured, ids, parent_of, recorded
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    InvalidBody,
    Retry,
    RetryPolicy,
    Runner,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.amqp import table
from workerkit.amqp.acks import Acks
from workerkit.amqp.incoming import Oversized
from workerkit.amqp.properties import Properties, RawHeaders, encode
from workerkit.amqp.traced_copies import traced_copies
from workerkit.delivery import TraceDetails
from workerkit.endpoint import Endpoint
from workerkit.errors import ConfigurationError
from workerkit.options import Options
from workerkit.signature import ArgumentSource, Signature
from workerkit.tracing import names, start_tracing, tracing_faults
from workerkit.tracing.contexts import Propagation, UnsampledContext
from workerkit.tracing.running import RunningTracing, running_tracing
from workerkit.tracing.sampling import UNKNOWN, KnownDecisions, known_decisions

TRACE, PRODUCER = "a1" * 16, "b2" * 8
TRACEPARENT = f"00-{TRACE}-{PRODUCER}-01"
PARENT = int(TRACE, 16), int(PRODUCER, 16)


def message(
    headers: dict[str, Any] | None = None, raw: bytes = b"1", properties: bytes | None = None
) -> AMQPMessage[Any]:
    acks = Acks(1, lambda data: True, lambda flush: None)
    if properties is None:
        properties = encode(Properties(table=table.encode(headers or {}), message_id="m"))
    return AMQPMessage(raw, queue="q", tag=1, envelope=b"\0\0\0", properties=properties, acks=acks)


async def returns(self: object, body: int) -> None: ...


def endpoint(handle: Callable[..., Any] = returns, retry: RetryPolicy | None = None) -> Endpoint:
    consumer = type("Each", (AMQPConsumer,), {"handle": handle, "queues": ["q"]})
    signature = Signature(handle, AMQPMessage, lambda name, type_: ArgumentSource(lambda: None))
    return Endpoint(
        consumer(),
        Options(name="Each", concurrency=1, timeout=5.0),
        signature,
        on_success=Action.ACK,
        on_exception=Action.REQUEUE,
        on_invalid=Action.DEAD_LETTER,
        retry=retry,
    )


def tracing_of(provider: trace.TracerProvider, redact: Any = None) -> RunningTracing:
    tracing = running_tracing(redact, provider)
    assert tracing is not None
    return tracing


def traced(
    provider: trace.TracerProvider,
    handle: Callable[..., Any] = returns,
    redact: Any = None,
    retry: RetryPolicy | None = None,
) -> Endpoint:
    """Return an endpoint with traced calls."""
    each = endpoint(handle, retry)
    tracing_of(provider, redact).trace_calls(each, "amqp", "q")
    return each


def unexpected(error: Exception) -> None:
    raise error


# When it is on.


def test_auto_is_on_with_an_sdk_only() -> None:
    """The API alone, or a provider that does nothing, is no SDK."""
    with configured(None):
        assert start_tracing(WorkerSettings(), None) is None
    with configured(NoOpTracerProvider()):
        assert start_tracing(WorkerSettings(), None) is None
    with recorded():
        assert start_tracing(WorkerSettings(), None) is not None
        assert start_tracing(WorkerSettings(tracing="off"), None) is None


def test_a_disabled_sdk_is_no_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED turns tracing off."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")

    with configured(TracerProvider()):
        assert start_tracing(WorkerSettings(), None) is None


def test_on_without_an_sdk_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Without an SDK nothing could be recorded."""
    with configured(None):
        assert start_tracing(WorkerSettings(tracing="ON"), None) is None

    assert "no OpenTelemetry SDK is configured" in caplog.text


def test_on_without_the_api_is_a_fault_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The start and `workerkit check` report it; `auto` and `off` need no API."""
    for module in ("opentelemetry", "opentelemetry.trace"):
        monkeypatch.setitem(sys.modules, module, None)

    class Orders(AMQPConsumer):
        queues = ["orders"]
        handle = returns

    package = package_of(Orders)

    def assemble(mode: Any) -> None:
        container = WorkerContainer()
        container.settings.override(providers.Object(WorkerSettings(tracing=mode)))
        Runner(container, packages=[package]).assemble()

    with pytest.raises(ConfigurationError) as raised:
        assemble("on")
    for mode in ("auto", "off"):
        assemble(mode)
        assert start_tracing(WorkerSettings(tracing=mode), None) is None

    assert str(raised.value) == (
        "WORKERKIT_TRACING: tracing is on, but opentelemetry-api is not installed:"
        " pip install 'workerkit[otel]'"
    )


def test_nothing_to_report_with_the_api() -> None:
    """There is no fault where the API is installed."""
    assert tracing_faults(WorkerSettings(tracing="on")) == []


def test_without_an_sdk_the_api_is_not_imported() -> None:
    """An application without OpenTelemetry does not pay for its import."""
    code = (
        "import sys\nfrom workerkit import WorkerSettings\n"
        "from workerkit.tracing import start_tracing\n"
        "assert start_tracing(WorkerSettings(), None) is None\n"
        "print([each for each in sys.modules if each.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)

    assert done.stdout == "[]\n", done.stderr


# The names.


def test_the_names_are_those_of_the_conventions() -> None:
    """Each name is in the package of the stated version, and is not deprecated there."""
    folder = Path(schemas.__file__).parent
    paths = [*folder.glob("attributes/*.py"), *folder.glob("_incubating/attributes/*.py")]
    known = "".join(path.read_text() for path in paths)
    attributes = {
        name: value
        for name, value in vars(names).items()
        if isinstance(value, str)
        and name.isupper()
        and "." in value
        and not value.startswith(names.OWN)
        and name not in ("VERSION", "SCHEMA", "DEFAULT_EXCHANGE")
    }

    for name, value in attributes.items():
        found = re.search(rf'Final = \(?\s*"{re.escape(value)}"\s*\)?\s*"""\s*(.{{20}})', known)
        assert found, name
        assert not found[1].startswith("Deprecated:"), name
    versions = {tuple(map(int, each.value.split("/")[-1].split("."))) for each in schemas.Schemas}
    ours = tuple(map(int, names.VERSION.split(".")))
    assert ours in versions or ours > max(versions)  # An older package is installed.


@pytest.mark.parametrize(
    ("exchange", "key", "name", "destination"),
    [
        ("events", "orders.42", "publish events", "events:orders.42"),
        ("", "orders", "publish orders", "orders"),
        ("", "", "publish amq.default", "amq.default"),
        ("fanout", "", "publish fanout", "fanout"),
        ("", "amq.gen-JzTY20BRgKO", "publish", "amq.gen-JzTY20BRgKO"),
        ("", "amq.rabbitmq.reply-to.g1h2", "publish", "amq.rabbitmq.reply-to.g1h2"),
        ("", "replies.0123456789abcdef", "publish", "replies.0123456789abcdef"),
        (
            "",
            "r-123e4567-e89b-12d3-a456-426614174000",
            "publish",
            "r-123e4567-e89b-12d3-a456-426614174000",
        ),
    ],
)
def test_the_name_of_a_publish_has_few_values(
    exchange: str, key: str, name: str, destination: str
) -> None:
    """Routing keys, and queues of one client, are in an attribute only."""
    spans = Spans()
    with tracing_of(spans.provider).publish(TraceDetails("", exchange, key), {}):
        pass

    span = spans.one(name)
    assert span.attributes is not None
    assert span.attributes["messaging.destination.name"] == destination
    assert span.attributes.get("messaging.destination.temporary", False) is (name == "publish")


# What a sampler decides.


@pytest.mark.parametrize(
    ("sampler", "known"),
    [
        (ALWAYS_OFF, KnownDecisions(0, True)),
        (ALWAYS_ON, UNKNOWN),
        (ParentBased(ALWAYS_OFF), KnownDecisions(0, True)),
        (ParentBased(ALWAYS_ON), KnownDecisions(None, True)),
        (ParentBasedTraceIdRatio(0.25), KnownDecisions(2**62, True)),
        (TraceIdRatioBased(0.5), KnownDecisions(2**63, False)),
        (ParentBased(ALWAYS_OFF, remote_parent_not_sampled=ALWAYS_ON), KnownDecisions(0, False)),
        (ParentBased(ALWAYS_OFF, local_parent_not_sampled=ALWAYS_ON), KnownDecisions(0, False)),
    ],
)
def test_what_is_known_of_a_sampler(sampler: Sampler, known: KnownDecisions) -> None:
    """The descriptions of the SDK's samplers state what they decide."""
    tracer = TracerProvider(sampler=sampler).get_tracer("x")

    assert known_decisions(tracer) == known


class Lying(Sampler):
    """Samples everything, and describes itself as one that samples nothing."""

    def should_sample(self, *args: Any, **more: Any) -> SamplingResult:
        return ALWAYS_ON.should_sample(None, 1, "")

    def get_description(self) -> str:
        return "AlwaysOffSampler"


def test_a_sampler_is_asked_if_it_decides_otherwise_than_it_says() -> None:
    """The description is compared with decisions."""
    assert known_decisions(TracerProvider(sampler=Lying()).get_tracer("x")) == UNKNOWN


async def test_a_ratio_samples_as_many_roots_as_it_says() -> None:
    """What is decided without the sampler does not change how much is recorded."""
    spans = Spans(ParentBasedTraceIdRatio(0.5))
    each = traced(spans.provider)

    for _ in range(400):
        await each.process(message())

    assert 130 < len(spans.all) < 270
    assert all(ids(span)[0] % 2**64 < 2**63 for span in spans.all)


@pytest.mark.parametrize(
    "sampler", [ALWAYS_ON, ParentBased(ALWAYS_OFF), ParentBasedTraceIdRatio(0.5)]
)
async def test_trace_ids_are_those_of_the_id_generator(sampler: Sampler) -> None:
    """Some systems require a time in them, also of traces that are not recorded."""

    class Numbers(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return super().generate_trace_id() % 2**64 + (7 << 64)

    spans = Spans(sampler, Numbers())
    found: list[int] = []

    async def handle(self: object, body: int) -> None:
        found.append(trace.get_current_span().get_span_context().trace_id)

    each = traced(spans.provider, handle)
    for _ in range(20):
        await each.process(message())

    assert [each >> 64 for each in found] == [7] * 20
    assert {ids(span)[0] for span in spans.all} <= set(found)


class RecordOnly(Sampler):
    """Records roots for a processor, and does not sample them."""

    def should_sample(self, *args: Any, **more: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self) -> str:
        return "RecordOnly"


async def test_a_publish_never_ends_the_span_of_its_caller() -> None:
    """A span that is recorded and not sampled goes on after the publish."""
    spans = Spans(ParentBased(RecordOnly()))
    tracing = tracing_of(spans.provider)
    recording: list[bool] = []

    async def handle(self: object, body: int) -> None:
        with tracing.publish(TraceDetails("", "", "q"), {}) as carrier:
            assert carrier["traceparent"][-1] in "02"
        recording.append(trace.get_current_span().is_recording())

    each = endpoint(handle)
    tracing.trace_calls(each, "amqp", "q")
    await each.process(message())

    assert recording == [True]


# Hostile headers.

HOSTILE: list[Any] = [
    "",
    "x",
    "00-" + "0" * 32 + "-" + "0" * 16 + "-01",
    "ff-" + "a" * 32 + "-" + "b" * 16 + "-01",
    "00-" + "A" * 32 + "-" + "b" * 16 + "-00",
    "00-" + "a" * 32 + "-" + "b" * 16 + "-00\n",
    "x" * 100_000,
    "\x00\r\n",
    "é" * 55,
    "x," * 4000,
    "a=1,a=2",
    "a=1;;;;,=,b",
    ",".join(f"k{number}=v" for number in range(500)),
    7,
    1.5,
    None,
    True,
    b"\xff\xfe",
    [TRACEPARENT],
    {"traceparent": TRACEPARENT},
]


@pytest.mark.parametrize("sampler", [ParentBased(ALWAYS_ON), ParentBased(ALWAYS_OFF)])
@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage"])
async def test_headers_of_any_type_and_size_do_no_harm(
    name: str, sampler: Sampler, caplog: pytest.LogCaptureFixture
) -> None:
    """The message is handled, its trace continues or is a new one, and nothing is logged."""
    spans = Spans(sampler)
    seen: list[Context] = []

    async def handle(self: object, body: int) -> None:
        seen.append(get_current())
        span = trace.get_current_span().get_span_context()
        assert span.is_valid

    each = traced(spans.provider, handle)
    propagation = Propagation(unexpected)
    for value in HOSTILE:
        valid = {} if name == "traceparent" else {"traceparent": TRACEPARENT}
        outcome = await each.process(message({**valid, name: value}))

        assert (outcome.action, outcome.error) == (Action.ACK, None)
        carrier = propagation.inject(seen[-1])
        assert len(carrier.get("baggage", "")) <= 8192
        assert len(carrier.get("tracestate", "")) <= 8192
    assert caplog.records == []


async def test_properties_that_cannot_be_decoded_do_no_harm() -> None:
    """Cut at any byte, they lead to a new trace or to the sender's."""
    spans = Spans()
    each = traced(spans.provider)
    whole = encode(Properties(table=table.encode({"a": 1, "traceparent": TRACEPARENT})))

    for size in range(len(whole)):
        outcome = await each.process(message(properties=whole[:size]))
        assert outcome.error is None

    assert len(spans.all) == len(whole)


@pytest.mark.parametrize(
    ("name", "text", "handed_on"),
    [
        ("baggage", "a=1, b = 2;p;q=3", "a=1,b=2%3Bp%3Bq%3D3"),
        ("baggage", "k%20=%E2%82%AC", "k=%E2%82%AC"),
        ("tracestate", "vendor=1,tenant@sys=a b", "vendor=1,tenant@sys=a b"),
    ],
)
async def test_valid_lists_are_read(name: str, text: str, handed_on: str) -> None:
    """What the standards allow is handed on."""
    propagation = Propagation(unexpected)
    context = propagation.extract({"traceparent": TRACEPARENT, name: text})

    assert propagation.inject(context)[name] == handed_on


async def test_too_much_baggage_is_left_out() -> None:
    """Baggage of more than the 8192 bytes of W3C is not read; the trace goes on."""
    spans = Spans()
    seen: list[dict[str, str]] = []

    async def handle(self: object, body: int) -> None:
        seen.append(Propagation(unexpected).inject(get_current()))

    headers = {"traceparent": TRACEPARENT, "baggage": "k=" + "v" * 9000}
    await traced(spans.provider, handle).process(message(headers))

    assert seen[0].keys() == {"traceparent"}
    assert parent_of(spans.one("process q")) == PARENT


async def test_attributes_are_short() -> None:
    """Ids and routing keys from outside cannot make a span large."""
    spans = Spans()
    details = TraceDetails("q", "e" * 999, "k" * 999, "i" * 999, "c" * 999)
    with tracing_of(spans.provider).publish(details, {}):
        pass

    (span,) = spans.all
    assert max(len(str(each)) for each in (span.attributes or {}).values()) == 255


def test_headers_are_found_without_decoding() -> None:
    """A text is found by its name; no other header is taken for it."""
    headers = {"ce-traceparent": "no", "n": {"x": 1}, "traceparent": "yes", "i": 1}
    raw = RawHeaders(encode(Properties(table=table.encode(headers))))

    assert raw.get("traceparent") == "yes"
    assert raw["traceparent"] == "yes"
    assert (raw.get("i"), raw.get("parent"), raw.get("x", "none")) == (None, None, "none")
    assert list(raw) == list(headers)
    with pytest.raises(KeyError):
        raw["i"]


# Faults of tracing.


class Broken(SpanProcessor):
    """Raises at the start or at the end of each span."""

    def __init__(self, when: str) -> None:
        self.when = when

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        if self.when == "start":
            raise RuntimeError("broken start")

    def on_end(self, span: ReadableSpan) -> None:
        if self.when == "end":
            raise RuntimeError("broken end")


class BrokenSampler(Sampler):
    """Raises."""

    def should_sample(self, *args: Any, **more: Any) -> SamplingResult:
        raise RuntimeError("broken sampler")

    def get_description(self) -> str:
        return "Broken"


def broken(what: str) -> TracerProvider:
    if what == "sampler":
        return TracerProvider(sampler=BrokenSampler())
    provider = TracerProvider()
    provider.add_span_processor(Broken(what))
    return provider


@pytest.mark.parametrize("what", ["start", "end", "sampler"])
async def test_an_error_of_tracing_never_breaks_a_call(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls, batches, publishes, moves and connections go on, and it is logged once."""
    provider = broken(what)
    tracing = tracing_of(provider)
    each = endpoint()
    tracing.trace_calls(each, "amqp", "q")

    for _ in range(3):
        assert (await each.process(message())).action is Action.ACK
        with tracing.publish(TraceDetails("", "", "q"), {}):
            pass
        with tracing.settle(message(), "retry"):
            pass
        with tracing.connect("/x", "GET", "http://x", None) as exchanged:
            exchanged.responded(200)

    (record,) = [each for each in caplog.records if "tracing failed" in each.getMessage()]
    assert record.levelno == logging.WARNING


async def test_an_error_of_a_delivery_never_breaks_its_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The methods of a transport's own deliveries may raise: the span lacks what they return."""

    class Faulty(AMQPMessage[Any]):
        def trace_details(self) -> TraceDetails:
            raise RuntimeError

        def trace_links(self) -> Any:
            return [{"traceparent": TRACEPARENT}, 7] if self.tag == 2 else []

    spans = Spans()
    acks = Acks(1, lambda data: True, lambda flush: None)
    for tag in (1, 2):
        outcome = await traced(spans.provider).process(
            Faulty(b"1", queue="q", tag=tag, envelope=b"\0\0\0", properties=b"\0\0", acks=acks)
        )
        assert outcome.action is Action.ACK

    assert spans.names == ["process q"] * 2
    assert "tracing failed" in caplog.text


async def test_an_error_of_a_propagator_never_breaks_a_call() -> None:
    """Nothing is read or written then."""

    class Raising(TextMapPropagator):
        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Context:
            raise RuntimeError

        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            raise RuntimeError

        @property
        def fields(self) -> set[str]:
            return {"traceparent"}

    before = get_global_textmap()
    set_global_textmap(Raising())
    try:
        spans = Spans(ParentBased(ALWAYS_OFF))
        tracing = tracing_of(spans.provider)
        seen: list[object] = []

        async def handle(self: object, body: int) -> None:
            seen.append(trace.get_current_span())
            with tracing.publish(TraceDetails("", "", "q"), {}) as carrier:
                seen.append(carrier)

        each = endpoint(handle)
        tracing.trace_calls(each, "amqp", "q")
        for flags in ("00", "01"):
            outcome = await each.process(message({"traceparent": f"{TRACEPARENT[:-2]}{flags}"}))
            assert outcome.error is None
    finally:
        set_global_textmap(before)

    assert {} in seen


async def test_a_block_lets_its_exception_out() -> None:
    """The span has it; so has the caller."""
    spans = Spans()

    with pytest.raises(KeyError), tracing_of(spans.provider).publish(TraceDetails(), {}):
        raise KeyError("x")

    (span,) = spans.all
    assert span.attributes is not None
    assert span.attributes["error.type"] == "KeyError"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(3), MemoryError()])
async def test_a_call_without_an_outcome_ends_its_span(error: BaseException) -> None:
    """Cancellation and exits go through, and the span is ended."""
    spans = Spans()

    async def handle(self: object, body: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        if isinstance(error, asyncio.CancelledError):
            task.cancel()
            await asyncio.sleep(0)
        raise error

    call = asyncio.create_task(traced(spans.provider, handle).process(message()))
    await asyncio.wait([call])

    assert call.cancelled() or call.exception() is not None or call.result().error
    assert spans.names == ["process q"]


async def test_secrets_of_exceptions_are_redacted() -> None:
    """The container's redact is called with texts of exceptions, and URLs lose passwords."""
    spans = Spans()

    async def handle(self: object, body: int) -> None:
        raise ValueError("card 4711 of amqp://user:secret@host/")

    redact = lambda text: text.replace("4711", "...")  # noqa: E731
    await traced(spans.provider, handle, redact).process(message())

    (span,) = spans.all
    assert span.events[0].attributes is not None
    texts = "".join(map(str, span.events[0].attributes.values())) + str(span.status.description)
    assert "4711" not in texts
    assert "secret" not in texts
    assert "card" in texts


async def test_a_redact_that_raises_hides_the_text() -> None:
    """The call goes on, and the text is not recorded."""

    def redact(text: str) -> str:
        raise KeyError

    async def handle(self: object, body: int) -> None:
        raise ValueError("secret")

    spans = Spans()
    await traced(spans.provider, handle, redact).process(message())

    (span,) = spans.all
    assert "secret" not in str(span.events[0].attributes) + str(span.status.description)


# The contexts of calls that are not recorded.


def test_the_context_of_an_unsampled_call_is_a_context() -> None:
    """Whatever reads or extends it finds the span, unsampled and with the trace of the parent."""
    carrier = {"traceparent": f"{TRACEPARENT[:-2]}00", "baggage": "a=b"}
    context = UnsampledContext(Propagation(unexpected), carrier, 0)
    extended = set_value("key", "value", context)

    for each in (context, extended):
        span = trace.get_current_span(each).get_span_context()
        assert (span.trace_id, span.trace_flags.sampled) == (PARENT[0], False)
        assert span.span_id != PARENT[1]
    assert trace.get_current_span(context) is trace.get_current_span(context)
    assert get_value("key", extended) == "value"
    assert len(list(context)) == len(context) == len(context.keys()) == 2
    assert list(context.items()) == [(key, context[key]) for key in context]
    assert all(key in context for key in context)
    assert list(context.values())


def test_a_root_that_is_not_recorded_has_one_trace_id() -> None:
    """All that a call does belongs to one trace, although it is not recorded."""
    context = UnsampledContext(Propagation(unexpected), {}, 7)

    assert trace.get_current_span(context).get_span_context().trace_id == 7
    assert isinstance(trace.get_current_span(context), NonRecordingSpan)


async def test_a_message_that_is_tried_again_at_once_links_to_the_attempt_before() -> None:
    """No copy carries its context, so the span has a link."""
    spans = Spans()
    each, again = traced(spans.provider), message({"traceparent": TRACEPARENT})

    await each.process(again)
    again.again()
    await each.process(again)

    first, second = spans.all
    assert [link.context.span_id for link in second.links] == [ids(first)[1]]
    assert parent_of(first) == parent_of(second) == PARENT


async def test_another_provider_than_that_of_the_sdk() -> None:
    """A provider without samplers, such as that of a vendor, is asked for each span."""

    class Tracer(trace.NoOpTracer):
        pass

    class Provider(trace.TracerProvider):
        started: list[str] = []

        def get_tracer(self, *args: Any, **more: Any) -> trace.Tracer:
            outer = self

            class Recording(trace.Tracer):
                def start_span(self, name: str, *args: Any, **more: Any) -> trace.Span:
                    outer.started.append(name)
                    return NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)

                start_as_current_span = trace.NoOpTracer.start_as_current_span

            return Recording()

    provider = Provider()
    outcome = await traced(provider).process(message())

    assert outcome.action is Action.ACK
    assert provider.started == ["process q"]


async def test_an_outcome_of_the_handlers_own() -> None:
    """The span has the final outcome, also if the handler decided before it raised."""
    spans = Spans()

    async def handle(self: object, body: AMQPMessage[int]) -> None:
        body.accept()
        raise KeyError

    outcome = await traced(spans.provider, handle).process(message())

    (span,) = spans.all
    assert span.attributes is not None
    assert outcome.action is Action.ACK
    assert span.attributes["workerkit.outcome"] == "ack"
    assert span.attributes["error.type"] == "KeyError"
    assert isinstance(span.status, Status)


async def test_invalid_bodies_show_no_input() -> None:
    """The text of the exception of an invalid body does not contain the body."""
    spans = Spans()
    outcome = await traced(spans.provider).process(message(raw=b'"hunter2"'))

    (span,) = spans.all
    events: Sequence[Any] = span.events
    assert isinstance(outcome.error, InvalidBody)
    assert "hunter2" not in str(events[0].attributes)


def test_a_provider_that_the_environment_names(tmp_path: Path) -> None:
    """OTEL_PYTHON_TRACER_PROVIDER configures the SDK when the API is first used."""
    code = (
        "from workerkit import WorkerSettings\n"
        "from workerkit.tracing import start_tracing\n"
        "print(start_tracing(WorkerSettings(), None) is not None)"
    )
    environment = {**os.environ, "OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.stdout == "True\n", done.stderr


def test_a_provider_that_fails_turns_tracing_off(caplog: pytest.LogCaptureFixture) -> None:
    """The process starts nevertheless, and the reason is logged."""

    class Failing(TracerProvider):
        def get_tracer(self, *args: Any, **more: Any) -> trace.Tracer:
            raise RuntimeError("no exporter")

    with configured(Failing()):
        assert start_tracing(WorkerSettings(), None) is None

    assert "tracing could not be started" in caplog.text
    assert "no exporter" in caplog.text


@pytest.mark.parametrize(
    ("action", "status"),
    [(Action.RETRY, StatusCode.UNSET), (Action.DEAD_LETTER, StatusCode.ERROR)],
)
async def test_a_retry_is_an_error_only_after_the_last_attempt(
    action: Action, status: StatusCode
) -> None:
    """A handler raises it on purpose; without another attempt, the message has failed."""
    spans = Spans()

    async def handle(self: object, body: int) -> None:
        raise Retry

    policy = RetryPolicy(delays=(1.0,) if action is Action.RETRY else ())
    outcome = await traced(spans.provider, handle, retry=policy).process(message())

    (span,) = spans.all
    assert outcome.action is action
    assert span.status.status_code is status
    assert len(span.events) == (status is StatusCode.ERROR)


def test_a_dead_letter_without_a_call_continues_its_producers_trace() -> None:
    """Nothing was called for a message that is dead-lettered when it is redelivered."""
    spans = Spans()
    tracing = tracing_of(spans.provider)
    with tracing.settle(message({"traceparent": TRACEPARENT}), "dead_letter") as carrier:
        pass

    span = spans.one("dead_letter q")
    assert parent_of(span) == PARENT
    assert carrier["traceparent"] == f"00-{TRACE}-{ids(span)[1]:016x}-01"


async def test_a_message_that_is_too_large() -> None:
    """Its span has the size; the body was discarded."""
    spans = Spans()
    acks = Acks(1, lambda data: True, lambda flush: None)
    oversized = Oversized(
        999, "LIMIT", queue="q", tag=1, envelope=b"\0\0\0", properties=b"\0\0", acks=acks
    )

    await traced(spans.provider).process(oversized)

    span = spans.one("process q")
    assert span.attributes is not None
    assert span.attributes["messaging.message.body.size"] == 999
    assert span.attributes["error.type"] == "workerkit.errors.InvalidBody"


def test_stale_contexts_are_removed_from_copies() -> None:
    """A copy has the new context only; baggage stays, and so does everything without a new one."""
    old = {"traceparent": "old", "tracestate": "old", "baggage": "a=b", "x": 1}
    fields = frozenset({"traceparent", "tracestate", "baggage"})
    invalid = Properties(table=b"\0\0\0\5x")

    def copied(properties: Properties, carrier: dict[str, str]) -> Properties:
        (copy,) = traced_copies(iter([properties]), carrier, fields)
        return copy

    given = Properties(table=table.encode(old))
    assert table.decode(copied(given, {"traceparent": "new"}).table or b"") == {
        "baggage": "a=b",
        "x": 1,
        "traceparent": "new",
    }
    assert copied(given, {}) == given
    assert copied(invalid, {"traceparent": "new"}) == invalid
    assert table.decode(copied(Properties(), {"traceparent": "new"}).table or b"") == {
        "traceparent": "new"
    }
