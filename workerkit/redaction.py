"""Remove from a text what may be a password or a token in an address."""

import re

HIDDEN = "***"

# A scheme is not needed: HOST=user:password@host is a frequent mistake.
_CREDENTIALS = re.compile(r"(?<=://)\S*@|(?<![^\s'\"(=,])[^\s'\"(=,:@/]+:(?!//)[^\s@]*@")
# The user stays: it says which login is meant. The password ends at the last @ before the next URL,
# because people write passwords with @, / or : in them without encoding them.
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
    """Whether a single value had better not be shown at all."""
    # With nothing before it, as in @hourly, there is no user. The value may be quoted.
    has_user = "@" in text.lstrip("' \"")[1:]
    return has_user or without_credentials(text) != text or ("?" in text and "=" in text)
