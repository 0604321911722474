"""Check and read the URL of a message broker."""

import re
from urllib.parse import unquote

from pydantic_core import PydanticCustomError
from yarl import URL

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}

SEPARATORS = frozenset(",;")
USE_HOSTS = "list several in HOSTS, as in a:5672,b:5672"

# Query parameters of other clients, and the settings with the same meaning.
_SETTINGS = {
    "auth": "AUTH",
    "auth_mechanism": "AUTH",
    "ca_certs": "TLS__CA",
    "cacertfile": "TLS__CA",
    "cafile": "TLS__CA",
    "certfile": "TLS__CERT",
    "connect_timeout": "CONNECT_TIMEOUT, in seconds,",
    "connection_timeout": "CONNECT_TIMEOUT, in seconds,",
    "keyfile": "TLS__KEY",
    "no_verify_ssl": "TLS__VERIFY",
    "password": "TLS__KEY_PASSWORD",
    "server_name_indication": "TLS__SERVER_NAME",
    "socket_timeout": "CONNECT_TIMEOUT, in seconds,",
    "timeout": "CONNECT_TIMEOUT, in seconds,",
    "verify": "TLS__VERIFY",
}
_HEARTBEAT = re.compile(r"[0-9]{1,5}")
_PRINTABLE_NAME = re.compile(r"[a-z_.-]{1,40}")
_SECOND_URL = re.compile("[,;] *amqps?://")
BYTE_ORDER_MARK = "\ufeff"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_SHORT_STRING = 255


def check_broker_url(text: str) -> None:
    """Check the URL of a broker, without quoting it in errors.

    Raises:
        PydanticCustomError: It is invalid. The error is a `ValueError`.
    """
    if _lists_hosts(text):
        raise _fault(f"should name one host: {USE_HOSTS}")
    # A line break at the end, which files often have, is ignored.
    if _CONTROL.search(text.strip()):
        raise _fault("should have no line break or other control character")
    try:
        url = URL(text)
        url.with_host(url.host or "h")
    except ValueError:
        # yarl's error may quote a part of the URL, and a chained error would be printed.
        raise _fault("should be a valid URL") from None
    if url.scheme not in DEFAULT_PORTS:
        raise _fault("should start with amqp:// or amqps://")
    if not url.host:
        raise _fault("should name a host")
    if url.raw_fragment:
        raise _fault("should have no # part: write %23 where a # belongs to a name or password")
    for part, value in (("user", url.user), ("password", url.password)):
        if value is not None and _CONTROL.search(value):
            raise _fault(f"has a line break or another control character in its {part}")
    _check_query(url)
    try:
        check_vhost(unquote(_path(text), errors="strict"))
    except UnicodeDecodeError:
        raise _fault("should have a virtual host in UTF-8") from None


def check_vhost(name: str) -> None:
    """Check the name of a virtual host.

    Raises:
        PydanticCustomError: It is invalid. The error is a `ValueError`.
    """
    if _CONTROL.search(name):
        raise _fault("should have no line break or other control character in the virtual host")
    if len(name.encode(errors="replace")) > _MAX_SHORT_STRING:
        raise _fault("should name a virtual host of at most 255 bytes, which is AMQP's limit")


def check_credential(value: str) -> None:
    """Check a user or a password for space and control characters that are probably a mistake.

    Raises:
        PydanticCustomError: It is invalid. The error is a `ValueError`.
    """
    if value != value.strip():
        raise _fault(
            "should not begin or end with a space or line break: files of secrets often end with"
            " one; write it percent-encoded in the URL if it is intended"
        )
    if value.startswith(BYTE_ORDER_MARK):
        raise _fault("should not begin with a byte order mark, as files of some editors do")
    if _CONTROL.search(value):
        raise _fault("should have no line break or other control character")


def vhost_of(url: str) -> str:
    """Return the virtual host, decoded once: `/a%252Fb` is `a%2Fb`."""
    return unquote(_path(url)) or "/"


def heartbeat_of(text: str) -> int | None:
    """Return the heartbeat from the query of a URL; None without a valid one."""
    try:
        value = URL(text).query.get("heartbeat", "")
    except ValueError:
        return None
    return int(value) if _is_heartbeat(value) else None


def _is_heartbeat(text: str) -> bool:
    return _HEARTBEAT.fullmatch(text) is not None and 1 <= int(text) <= 65_535


def _path(url: str) -> str:
    """Return the part between the first slash and the query. yarl would resolve `..` in it."""
    return re.split("[?#]", url.partition("://")[2].strip(), maxsplit=1)[0].partition("/")[2]


def _check_query(url: URL) -> None:
    for name in url.query:
        if name == "heartbeat":
            continue
        if name in _SETTINGS:
            raise _fault(f"should not have {name!r} in its query: set {_SETTINGS[name]} instead")
        # Other text may be a part of a password, so it is not quoted.
        shown = repr(name) if _PRINTABLE_NAME.fullmatch(name) else "such a part"
        raise _fault(f"should not have {shown} in its query: only heartbeat is supported")
    values = url.query.getall("heartbeat", [])
    if len(values) > 1 or not all(map(_is_heartbeat, values)):
        raise _fault("should have one heartbeat in its query, from 1 to 65535 seconds")


def _lists_hosts(url: str) -> bool:
    """Return whether *url* lists several servers, as URLs of some other clients do."""
    if _SECOND_URL.search(url):
        return True
    authority = re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]
    credentials, _, host = authority.rpartition("@")
    # A password may contain separators, but hardly the user name after one.
    user = re.escape(credentials.partition(":")[0])
    repeated = bool(user) and re.search(f"@.*[,;]{user}:", credentials)
    return bool(repeated) or not SEPARATORS.isdisjoint(host)


def _fault(text: str) -> PydanticCustomError:
    return PydanticCustomError("amqp_url", "{text}", {"text": text})
