"""Parse the hosts of servers: `host`, `host:port`, `[::1]:port`."""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address

_NAME = re.compile(r"[^\s:/\\@?#%\[\]<>^|\"'`,;]+")
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Host:
    """The name or the IP address of a server, without brackets, and a port.

    Attributes:
        port: None if it is not given.
    """

    name: str
    port: int | None = None

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if self.port is None else f"{name}:{self.port}"


def parse_host(text: str) -> Host:
    """Parse one host.

    Raises:
        ValueError: The host is invalid. The error does not quote it: it may be a URL with a
            password.
    """
    if "/" in text or "@" in text:
        raise ValueError("should be a host or host:port alone, without scheme, user or path")
    if text.startswith("["):
        name, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError("should close the bracket of an IPv6 address, as in [::1]:5672")
        _check_ipv6(name)
        return Host(name, _port(rest[1:]) if rest else None)
    if text.count(":") > 1:
        raise ValueError("should have an IPv6 address in brackets, as in [::1] or [::1]:5672")
    name, colon, rest = text.partition(":")
    if not name:
        raise ValueError("should not be empty")
    if not _NAME.fullmatch(name):
        raise ValueError("should be a host name or an IP address, with or without a port")
    return Host(name, _port(rest) if colon else None)


def _check_ipv6(name: str) -> None:
    try:
        IPv6Address(name)
    except ValueError:
        raise ValueError("should have an IPv6 address in its brackets, as in [::1]") from None


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65_535:
        raise ValueError("should have a port from 1 to 65535 after its colon")
    return int(text)
