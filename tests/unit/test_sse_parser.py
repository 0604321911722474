"""Row S8: the parser compared with a slow, literal transcription of the WHATWG algorithm."""

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workerkit.sse.parser import Parser

Found = tuple[list[tuple[str, str, str]], str, int | None]


# The standard, sentence by sentence. No optimization, and no code shared with the parser.
# https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation


def decoded(stream: bytes) -> str:
    """The UTF-8 decode algorithm: errors become U+FFFD, one leading byte order mark is dropped.

    https://encoding.spec.whatwg.org/#utf-8-decoder
    """
    out, point, seen, needed, lower, upper = [], 0, 0, 0, 0x80, 0xBF
    place = 0
    while place < len(stream):
        byte = stream[place]
        if not needed:
            place += 1
            if byte <= 0x7F:
                out.append(chr(byte))
            elif 0xC2 <= byte <= 0xDF:
                needed, point = 1, byte & 0x1F
            elif 0xE0 <= byte <= 0xEF:
                lower = 0xA0 if byte == 0xE0 else lower
                upper = 0x9F if byte == 0xED else upper
                needed, point = 2, byte & 0xF
            elif 0xF0 <= byte <= 0xF4:
                lower = 0x90 if byte == 0xF0 else lower
                upper = 0x8F if byte == 0xF4 else upper
                needed, point = 3, byte & 0x7
            else:
                out.append("\ufffd")
            continue
        if not lower <= byte <= upper:
            point = needed = seen = 0
            lower, upper = 0x80, 0xBF
            out.append("\ufffd")  # and the byte is read again
            continue
        place += 1
        lower, upper = 0x80, 0xBF
        point = (point << 6) | (byte & 0x3F)
        seen += 1
        if seen == needed:
            out.append(chr(point))
            point = needed = seen = 0
    text = "".join(out)  # The rest is a line without an end.
    return text.removeprefix("\ufeff")


def lines_of(text: str) -> Iterator[str]:
    """Return the lines, which end with CRLF, LF or CR; an incomplete last line is dropped."""
    line, place = "", 0
    while place < len(text):
        if text[place] == "\r":
            yield line
            line = ""
            if text[place + 1 : place + 2] == "\n":
                place += 1
        elif text[place] == "\n":
            yield line
            line = ""
        else:
            line += text[place]
        place += 1


def field_of(line: str) -> tuple[str, str]:
    """Return the name and the value of the field on a line."""
    if ":" not in line:
        return line, ""
    value = line[line.index(":") + 1 :]
    if value and value[0] == " ":
        value = value[1:]
    return line[: line.index(":")], value


def interpreted(stream: bytes) -> Found:
    """Return events, last event id and reconnection time according to the standard."""
    data_buffer = event_type_buffer = last_event_id_buffer = last_event_id = ""
    reconnection_time = None
    events = []
    for line in lines_of(decoded(stream)):
        if line == "":
            last_event_id = last_event_id_buffer
            if data_buffer == "":
                event_type_buffer = ""
                continue
            if data_buffer[-1] == "\n":
                data_buffer = data_buffer[:-1]
            events.append((event_type_buffer or "message", data_buffer, last_event_id))
            data_buffer = event_type_buffer = ""
            continue
        if line[0] == ":":
            continue
        field, value = field_of(line)
        if field == "event":
            event_type_buffer = value
        elif field == "data":
            data_buffer += value
            data_buffer += "\n"
        elif field == "id":
            if not unsendable(value):
                last_event_id_buffer = value
        elif field == "retry" and value and all(each in "0123456789" for each in value):
            reconnection_time = int(value)
    return events, last_event_id, reconnection_time


def unsendable(id_: str) -> bool:
    """Return whether a header cannot have the id: the standard only excludes NUL."""
    return any((each < " " and each != "\t") or each == "\x7f" for each in id_)


def parsed(stream: bytes, cuts: list[int], largest: int = 1_000_000) -> Found:
    """Return the results of the parser for *stream*, cut at *cuts*."""
    parser = Parser("/r", max_event_size=largest)
    places = [0, *sorted(min(each, len(stream)) for each in cuts), len(stream)]
    events = []
    for start, end in pairwise(places):
        events += parser.feed(stream[start:end])
    found = [(each.name, each.raw, each.id) for each in events]
    return found, parser.last_event_id, parser.retry


TOKENS = [
    *(b"id: \x01", b"id: \x7f\ndata: x\n\n", b"id: a\tb\ndata: x\n\n"),
    *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b":", b" ", b"  ", b": ", b"\0"),
    *(b"data", b"data:", b"data: ", b"event:", b"event: x", b"id", b"id:", b"id: 7", b"id:\0"),
    *(b"retry: 12", b"retry:", b"retry: 1x", b"retry: -1", b"retry: 007", b"retry: \xd9\xa1"),
    *(b"Data: no", b"data : no", b" data: no", b"other: x", b"{}", b"a", b"\xef\xbb\xbf"),
    *(b"\xef\xbb", b"\xbf", b"\xff", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"\xf0\x9f\x98\x80"),
    *(
        b"data: x\n\n",
        b"id: 1\ndata: x\n\n",
        b"id: 2\nevent: e\ndata: x\n\n",
        b"event: \ndata: \n\n",
    ),
    *(b"id: \ndata: x\n\n", b"id: 3\0\ndata: x\n\n", b"event: e\nid: 4\ndata: x\n\n"),
    *(b"\xed\xa0\x80", b"\xe0\x80", b"\xf4\x90", b"\xc0\x80", "é€😀".encode()),
]
STREAMS = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=3), max_size=40).map(b"".join)


@settings(max_examples=1500)
@given(stream=STREAMS, cuts=st.lists(st.integers(0, 120), max_size=12))
def test_s8_any_stream_in_any_chunks(stream: bytes, cuts: list[int]) -> None:
    """S8: for any bytes in any chunks, the result is that of the standard."""
    assert parsed(stream, cuts) == interpreted(stream)


def test_s8_thousands_of_random_streams_byte_by_byte() -> None:
    """S8: the same for random streams, with each byte as a chunk."""
    dice = random.Random(8)

    for _ in range(3000):
        stream = b"".join(dice.choices(TOKENS, k=dice.randint(1, 60)))
        assert parsed(stream, list(range(len(stream)))) == interpreted(stream), stream


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [("message", "a", "")]),
        (b"data:a\rdata:b\r\r", [("message", "a\nb", "")]),
        (b"data\n\n", [("message", "", "")]),
        (b"data\ndata\n\n", [("message", "\n", "")]),
        (b"data:  a \n\n", [("message", " a ", "")]),
        (b"event: x\n\ndata: a\n\n", [("message", "a", "")]),
        (b"event: x\ndata: a\n\n", [("x", "a", "")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("message", "a", "")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n", [("message", x, i) for x, i in
         [("a", "1"), ("b", "1"), ("c", "")]]),
        (b"id: 1\0\ndata: a\n\n", [("message", "a", "")]),
        (b"data: \xff\n\n", [("message", "\ufffd", "")]),
        (b"data: a\n", []),
        (b"data: a", []),
        (b": comment\n\n:\n\n", []),
    ],
)  # fmt: skip
def test_s8_examples(stream: bytes, events: list[tuple[str, str, str]]) -> None:
    """S8: cases of the standard that clients often get wrong."""
    assert parsed(stream, [])[0] == events
    assert interpreted(stream)[0] == events


def test_s8_an_id_without_data_moves_the_last_event_id() -> None:
    """A block with an id and no data is not an event, but the stream resumes after it."""
    assert parsed(b"id: 1\ndata: a\n\nid: 2\n\nid: 3\n", []) == ([("message", "a", "1")], "2", None)


def test_s8_a_crlf_cut_in_two_is_one_line_end() -> None:
    """A CR completes its event at once; an LF in the next chunk is ignored."""
    parser = Parser()

    assert [each.raw for each in parser.feed(b"data: a\r\n\r")] == ["a"]
    assert [each.raw for each in parser.feed(b"\ndata: b\r\n\r\n")] == ["b"]


def test_s8_the_id_of_the_previous_connection_is_kept() -> None:
    """An event without an id on a new connection does not reset the position."""
    parser = Parser(last_event_id="41")

    (event,) = parser.feed(b"data: a\n\n")

    assert (event.id, parser.last_event_id) == ("41", "41")


def test_s8_lines_of_megabytes() -> None:
    """A line of megabytes in small chunks is read in linear time."""
    data = "x" * 8_000_000
    stream = f"id: 1\ndata: {data}\n\n".encode()

    events, last, _ = parsed(stream, list(range(0, len(stream), 16_384)), 16_000_000)

    assert (events == [("message", data, "1")], last) == (True, "1")


@pytest.mark.parametrize("chunk", [1, 7, 1_000, 10_000])
@pytest.mark.parametrize("field", ["data: " + "x" * 3_000, "data: x\n" * 2_000])
def test_s8_an_event_that_is_too_large_is_empty(chunk: int, field: str) -> None:
    """It is marked and takes no memory; its id counts, and its neighbours are complete."""
    stream = f"data: a\n\nid: 1\n{field}\n\nid: 2\ndata: b\n\n".encode()
    parser = Parser(max_event_size=1_000)
    events = []
    for place in range(0, len(stream), chunk):
        events += parser.feed(stream[place : place + chunk])

    assert [(each.raw, each.id, each.oversized) for each in events] == [
        ("a", "", False),
        ("", "1", True),
        ("b", "2", False),
    ]


def test_s8_a_comment_that_is_too_long_is_ignored() -> None:
    """A line without an end that is not data is skipped."""
    parser = Parser(max_event_size=100)
    for _ in range(100):
        assert parser.feed(b": " + b"x" * 50) == []

    assert [each.raw for each in parser.feed(b"\ndata: a\n\n")] == ["a"]


def test_s8_a_number_of_thousands_of_digits() -> None:
    """`retry` takes any number of digits."""
    assert parsed(b"retry: " + b"9" * 10_000 + b"\n", [])[2] == 10**15 - 1
