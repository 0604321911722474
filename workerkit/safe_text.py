"""Text that is safe to write to logs, terminals and answers: no secrets, no control characters.

Passwords in addresses are masked, control characters are escaped, and long text is shortened.
"""

import re
from collections.abc import Callable

HIDDEN = "***"

# A scheme is not needed: HOST=user:password@host is a frequent mistake.
_CREDENTIALS = re.compile(r"(?<=://)\S*@|(?<![^\s'\"(=,])[^\s'\"(=,:@/]+:(?!//)[^\s@]*@")
# The user stays, because it identifies the login. The password ends at the last @ before the next
# URL, because operators write passwords with @, / or : without encoding them.
_PASSWORD = re.compile(r"://([^\s:/?#@]*):(?:(?!://)\S)*@")
_QUERY = re.compile(r"(://[^\s?'\"]*\?)[^\s'\"]+")


def without_credentials(text: str) -> str:
    """Replace user and password before an `@`, and the query of a URL."""
    if "@" not in text and "?" not in text:
        return text
    return _QUERY.sub(rf"\1{HIDDEN}", _CREDENTIALS.sub(f"{HIDDEN}@", text))


def mask_passwords(text: str) -> str:
    """Return *text* with `***` for each password in a URL: `amqp://user:***@host`."""
    return _PASSWORD.sub(rf"://\1:{HIDDEN}@", text) if "://" in text else text


def may_hold_credentials(text: str) -> bool:
    """Return whether a value may contain credentials, so that it should not be shown."""
    # In @hourly, with nothing before the @, there is no user. The value may be in quotes.
    has_user = "@" in text.lstrip("' \"")[1:]
    return has_user or without_credentials(text) != text or ("?" in text and "=" in text)


Redact = Callable[[str], str]
"""A function that returns a text without its secrets."""

INDENT = "  "
"""Prefix of each line of a record after the first, so that no line looks like a new record."""


def escape(text: str) -> str:
    """Return *text* on one line, with a backslash escape for each character that is not printable.

    These are the control characters (C0, DEL, C1; including line breaks and tabs), the line and
    paragraph separators, marks that change the direction of text, characters without width, lone
    surrogates, and undefined code points: the same as `repr` escapes. A backslash stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def escape_lines(text: str) -> str:
    r"""Return *text* with each line escaped like `escape` does, and indented after the first.

    Only `\n` ends a line. A tab is shown as spaces.
    """
    if text.isprintable():
        return text
    first, *others = text.split("\n")
    return "\n".join([_line(first), *(INDENT + _line(each) for each in others)])


def escape_json(text: str) -> str:
    r"""Return the same JSON, with `\u` escapes for all characters that are not printable.

    Args:
        text: JSON on one line. Its meaning does not change.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped_in_json(each) for each in text)


def redacted(text: str, redact: Redact | None) -> str:
    """Return the result of *redact* for a text, with masked passwords in URLs.

    Raises:
        Exception: An error of *redact*; TypeError if it does not return a text.
    """
    if redact is not None:
        text = redact(text)
        if not isinstance(text, str):
            raise TypeError(f"redact returned a {type(text).__qualname__}, no str")
    return mask_passwords(text)


def cleaner(redact: Redact | None) -> Redact:
    """Return a function like `redacted` that does not raise: an error replaces the text."""
    if redact is None:
        return mask_passwords

    def clean(text: str) -> str:
        try:
            return redacted(text, redact)
        except Exception as error:
            # The text may be the secret itself, and the error may contain it.
            return f"<not shown: redact raised {type(error).__qualname__}>"

    return clean


def one_line(text: str) -> str:
    """Return text from outside for one line of output: escaped, with masked passwords."""
    return escape(mask_passwords(text))


def _line(text: str) -> str:
    return escape(text.removesuffix("\r").expandtabs())


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _escaped_in_json(character: str) -> str:
    encoded = character.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{encoded[at : at + 2].hex()}" for at in range(0, len(encoded), 2))


LONGEST = 64 * 1024
"""The largest size of one text, in bytes of UTF-8."""

_SHORT = 64  # A shorter text is not truncated: the note would be as long.


def excerpt(text: str, longest: int = LONGEST) -> str:
    """Truncate *text* in its middle, with the number of characters that are left out.

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
    """Limit of bytes for a value with many texts, such as a list."""

    def __init__(self, longest: int = LONGEST) -> None:
        self.left = longest

    def excerpt(self, text: str) -> str:
        """Truncate *text* to the bytes that are left."""
        shown = excerpt(text, max(self.left, _SHORT))
        # An empty text counts one byte: a list of a million empty texts is long as well.
        self.left -= len(text.encode(errors="replace")) + 1 if shown is text else self.left + 1
        return shown
