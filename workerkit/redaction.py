"""Remove from a text what may be a password or a token in an address."""

import re

HIDDEN = "***"

# A scheme is not needed: HOST=user:password@host is a frequent mistake.
_CREDENTIALS = re.compile(r"(?<=://)\S*@|(?<![^\s'\"(=,])[^\s'\"(=,:@/]+:(?!//)[^\s@]*@")
_PASSWORD = re.compile(r"(?<=://)([^\s:@/]*):\S*@")
_QUERY = re.compile(r"(://[^\s?'\"]*\?)[^\s'\"]+")


def without_credentials(text: str) -> str:
    """Replace user and password before an `@`, and the query of a URL."""
    if "@" not in text and "?" not in text:
        return text
    return _QUERY.sub(rf"\1{HIDDEN}", _CREDENTIALS.sub(f"{HIDDEN}@", text))


def without_password(text: str) -> str:
    """Replace the password before an `@`, but keep the user, as logs do."""
    return _PASSWORD.sub(rf"\1:{HIDDEN}@", text) if "@" in text else text


def may_hold_credentials(text: str) -> bool:
    """Whether a single value had better not be shown at all."""
    return "@" in text or without_credentials(text) != text or ("?" in text and "=" in text)
