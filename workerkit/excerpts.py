"""Truncate long texts for logs."""

LONGEST = 64 * 1024
"""The largest size of one text, in bytes of UTF-8."""

_SHORT = 64  # The note would be as long.


def excerpt(text: str, longest: int = LONGEST) -> str:
    """Truncate *text* in its middle, with a note of how many characters are left out.

    The beginning of a traceback shows where the error was raised, its end shows the error.

    Args:
        longest: The largest size in bytes of UTF-8, without the note.
    """
    if len(text) * 4 <= longest:
        return text
    if len(text) <= longest and len(text.encode(errors="replace")) <= longest:
        return text
    most = longest // 4
    start = _first(text[: longest - most], longest - most)
    end = _first(text[len(text) - most :][::-1], most)[::-1]
    left_out = len(text) - len(start) - len(end)
    return f"{start} ... {left_out} characters left out ... {end}"


def _first(text: str, most: int) -> str:
    """Return as many characters as fit into *most* bytes."""
    return text.encode(errors="replace")[:most].decode(errors="ignore")


class Budget:
    """The bytes that are left for a value with many texts, such as a list."""

    def __init__(self, longest: int = LONGEST) -> None:
        self.left = longest

    def excerpt(self, text: str) -> str:
        """Truncate *text* to the bytes that are left."""
        shown = excerpt(text, max(self.left, _SHORT))
        # An empty text counts one byte: a list of a million empty texts is long as well.
        self.left -= len(text.encode(errors="replace")) + 1 if shown is text else self.left + 1
        return shown
