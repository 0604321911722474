"""Decompress a body step by step. Pure: no I/O."""

import zlib

_GZIP = 16 + zlib.MAX_WBITS
_ENCODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate", "identity": "", "": ""}
_DEFLATE_METHOD = 8

ACCEPTED = "gzip, deflate"
"""The header `Accept-Encoding` of a request."""


def encoding_of(header: str | None) -> str | None:
    """What a `Content-Encoding` means: `gzip`, `deflate`, or "" for none; None if it is unknown."""
    return _ENCODINGS.get((header or "").strip().lower())


class Decoder:
    """Decompresses in steps of a bounded size, so that a small chunk cannot become a large one.

    Args:
        encoding: `gzip` or `deflate`.
        largest: Bytes of one step.
    """

    def __init__(self, encoding: str, largest: int) -> None:
        self._gzip = encoding == "gzip"
        self._largest = largest
        self._inflate = zlib.decompressobj(_GZIP) if self._gzip else None
        self._waiting = b""
        self._over = False

    @property
    def has_more(self) -> bool:
        """Whether another step is possible without another chunk."""
        return bool(self._waiting)

    def step(self, chunk: bytes = b"") -> bytes:
        """Decompress at most *largest* bytes of what has come.

        Args:
            chunk: New input; none while `has_more`.

        Raises:
            zlib.error: It is not what it should be.
        """
        data, inflate = self._waiting + chunk, self._inflate
        if not data or self._over:
            return b""
        if inflate is None:
            # Some servers leave out the two bytes of zlib's head, whose first has the method.
            wrapped = data[0] & 0x0F == _DEFLATE_METHOD
            inflate = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        found = inflate.decompress(data, self._largest)
        self._inflate, self._waiting = inflate, inflate.unconsumed_tail
        if inflate.eof and self._gzip:
            # Another member of the file may follow.
            self._inflate, self._waiting = zlib.decompressobj(_GZIP), inflate.unused_data
        elif inflate.eof:
            self._over, self._waiting = True, b""
        return found
