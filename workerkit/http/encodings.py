"""The codings of bodies that aiohttp decodes: RFC 9110, section 8.4.1."""

from collections.abc import Mapping

from aiohttp import hdrs
from aiohttp.compression_utils import HAS_BROTLI, HAS_ZSTD

SUPPORTED = ("gzip", "deflate", *["br"] * HAS_BROTLI, *["zstd"] * HAS_ZSTD)
ACCEPTED: Mapping[str, str] = {hdrs.ACCEPT_ENCODING: ", ".join(SUPPORTED)}
"""The header of an answer to a body with another coding."""

UNSUPPORTED = f"the body has a Content-Encoding other than {', '.join(SUPPORTED)}"


def is_supported(coding: str) -> bool:
    """Whether a body with this `Content-Encoding` is decoded."""
    name = coding.strip().lower()
    return name in SUPPORTED or name in ("", "identity")
