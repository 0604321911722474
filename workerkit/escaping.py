"""Make texts of others safe to show: no control characters, no forged lines, no passwords."""

from collections.abc import Callable

from workerkit.redaction import mask_passwords

Redact = Callable[[str], str]
"""Returns a text without what must not be written."""

INDENT = "  "
"""In front of every line of a record but its first, so that no line looks like a new record."""


def escape(text: str) -> str:
    """Return *text* on one line, with a backslash escape for each character that is not printable.

    These are the control characters (C0, DEL, C1; line breaks and tabs among them), the line and
    paragraph separators, marks that change the direction of text, characters without width, lone
    surrogates, and what Unicode does not define: all that `repr` escapes as well. A backslash stays
    as it is.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def escape_lines(text: str) -> str:
    r"""Return *text* with its lines, each after the first indented, and each as `escape` has it.

    Only `\n` ends a line. A tab is shown as spaces.
    """
    if text.isprintable():
        return text
    first, *others = text.split("\n")
    return "\n".join([_line(first), *(INDENT + _line(each) for each in others)])


def escape_json(text: str) -> str:
    r"""Return the same JSON, with `\u` escapes for all that is not printable.

    Args:
        text: JSON on one line. What it means does not change.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped_in_json(each) for each in text)


def redacted(text: str, redact: Redact | None) -> str:
    """Return what *redact* makes of a text, without the passwords of URLs.

    Raises:
        Exception: What *redact* raises; TypeError where it returns no text.
    """
    if redact is not None:
        text = redact(text)
        if not isinstance(text, str):
            raise TypeError(f"redact returned a {type(text).__qualname__}, no str")
    return mask_passwords(text)


def cleaner(redact: Redact | None) -> Redact:
    """Return `redacted` with *redact*; of a text for which that raises, only the reason is left."""
    if redact is None:
        return mask_passwords

    def clean(text: str) -> str:
        try:
            return redacted(text, redact)
        except Exception as error:
            # The text may be what it is meant to hide, and its error may contain it.
            return f"<not shown: redact raised {type(error).__qualname__}>"

    return clean


def one_line(text: str) -> str:
    """Return what others wrote, for one line of output: without passwords, and escaped."""
    return escape(mask_passwords(text))


def _line(text: str) -> str:
    return escape(text.removesuffix("\r").expandtabs())


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _escaped_in_json(character: str) -> str:
    encoded = character.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{encoded[at : at + 2].hex()}" for at in range(0, len(encoded), 2))
