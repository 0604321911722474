"""Traces of requests with their replies, and of messages whose type is skipped."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import StatusCode
from pydantic import BaseModel

from tests.application import package_of
from tests.tracing import ids, parent_of, recorded
from workerkit import (
    Action,
    AMQPConsumer,
    Call,
    Publisher,
    Reject,
    RequestFailed,
    WorkerContainer,
)
from workerkit.testing import running


class Price(BaseModel):
    """What is returned, and what a type names."""

    cents: int


@asynccontextmanager
async def guarded(call: Call) -> AsyncIterator[None]:
    """Refuse a request before or after its handler, and keep what it has returned."""
    if call.delivery.body == "refused before":
        raise Reject("before")
    yield
    assert call.outcome is not None
    Prices.returned.append(call.outcome.value)
    if call.delivery.body == "refused after":
        raise Reject("after")


class Prices(AMQPConsumer):
    """Replies."""

    queues = ["prices"]
    interceptors = [guarded]
    returned: list[Any]

    async def handle(self, article: str) -> Price | None:
        return None if article == "none" else Price(cents=3)


class Shop(AMQPConsumer):
    """Sends a request for each message."""

    queues = ["shop"]
    answers: list[object]

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        Shop.answers, Prices.returned = [], []

    async def handle(self, article: str) -> None:
        try:
            reply = await self.publisher.request(article, "prices", returns=Price, timeout=5.0)
        except RequestFailed as failed:
            Shop.answers.append((failed.status, failed.detail))
        else:
            Shop.answers.append(reply)


class Typed(AMQPConsumer):
    """Skips all types but one."""

    queues = ["typed"]
    types = {"price": Price}
    on_unknown = Action.ACK

    async def handle(self, price: Price) -> None: ...


class Many(AMQPConsumer):
    """The same in batches."""

    queues = ["many"]
    types = {"price": Price}
    on_unknown = Action.ACK
    batch_size = 10

    async def handle(self, prices: list[Price]) -> None: ...


MARKET = package_of(Shop, Prices, Typed, Many)


@pytest.mark.parametrize(
    ("article", "answer", "returned"),
    [
        ("pen", Price(cents=3), [Price(cents=3)]),
        ("refused before", (422, "before"), []),
        ("refused after", (422, "after"), [Price(cents=3)]),
    ],
)
async def test_a_request_and_its_reply_are_one_trace(
    article: str, answer: object, returned: list[Any]
) -> None:
    """The caller's call, the request, the callee's call and the reply follow each other."""
    with recorded() as spans:
        async with running(WorkerContainer(), packages=[MARKET], only=["Shop", "Prices"]) as app:
            await app.publish(article, "shop")
            await app.idle()

    assert (Shop.answers, Prices.returned) == ([answer], returned)
    caller, request, callee, reply = map(
        spans.one, ("process shop", "publish prices", "process prices", "reply prices")
    )
    assert [parent_of(each) for each in (request, callee, reply)] == [
        ids(caller),
        ids(request),
        ids(callee),
    ]


@pytest.mark.parametrize("article", ["pen", "none"])
async def test_the_reply_to_an_unsampled_request_is_not_sampled(article: str) -> None:
    """A request without a trace context is sampled once, and not a second time for its reply."""
    Prices.returned = []
    with recorded(ParentBased(TraceIdRatioBased(0.5))) as spans:
        async with running(WorkerContainer(), packages=[MARKET], only=["Prices"]) as app:
            returns = Price | None
            await asyncio.gather(
                *(app.request(article, "prices", returns=returns) for _ in range(40))
            )
            await app.idle()

    calls = {ids(each) for each in spans.named("process prices")}
    assert 0 < len(calls) < 40
    assert {parent_of(each) for each in spans.named("reply prices")} == calls


@pytest.mark.parametrize("queue", ["typed", "many"])
async def test_a_type_that_is_skipped_is_no_error(queue: str) -> None:
    """The class says that it is well: neither its span nor that of its batch failed."""
    with recorded() as spans:
        async with running(WorkerContainer(), packages=[MARKET], only=["Typed", "Many"]) as app:
            await app.publish({"cents": 1}, queue, type="other")
            await app.publish({"cents": 1}, queue, type="price")
            await app.idle()

    assert spans.names
    for each in spans.all:
        assert each.status.status_code is StatusCode.UNSET
        assert not each.events


async def test_an_expired_request_explains_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Its span is in the trace of its sender, and so is its log record."""
    Prices.returned = []
    headers = {"traceparent": f"00-{'a1' * 16}-{'b2' * 8}-01", "x-workerkit-deadline": 1}
    with recorded() as spans:
        async with running(WorkerContainer(), packages=[MARKET], only=["Prices"]) as app:
            await app.publish("pen", "prices", headers=headers, reply_to="nowhere")
            await app.idle()

    (span,) = spans.all
    assert Prices.returned == []
    assert parent_of(span) == (int("a1" * 16, 16), int("b2" * 8, 16))
    assert (span.attributes or {})["error.type"] == "workerkit.errors.RequestExpired"
    (record,) = [each for each in caplog.records if "expired" in each.getMessage()]
    assert vars(record)["trace_id"] == "a1" * 16
