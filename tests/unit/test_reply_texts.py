"""FR22: reply texts that the broker truncated anywhere can be decoded."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.commands import Channel, Connection, Queue

from workerkit.amqp.tap import fix_reply_texts


def closing(text: bytes, method: bytes = b"\x00\x14\x00\x28") -> bytes:
    """Return a frame with which the broker closes a channel, or the connection."""
    payload = method + struct.pack(">HB", 404, len(text)) + text + b"\0\x32\0\x0a"
    return struct.pack(">BHI", 1, 7, len(payload)) + payload + b"\xce"


@pytest.mark.parametrize("method", [b"\x00\x14\x00\x28", b"\x00\x0a\x00\x32"])
def test_fr22_an_incomplete_character_becomes_question_marks(method: bytes) -> None:
    """The rest of the text does not change, nor do other frames."""
    text = "NOT_FOUND - no queue 'ü🐇".encode()[:-1]
    before = frame.marshal(Queue.DeclareOk("q", 3, 0), 7)

    answered = fix_reply_texts(before + closing(text, method) + before)

    assert answered.startswith(before)
    assert answered.endswith(before)
    _, number, close = frame.unmarshal(answered[len(before) :])
    assert isinstance(close, Channel.Close | Connection.Close)
    assert (number, close.reply_code) == (7, 404)
    assert close.reply_text == "NOT_FOUND - no queue 'ü???"


@given(st.binary(max_size=255))
def test_fr22_any_text_can_be_decoded(text: bytes) -> None:
    """Valid UTF-8 does not change."""
    answered = fix_reply_texts(closing(text))

    assert len(answered) == len(closing(text))
    assert frame.unmarshal(answered)[0] == len(answered)
    if text.decode(errors="replace").encode() == text:
        assert answered == closing(text)


@given(st.binary(max_size=60))
def test_fr22_any_bytes_are_accepted(noise: bytes) -> None:
    """Wrong sizes, and bytes that are not frames."""
    for frames in (noise, noise + closing(b"\xff"), closing(b"\xff")[:-3] + noise):
        assert len(fix_reply_texts(frames)) == len(frames)
