"""The tokens of a lease: messages with the number of the last run. Pure: no I/O, no clock."""

import json
from dataclasses import asdict, dataclass

_HIGHEST = 2**62


@dataclass(frozen=True, slots=True)
class Token:
    """One message in the queue of a lease.

    Attributes:
        number: Of a run, or of a renewal of the lease; 0 in a token that is only there so that the
            queue is not empty.
        id: Of this token alone; empty with number 0.
        scheduled: When the last run was due, in seconds since 1970; 0 if there was none.
    """

    number: int = 0
    id: str = ""
    scheduled: float = 0.0

    def encode(self) -> bytes:
        """Return the body of the message."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> "Token":
        """Read the body of a message; what is no token counts as one with number 0."""
        try:
            found = json.loads(raw)
            number, scheduled = found["number"], float(found["scheduled"])
            valid = type(number) is int and 0 <= number < _HIGHEST and 0 <= scheduled < _HIGHEST
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            return cls()
        return cls(number, str(found.get("id", "")), scheduled) if valid else cls()


class Tokens:
    """The tokens that were delivered to one consumer and are not settled.

    Attributes:
        highest: The highest number of all that were delivered.
        scheduled: When the last run was due, as the one with that number states.
    """

    def __init__(self) -> None:
        self.highest = 0
        self.scheduled = 0.0
        self._held: dict[int, Token] = {}

    def add(self, tag: int, token: Token) -> bool:
        """Note a token by its delivery tag; whether its number is higher than all before."""
        is_highest = token.number > self.highest or not self._held
        if is_highest:
            self.highest, self.scheduled = token.number, token.scheduled
        self._held[tag] = token
        return is_highest

    def pop(self, tag: int) -> None:
        """Remove a token that is acknowledged."""
        del self._held[tag]

    def pop_all_but(self, token_id: str) -> list[int]:
        """Remove all tokens but one; their delivery tags, in order."""
        tags = [tag for tag, token in self._held.items() if token.id != token_id]
        for tag in tags:
            del self._held[tag]
        return tags
