"""Errors for clients, with the reply codes and texts of RabbitMQ.

AMQP 0-9-1 closes the channel for some codes ("soft" errors), and the connection for the others.
"""

CODES = {
    "CONTENT_TOO_LARGE": 311,
    "CONNECTION_FORCED": 320,
    "ACCESS_REFUSED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_LOCKED": 405,
    "PRECONDITION_FAILED": 406,
    "FRAME_ERROR": 501,
    "COMMAND_INVALID": 503,
    "CHANNEL_ERROR": 504,
    "UNEXPECTED_FRAME": 505,
    "NOT_ALLOWED": 530,
    "NOT_IMPLEMENTED": 540,
    "INTERNAL_ERROR": 541,
}
_SOFT = {311, 403, 404, 405, 406}
_LONGEST_TEXT = 255


class Refusal(Exception):
    """An error that closes a channel or a connection.

    Args:
        name: One of `CODES`.
        detail: The part of the reply text that follows the name.

    Attributes:
        code: AMQP's reply code.
        text: Name and detail, cut to the length of a short string.
    """

    def __init__(self, name: str, detail: str = "") -> None:
        self.code = CODES[name]
        self.text = shortened(f"{name} - {detail}" if detail else name)
        super().__init__(self.text)

    @property
    def closes_connection(self) -> bool:
        """Whether it closes the connection, not only the channel."""
        return self.code not in _SOFT


def shortened(text: str) -> str:
    """Cut *text* to the 255 bytes of a short string, as RabbitMQ does."""
    raw = text.encode(errors="surrogateescape")
    if len(raw) <= _LONGEST_TEXT:
        return text
    return raw[: _LONGEST_TEXT - 3].decode(errors="ignore") + "..."


def label(kind: str, name: str, vhost: str) -> str:
    """Return a queue or an exchange as texts name it: `queue 'orders' in vhost '/'`."""
    return f"{kind} '{name}' in vhost '{vhost}'"


def not_found(kind: str, name: str, vhost: str) -> Refusal:
    """Return the error for a queue or exchange that does not exist."""
    return Refusal("NOT_FOUND", f"no {label(kind, name, vhost)}")


def locked(name: str, vhost: str) -> Refusal:
    """Return the error for a queue that is exclusive to another connection, or not exclusive."""
    return Refusal(
        "RESOURCE_LOCKED",
        f"cannot obtain exclusive access to locked {label('queue', name, vhost)}."
        " It could be originally declared on another connection or the exclusive property value"
        " does not match that of the original declaration.",
    )


def default_exchange() -> Refusal:
    """Return the error for operations that the default exchange does not permit."""
    return Refusal("ACCESS_REFUSED", "operation not permitted on the default exchange")


def reserved(kind: str, name: str) -> Refusal:
    """Return the error for a name with the reserved prefix `amq.`."""
    return Refusal("ACCESS_REFUSED", f"{kind} name '{name}' contains reserved prefix 'amq.*'")


def unexpected(expected: str, got: str) -> Refusal:
    """Return the error for a frame that is not expected now."""
    return Refusal("UNEXPECTED_FRAME", f"expected {expected}, got {got} instead")


def malformed(kind: int, payload: bytes, fault: str = "unknown_frame") -> Refusal:
    """Return the error for bytes that are not a frame."""
    return Refusal("FRAME_ERROR", f"type {kind}, all octets = {erlang(payload)}: {fault}")


def erlang(raw: bytes) -> str:
    """Return bytes as RabbitMQ prints them."""
    return f"<<{','.join(map(str, raw[:100]))}>>"
