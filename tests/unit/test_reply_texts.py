"""FR22: the broker's reasons are cut anywhere, and stay readable."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.commands import Channel, Connection, Queue

from workerkit.amqp.tap import fix_reply_texts


def closing(text: bytes, method: bytes = b"\x00\x14\x00\x28") -> bytes:
    """A frame with which the broker closes a channel, or the connection."""
    payload = method + struct.pack(">HB", 404, len(text)) + text + b"\0\x32\0\x0a"
    return struct.pack(">BHI", 1, 7, len(payload)) + payload + b"\xce"


@pytest.mark.parametrize("method", [b"\x00\x14\x00\x28", b"\x00\x0a\x00\x32"])
def test_fr22_half_a_character_becomes_question_marks(method: bytes) -> None:
    """Everything before it stays; the frames around it too."""
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
def test_fr22_any_text_is_readable_then(text: bytes) -> None:
    """And what is UTF-8 is not touched."""
    answered = fix_reply_texts(closing(text))

    assert len(answered) == len(closing(text))
    assert frame.unmarshal(answered)[0] == len(answered)
    if text.decode(errors="replace").encode() == text:
        assert answered == closing(text)


@given(st.binary(max_size=60))
def test_fr22_whatever_comes_is_survived(noise: bytes) -> None:
    """Sizes that lie, and frames that are none."""
    for frames in (noise, noise + closing(b"\xff"), closing(b"\xff")[:-3] + noise):
        assert len(fix_reply_texts(frames)) == len(frames)
