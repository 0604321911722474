"""Check the TLS files before anything connects, and report each one that cannot be used."""

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from pydantic import BaseModel

from workerkit.config.annotations import Location
from workerkit.config.connections import TLSSettings

_KEY = b"PRIVATE KEY-----"
_ENCRYPTED = (b"ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")


def file_faults(section: object, at: Location = ()) -> Iterator[tuple[Location, str]]:
    """Yield the faults of the files of all TLS sections in *section*: the setting and a text.

    Args:
        at: The location of *section* in the settings.
    """
    if isinstance(section, TLSSettings):
        for field, text in _faults(section):
            yield (*at, field), text
    elif isinstance(section, BaseModel):
        for name in type(section).model_fields:
            yield from file_faults(getattr(section, name, None), (*at, name))
    elif isinstance(section, Mapping):
        for key, value in section.items():
            yield from file_faults(value, (*at, str(key)))


def _faults(tls: TLSSettings) -> Iterator[tuple[str, str]]:
    files: dict[str, Path | None] = {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
    contents: dict[str, bytes] = {}
    for field, path in files.items():
        if path is None:
            continue
        try:
            if not S_ISREG(mode := path.stat().st_mode) and not S_ISDIR(mode):
                # Reading from it might never end.
                yield field, f"is {str(path)!r}: no regular file"
                continue
            contents[field] = path.read_bytes()
        except OSError as error:
            yield field, f"is {str(path)!r}: {(error.strerror or 'cannot be read').lower()}"
            continue
        if field != "key" and not _has_certificate(path):
            yield field, f"is {str(path)!r}, which has no certificate in PEM"
            del contents[field]
    if tls.cert is None and (tls.key is not None or tls.key_password is not None):
        field = "key" if tls.key is not None else "key_password"
        yield field, "has no effect without CERT, the client's certificate"
    elif "cert" in contents and (tls.key is None or "key" in contents):
        yield from _key_faults(tls, contents.get("key", contents["cert"]))


def _key_faults(tls: TLSSettings, content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the faults of the client's key, whose file can be read."""
    field, path = ("cert", tls.cert) if tls.key is None else ("key", tls.key)
    secret = tls.key_password
    encrypted = any(each in content for each in _ENCRYPTED)
    if _KEY not in content:
        hint = "; set KEY as well" if tls.key is None else ""
        yield field, f"is {str(path)!r}, which has no private key in PEM{hint}"
    elif encrypted and secret is None:
        yield field, f"is {str(path)!r}, whose key is encrypted: set KEY_PASSWORD"
    else:
        try:
            tls.load_client_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                yield field, f"is {str(path)!r}, which is not the key of CERT {str(tls.cert)!r}"
            elif encrypted:
                yield "key_password", f"does not open the key in {str(path)!r}"
            else:
                yield field, f"is {str(path)!r}, which cannot be used: {error.reason}"


def _has_certificate(path: Path) -> bool:
    try:
        context: Any = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError):
        return False
    return True
