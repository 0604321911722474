"""The largest number of connections of one port."""

import resource
from typing import Literal

_LEAST = 16
_UNLIMITED = 1 << 20
_SHARES = {"http": 2, "ops": 8}


def max_connections(setting: int | None, port: Literal["http", "ops"]) -> int:
    """Return the setting, or else a part of the descriptors that the process may have.

    Views get half of them and the ops server an eighth. The rest is for brokers, files and
    databases, so that clients of HTTP cannot keep the process from connecting to those.
    """
    if setting is not None:
        return setting
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = _UNLIMITED if soft == resource.RLIM_INFINITY else soft
    return max(_LEAST, descriptors // _SHARES[port])
