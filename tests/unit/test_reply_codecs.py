"""CloudEvents and the codecs of the application in requests and replies."""

import json

import pytest
from dependency_injector import providers

from tests.application import package_of
from workerkit import AMQPConsumer, CloudEvent, WorkerContainer
from workerkit.codec import Codecs
from workerkit.testing import FakePublisher, running


class Letters:
    """A format of the application: the text of JSON in reverse."""

    content_types = ("application/reverse",)

    def decode(self, raw: bytes, type_: object) -> object:
        return json.loads(raw[::-1])

    def encode(self, value: object, type_: type) -> bytes:
        return json.dumps(value).encode()[::-1]


class LettersContainer(WorkerContainer):
    """Has the codec."""

    codecs = providers.List(providers.Singleton(Letters))


class Events(AMQPConsumer):
    """Replies with an event, whose data has the content type that the request asks for."""

    queues = ["events"]

    async def handle(self, asked: dict[str, str | None]) -> CloudEvent[dict[str, int]]:
        return CloudEvent(
            type="priced", source="/prices", data={"cents": 12}, datacontenttype=asked["type"]
        )


@pytest.mark.parametrize("content_type", [None, "application/reverse"])
async def test_a_reply_that_is_a_cloud_event(content_type: str | None) -> None:
    """The container's codecs write its data, and read it; the fake publisher does the same."""
    async with running(LettersContainer(), packages=[package_of(Events)]) as app:
        asked = {"type": content_type}
        found = await app.request(asked, "events", returns=CloudEvent[dict[str, int]])
        plain = await app.request(asked, "events")

    assert (found.type, found.data) == ("priced", {"cents": 12})
    assert plain == (b'{"cents":12}' if content_type is None else b'}21 :"stnec"{')

    fake = FakePublisher()
    fake.codecs = Codecs([Letters()])
    fake.replies["events"] = found
    assert await fake.request({}, "events", returns=CloudEvent[dict[str, int]]) == found


async def test_the_fake_encodes_requests_with_the_containers_codecs() -> None:
    """What they refuse is refused, as by the real publisher."""
    fake = FakePublisher()
    fake.codecs = Codecs([Letters()])
    fake.replies["events"] = b""
    with pytest.raises(TypeError):
        await fake.request({"a": {1, 2}}, "events", content_type="application/reverse")
