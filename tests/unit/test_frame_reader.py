"""The frame reader equals a slow decoder, for any bytes and any chunks."""

import asyncio
import gc
import time
import tracemalloc
from dataclasses import dataclass, field
from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.amqp.frame_reader import FrameReader
from workerkit.amqp.frames import MalformedFrame
from workerkit.amqp.tap import TapProtocol

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
DELIVER, RETURN = (60, 60), (60, 50)
ACK, NACK = (60, 80), (60, 120)
GET_OK, GET_EMPTY = (60, 71), (60, 72)
READ = 3
NO_ROUTE = b"\x01\x38\x08NO_ROUTE\x04shop\x03key"


@dataclass
class Log:
    """A sink that records its calls."""

    events: list[tuple[object, ...]] = field(default_factory=list)

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        self.events.append(("delivered", method, properties, body))

    def oversized(self, method: bytes, properties: bytes, size: int) -> None:
        self.events.append(("oversized", method, properties, size))

    def empty(self) -> None:
        self.events.append(("empty",))

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        self.events.append(("returned", method, properties, body))

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        self.events.append(("confirmed", tag, multiple, accepted))

    def closed(self) -> None:
        self.events.append(("closed",))


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def method(channel: int, ids: tuple[int, int], arguments: bytes = b"") -> bytes:
    return frame(METHOD, channel, pack(">HH", *ids) + arguments)


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def deliver(tag: int, queue: bytes = b"tag") -> bytes:
    """Return the arguments of basic.deliver."""
    return short(queue) + pack(">QB", tag, 0) + short(b"") + short(b"key")


def content(channel: int, body: bytes, sizes: list[int], properties: bytes = b"\0\0") -> bytes:
    """Return header and body frames, with the body split into *sizes*."""
    frames = [frame(HEADER, channel, pack(">HHQ", 60, 0, len(body)) + properties)]
    rest = body
    for size in [*sizes, len(body)]:
        if rest[:size]:
            frames.append(frame(BODY, channel, rest[:size]))
        rest = rest[size:]
    return b"".join(frames)


def message(channel: int, tag: int, body: bytes, sizes: list[int] | None = None) -> bytes:
    return method(channel, DELIVER, deliver(tag)) + content(channel, body, sizes or [])


def get_ok(channel: int, tag: int, body: bytes, sizes: list[int] | None = None) -> bytes:
    """Return a basic.get-ok: a delivery without a consumer tag, with the message count."""
    arguments = deliver(tag, queue=b"")[1:] + pack(">I", 7)
    return method(channel, GET_OK, arguments) + content(channel, body, sizes or [])


def reader_with(log: Log) -> FrameReader:
    reader = FrameReader(lambda blocked: log.events.append(("blocked", blocked)))
    reader.open(READ, log)
    return reader


def decode(data: bytes, cuts: list[int]) -> tuple[list[tuple[object, ...]], bytes, bool]:
    """Return events, the bytes passed on, and whether the reader refused *data* in these chunks."""
    log = Log()
    reader = reader_with(log)
    passed = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    try:
        for start, end in pairwise(edges):
            passed.append(reader.feed(data[start:end]))
    except MalformedFrame:
        return log.events, b"", True
    return log.events, b"".join(passed), False


SOUND_SIZES = {METHOD: 131_064, HEADER: 131_064 + 2**20, BODY: 131_064, HEARTBEAT: 0}


class Failed(Exception):
    """The slow decoder has found bytes that are not AMQP."""


def texts(raw: bytes, number: int) -> bool:
    """Return whether *raw* consists of this number of short strings."""
    for _ in range(number):
        if not raw or len(raw) < raw[0] + 1:
            return False
        raw = raw[raw[0] + 1 :]
    return raw == b""


@dataclass
class SlowDecoder:
    """A simple decoder that reads one complete frame after the other."""

    events: list[tuple[object, ...]] = field(default_factory=list)
    content: list[object] | None = None

    def read(self, data: bytes) -> bytes:
        """What is passed on of *data*."""
        passed, first = b"", True
        while len(data) >= 7:
            kind, channel, size = data[0], int.from_bytes(data[1:3]), int.from_bytes(data[3:7])
            if size > SOUND_SIZES.get(kind, -1):
                if first and data.startswith(b"AMQP"):
                    return data
                raise Failed
            if channel == READ and kind != METHOD:
                self._expect(kind, size, whole=len(data) >= size + 8)
            if len(data) < size + 8:
                break
            whole, payload, data = data[: size + 8], data[7 : size + 7], data[size + 8 :]
            if whole[-1] != 0xCE:
                raise Failed
            if channel != READ:
                ids = tuple(payload[:4])
                if channel == 0 and kind == METHOD and ids in ((0, 10, 0, 60), (0, 10, 0, 61)):
                    self.events.append(("blocked", ids[3] == 60))
                passed += whole
            elif kind == METHOD:
                passed += b"" if self._method(payload) else whole
            else:
                self._part(kind, payload)
            first = False
        return passed

    def _expect(self, kind: int, size: int, *, whole: bool) -> None:
        if self.content is None or kind == HEARTBEAT:
            # The end is looked at first, where there is one: either way it is given up.
            raise Failed
        _, _, properties, missing, _ = self.content
        assert isinstance(missing, int)
        if not whole and kind == BODY and properties is not None and size > missing:
            raise Failed

    def _method(self, payload: bytes) -> bool:
        ids, arguments = tuple(payload[:4]), payload[4:]
        if self.content is not None:
            raise Failed
        if ids == (0, 60, 0, 60):
            after = arguments[1 + arguments[0] :] if arguments else b""
            self._begin("delivered", arguments, after[9:] if len(after) > 9 else b"", 2)
        elif ids == (0, 60, 0, 50):
            self._begin("returned", arguments, arguments[2:], 3)
        elif ids == (0, 60, 0, 71):
            self._begin("delivered", b"\0" + arguments, arguments[9:-4], 2)
        elif ids == (0, 60, 0, 72):
            self.events.append(("empty",))
        elif ids in ((0, 60, 0, 80), (0, 60, 0, 120)):
            if len(arguments) != 9:
                raise Failed
            tag = int.from_bytes(arguments[:8])
            self.events.append(("confirmed", tag, bool(arguments[8] & 1), ids[3] == 80))
        else:
            if ids == (0, 20, 0, 40):
                self.events.append(("closed",))
            return False
        return True

    def _begin(self, name: str, arguments: bytes, strings: bytes, number: int) -> None:
        if not texts(strings, number):
            raise Failed
        self.content = [name, arguments, None, 0, b""]

    def _part(self, kind: int, payload: bytes) -> None:
        assert self.content is not None
        name, arguments, properties, missing, body = self.content
        assert isinstance(missing, int)
        assert isinstance(body, bytes)
        if kind == HEADER:
            if properties is not None or len(payload) < 14:
                raise Failed
            properties, missing = payload[12:], int.from_bytes(payload[4:12])
        elif properties is None or len(payload) > missing:
            raise Failed
        else:
            missing, body = missing - len(payload), body + payload
        self.content = [name, arguments, properties, missing, body]
        if missing == 0:
            self.events.append((name, arguments, properties, body))
            self.content = None


def decode_slowly(data: bytes) -> tuple[list[tuple[object, ...]], bytes, bool]:
    """Return the same as `decode`, with the slow decoder."""
    slow = SlowDecoder()
    try:
        return slow.events, slow.read(data), False
    except Failed:
        return slow.events, b"", True


cuts = st.lists(st.integers(0, 2_000), max_size=12)
channels = st.sampled_from([0, 1, READ])
bodies = st.binary(max_size=60)
broken = st.one_of(
    st.builds(frame, st.integers(0, 9), channels, st.binary(max_size=20)),
    st.builds(content, channels, bodies, st.just([])),
    st.builds(lambda payload: method(READ, DELIVER, payload), st.binary(max_size=20)),
    st.builds(lambda payload: method(READ, ACK, payload), st.binary(max_size=12)),
    st.builds(lambda payload: method(READ, GET_OK, payload), st.binary(max_size=20)),
    st.binary(max_size=30),
    st.sampled_from([b"AMQP\0\0\x09\x01", b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x03\0\x02"]),
)
sound = st.one_of(
    st.builds(message, channels, st.integers(1, 2**63), bodies, st.lists(st.integers(0, 20))),
    st.builds(get_ok, channels, st.integers(1, 2**63), bodies, st.lists(st.integers(0, 20))),
    st.builds(lambda channel: method(channel, GET_EMPTY, short(b"")), channels),
    st.builds(
        lambda ids, tag, multiple: method(READ, ids, pack(">QB", tag, multiple)),
        st.sampled_from([ACK, NACK]),
        st.integers(1, 2**63),
        st.integers(0, 1),
    ),
    st.builds(
        lambda body: method(READ, RETURN, NO_ROUTE) + content(READ, body, []),
        bodies,
    ),
    st.just(frame(HEARTBEAT, 0, b"")),
    st.sampled_from([method(0, (10, 60), short(b"low on memory")), method(0, (10, 61))]),
    st.builds(method, channels, st.sampled_from([(20, 40), (60, 21), (50, 11)]), bodies),
)


@given(st.lists(sound, max_size=12).map(b"".join), cuts)
def test_a_valid_stream_equals_the_slow_decoder(data: bytes, cuts: list[int]) -> None:
    """Frames of every kind are decoded the same, in any chunks."""
    events, passed, failed = decode(data, cuts)

    assert decode_slowly(data) == (events, passed, failed)
    assert not failed


@given(st.lists(st.one_of(sound, broken), max_size=8).map(b"".join), cuts)
def test_an_invalid_stream_equals_the_slow_decoder(data: bytes, cuts: list[int]) -> None:
    """Bytes that are not AMQP are refused at the same position, and no other error is raised."""
    assert decode_slowly(data) == decode(data, cuts)


@given(st.binary(max_size=400), cuts)
def test_random_bytes(data: bytes, cuts: list[int]) -> None:
    """Random bytes raise no error but MalformedFrame."""
    assert decode_slowly(data) == decode(data, cuts)


def test_a_message_byte_by_byte() -> None:
    """A message is complete only with its last byte."""
    data = message(READ, 7, b"body", sizes=[1, 2])
    log = Log()
    reader = reader_with(log)

    passed = [reader.feed(data[at : at + 1]) for at in range(len(data) - 1)]
    before = list(log.events)
    passed.append(reader.feed(data[-1:]))

    assert before == []
    assert log.events == [("delivered", deliver(7), b"\0\0", b"body")]
    assert b"".join(passed) == b""


def test_a_message_of_basic_get() -> None:
    """It is read like any other message, with an empty consumer tag; get-empty is reported."""
    log = Log()
    reader = reader_with(log)

    passed = reader.feed(get_ok(READ, 7, b"body") + method(READ, GET_EMPTY, short(b"")))

    delivered = deliver(7, queue=b"") + pack(">I", 7)
    assert log.events == [("delivered", delivered, b"\0\0", b"body"), ("empty",)]
    assert passed == b""


def test_other_channels_are_passed_on() -> None:
    """The frames of a channel without a sink are passed on to aiormq, with their content."""
    data = message(1, 7, b"body") + method(READ, (60, 21), short(b"tag"))

    events, passed, _ = decode(data, [10])

    assert (events, passed) == ([], data)


def test_a_closed_channel_is_passed_on() -> None:
    """After `close` the rest of a message is passed on, and the next sink starts anew."""
    log = Log()
    reader = reader_with(log)
    whole = message(READ, 1, b"x" * 50, sizes=[20])
    reader.feed(whole[:-20])

    reader.close(READ, log)
    rest = reader.feed(whole[-20:])
    reader.open(READ, log)
    reader.feed(message(READ, 1, b"new"))

    assert rest.endswith(b"\xce")
    assert log.events == [("delivered", deliver(1), b"\0\0", b"new")]


def test_a_late_close_keeps_the_sink_of_a_new_channel() -> None:
    """A channel that is closed late does not remove the sink of another one with its number."""
    old, new = Log(), Log()
    reader = reader_with(old)
    reader.feed(message(READ, 1, b"half a message", sizes=[4])[:-18])

    reader.open(READ, new)
    reader.close(READ, old)
    reader.feed(message(READ, 1, b"new"))

    assert (old.events, new.events) == ([], [("delivered", deliver(1), b"\0\0", b"new")])


def test_the_reason_of_a_connection_close_is_kept() -> None:
    """The reply text of the broker is available when the connection is lost."""
    log = Log()
    reader = reader_with(log)

    reader.feed(method(0, (10, 50), pack(">H", 530) + short(b"NOT_ALLOWED") + pack(">HH", 10, 40)))

    assert reader.refusal == (530, "NOT_ALLOWED")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(BODY, READ, b"x")[:-1] + b"\x00", id="no frame end"),
        pytest.param(pack(">BHI", 1, READ, 2**31) + b"x", id="an absurd size"),
        pytest.param(method(READ, DELIVER, deliver(1)) + frame(BODY, READ, b"x"), id="no header"),
        pytest.param(method(READ, DELIVER, deliver(1)) * 2, id="a message inside a message"),
        pytest.param(method(READ, DELIVER, b"\xff"), id="an incomplete delivery"),
        pytest.param(method(READ, GET_OK, b"\0" * 14), id="an incomplete get-ok"),
    ],
)
def test_malformed(data: bytes) -> None:
    """A stream that is not valid AMQP is refused."""
    with pytest.raises(MalformedFrame):
        reader_with(Log()).feed(data)


async def test_a_socket_that_was_reset_is_collected_without_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In any order of garbage collection, also at the end of the process."""
    # It would tidy up, but not in time where the future happens to be collected first.
    monkeypatch.delattr(asyncio.StreamReaderProtocol, "__del__")
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    protocol = TapProtocol(asyncio.StreamReader(loop=loop), loop)

    protocol.connection_lost(ConnectionResetError("reset by peer"))
    del protocol
    gc.collect()

    assert complaints == []


def tune(frame_max: int) -> bytes:
    """Return a connection.tune with this size."""
    return method(0, (10, 30), pack(">HIH", 2047, frame_max, 60))


@pytest.mark.parametrize(
    ("agreed", "size", "fits"),
    [
        (None, 131_064, True),
        (None, 131_065, False),
        (4_096, 4_088, True),
        (4_096, 4_089, False),
        (2**20, 2**20 - 8, True),
        (2**20, 2**20 - 7, False),
        (0, 131_064, True),
        (0, 131_065, False),
        (100, 4_088, True),
    ],
)
def test_fr8_a_body_frame_has_the_agreed_size_at_most(
    agreed: int | None, size: int, fits: bool
) -> None:
    """The head of a frame is enough to refuse it."""
    reader = reader_with(Log())
    if agreed is not None:
        reader.feed(tune(agreed))
    reader.feed(method(READ, DELIVER, deliver(1)))
    reader.feed(frame(HEADER, READ, pack(">HHQ", 60, 0, 2**40) + b"\0\0"))

    if fits:
        assert reader.feed(pack(">BHI", BODY, READ, size)) == b""
    else:
        with pytest.raises(MalformedFrame, match=f"type 3 with {size} bytes: the limit is"):
            reader.feed(pack(">BHI", BODY, READ, size))


def test_fr8_headers_may_be_longer() -> None:
    """RabbitMQ adds headers to a message, and sends them in one frame even if it is too large."""
    log = Log()
    properties = pack(">HI", 1 << 13, 140_000) + b"\0" * 140_000
    header = frame(HEADER, READ, pack(">HHQ", 60, 0, 0) + properties)

    reader_with(log).feed(method(READ, DELIVER, deliver(1)) + header)

    assert log.events == [("delivered", deliver(1), properties, b"")]


def test_fr8_if_the_broker_sets_no_limit_the_client_sets_one() -> None:
    """aiormq replies with this limit, and the broker obeys it."""
    reader = reader_with(Log())

    assert reader.feed(tune(0) + frame(HEARTBEAT, 0, b"")) == tune(131_072) + frame(
        HEARTBEAT, 0, b""
    )
    assert reader.feed(tune(0)[:9]) + reader.feed(tune(0)[9:]) == tune(131_072)
    assert reader.feed(tune(4_096)) == tune(4_096)


def test_fr8_a_protocol_header_is_valid_at_the_beginning_only() -> None:
    """A broker of another version sends its protocol header first; later it is malformed."""
    other = b"AMQP\0\0\x09\x01"

    assert b"".join(map(reader_with(Log()).feed, (other[:3], other[3:]))) == other
    reader = reader_with(Log())
    reader.feed(frame(HEARTBEAT, 0, b""))
    with pytest.raises(MalformedFrame, match="type 65"):
        reader.feed(other)


def test_fr8_a_large_frame_is_joined_once() -> None:
    """The time grows with the size of the frame, not with its square."""
    reader = reader_with(Log())
    reader.feed(tune(2**25))
    whole = frame(METHOD, 0, b"\0\x0a\0\x63" + bytes(2**25 - 12))
    began = time.process_time()

    passed = [reader.feed(whole[at : at + 4096]) for at in range(0, len(whole), 4096)]
    seconds = time.process_time() - began

    assert b"".join(passed) == whole
    # 8,192 chunks: each of them copied the 16 MiB before it, on average, which took a minute.
    assert seconds < 5.0


@pytest.mark.parametrize(
    ("data", "come"),
    [
        (b"\x01\0\0", 3),
        (message(READ, 1, b"body")[:-3], 9),
        (pack(">BHI", METHOD, 0, 100), 7),
    ],
)
def test_fr8_an_incomplete_frame_is_reported(data: bytes, come: int) -> None:
    """Its bytes are counted, also if they arrive in small chunks."""
    log = Log()
    reader = reader_with(log)
    for byte in data:
        reader.feed(bytes([byte]))
    [first] = reader.unfinished()

    reader.feed(b"?")
    [after] = reader.unfinished()

    assert (first.received, after.received) == (come, come + 1)
    assert log.events == []


def test_fr8_an_incomplete_message_is_reported() -> None:
    """Also one whose frames are complete; a complete message is not reported."""
    reader = reader_with(Log())
    whole = message(READ, 1, b"a body of two", sizes=[6])
    starts = []
    for end in (len(whole) - 8 - 7 - 8 - 6, len(whole) - 8 - 7):
        reader = reader_with(Log())
        reader.feed(whole[:end])
        starts.append([each.received for each in reader.unfinished()])
    reader.feed(whole[-8 - 7 :])

    assert starts == [[0], [6]]
    assert list(reader.unfinished()) == []


def test_fr21_a_message_that_is_too_large_is_not_kept() -> None:
    """700 MB are discarded, and the sink gets the size."""
    log = Log()
    reader = reader_with(log)
    reader.largest_message = 1000
    size = 700_000_000
    reader.feed(method(READ, DELIVER, deliver(1)))
    reader.feed(frame(HEADER, READ, pack(">HHQ", 60, 0, size) + b"\0\0"))
    body = frame(BODY, READ, bytes(125_000))
    tracemalloc.start()
    for _ in range(size // 125_000):
        reader.feed(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reader.feed(message(READ, 2, b"x" * 1000))

    assert peak < 1_000_000
    assert log.events == [
        ("oversized", deliver(1), b"\0\0", size),
        ("delivered", deliver(2), b"\0\0", b"x" * 1000),
    ]
