"""Texts of any length, cut to what a log can take."""

LONGEST = 64 * 1024
"""Bytes of UTF-8 that are kept of one text."""

_SHORT = 64  # The note would be as long.


def excerpt(text: str, longest: int = LONGEST) -> str:
    """Cut *text* in its middle, and note there how many characters are left out.

    The beginning tells where something happened, the end of a traceback tells what.

    Args:
        longest: Bytes of UTF-8, beside the note.
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
    """As many characters as fit into *most* bytes."""
    return text.encode(errors="replace")[:most].decode(errors="ignore")


class Budget:
    """What is left of the bytes that a value of many texts may take."""

    def __init__(self, longest: int = LONGEST) -> None:
        self.left = longest

    def excerpt(self, text: str) -> str:
        """*text*, cut to what is left."""
        shown = excerpt(text, max(self.left, _SHORT))
        # Something even for nothing: a list of a million empty texts is long as well.
        self.left -= len(text.encode(errors="replace")) + 1 if shown is text else self.left + 1
        return shown
