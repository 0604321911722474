"""Decompression of a body in steps. Pure: no I/O."""

import zlib

_GZIP = 16 + zlib.MAX_WBITS
_ENCODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate", "identity": "", "": ""}
_DEFLATE_METHOD = 8

ACCEPTED = "gzip, deflate"
"""The value of the header `Accept-Encoding`."""


def encoding_of(header: str | None) -> str | None:
    """Return the encoding, `gzip`, `deflate`, or "" for none; None if it is unknown."""
    return _ENCODINGS.get((header or "").strip().lower())


class Decoder:
    """A decompressor with a size limit for each step: a small chunk may decompress to a large one.

    Args:
        encoding: `gzip` or `deflate`.
        max_step: Bytes of one step.
    """

    def __init__(self, encoding: str, max_step: int) -> None:
        self._gzip = encoding == "gzip"
        self._max_step = max_step
        self._inflate = zlib.decompressobj(_GZIP) if self._gzip else None
        self._pending = b""
        self._ended = False

    @property
    def has_more(self) -> bool:
        """Whether another step is possible without another chunk."""
        return bool(self._pending)

    def step(self, chunk: bytes = b"") -> bytes:
        """Return at most *max_step* decompressed bytes.

        Args:
            chunk: New input; b"" while `has_more`.

        Raises:
            zlib.error: The input is malformed.
        """
        data, inflate = self._pending + chunk, self._inflate
        if not data or self._ended:
            return b""
        if inflate is None:
            # Some servers omit the two bytes of the zlib header, whose first has the method.
            wrapped = data[0] & 0x0F == _DEFLATE_METHOD
            inflate = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        found = inflate.decompress(data, self._max_step)
        self._inflate, self._pending = inflate, inflate.unconsumed_tail
        if inflate.eof and self._gzip:
            # Another gzip member may follow.
            self._inflate, self._pending = zlib.decompressobj(_GZIP), inflate.unused_data
        elif inflate.eof:
            self._ended, self._pending = True, b""
        return found
