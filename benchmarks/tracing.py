"""CPU per call of `Endpoint.process`, with tracing off, unsampled and sampled, in one run.

    python -m benchmarks.tracing [MESSAGES] [ROUNDS]

The messages have encoded properties with three headers, as a producer sends them, in three forms:
without a trace context, with an unsampled and with a sampled one. Spans that are recorded go to an
exporter in memory. The samplers take turns within a round. The best round of each counts, because
others run on the same machine, and the difference to "off" in the same form is the cost.

"asked" is a sampler that workerkit does not know, so that it is asked for each message.
"""

import asyncio
import sys
import time
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
)

from workerkit import Action, AMQPConsumer, AMQPMessage
from workerkit.amqp import table
from workerkit.amqp.acks import Acks
from workerkit.amqp.properties import Properties, encode
from workerkit.endpoint import Endpoint
from workerkit.options import Options
from workerkit.signature import ArgumentSource, Signature
from workerkit.tracing.running import running_tracing

OFF = "off"
FORMS = {"no parent": None, "unsampled parent": "00", "sampled parent": "01"}


class Asked(ParentBased):
    """A sampler with a description of its own."""

    def get_description(self) -> str:
        """Return no description of the SDK."""
        return "Asked"


SAMPLERS: dict[str, Sampler | None] = {
    OFF: None,
    "parentbased_always_off": ParentBased(ALWAYS_OFF),
    "parentbased_traceidratio 0.0001": ParentBasedTraceIdRatio(0.0001),
    "asked, always off": Asked(ALWAYS_OFF),
    "parentbased_always_on": ParentBased(ALWAYS_ON),
}


class Orders(AMQPConsumer):
    """Does nothing."""

    queues = ["orders"]

    async def handle(self, body: int) -> None:
        """Return."""


def endpoint(sampler: Sampler | None, exporter: InMemorySpanExporter) -> Endpoint:
    """Return an endpoint, traced if there is a sampler."""
    signature = Signature(
        Orders.handle, AMQPMessage, lambda name, type_: ArgumentSource(lambda: None)
    )
    made = Endpoint(
        Orders(),
        Options(name="Orders", concurrency=1, timeout=60.0),
        signature,
        on_success=Action.ACK,
        on_exception=Action.REQUEUE,
        on_invalid=Action.DEAD_LETTER,
    )
    if sampler is not None:
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracing = running_tracing(None, provider)
        assert tracing is not None
        tracing.trace_calls(made, "amqp", "orders")
    return made


def messages(flags: str | None, count: int) -> list[AMQPMessage[Any]]:
    """Return messages as they arrive."""
    headers = {"tenant": "acme", "x-kind": "order"}
    if flags is not None:
        headers["traceparent"] = f"00-{'a1' * 16}-{'b2' * 8}-{flags}"
    properties = encode(
        Properties(
            content_type="application/json",
            table=table.encode(headers),
            delivery_mode=2,
            message_id="a" * 32,
            timestamp=1,
        )
    )
    acks = Acks(1, lambda data: True, lambda flush: None)
    return [
        AMQPMessage(
            b"1", queue="orders", tag=1, envelope=b"\0\0\6orders", properties=properties, acks=acks
        )
        for _ in range(count)
    ]


async def measure(count: int, rounds: int) -> dict[tuple[str, str], float]:
    """Return the best time in microseconds by sampler and form."""
    exporter = InMemorySpanExporter()
    endpoints = {name: endpoint(sampler, exporter) for name, sampler in SAMPLERS.items()}
    best: dict[tuple[str, str], float] = {}
    task = asyncio.current_task()
    for _ in range(rounds):
        for name, each in endpoints.items():
            for form, flags in FORMS.items():
                batch = messages(flags, count)
                began = time.process_time()
                for message in batch:
                    await each.process(message, task)
                micros = (time.process_time() - began) / count * 1e6
                best[name, form] = min(micros, best.get((name, form), micros))
                exporter.clear()
    return best


def main(count: int = 10_000, rounds: int = 5) -> None:
    """Print the time with tracing off, and what each sampler adds."""
    best = asyncio.run(measure(count, rounds))
    print(f"{'':34}" + "".join(f"{form:>20}" for form in FORMS))
    off = {form: best[OFF, form] for form in FORMS}
    for name in SAMPLERS:
        less, sign = (dict.fromkeys(FORMS, 0.0), "") if name == OFF else (off, "+")
        cells = [f"{best[name, form] - less[form]:{sign}.2f} µs" for form in FORMS]
        print(f"{name:34}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
