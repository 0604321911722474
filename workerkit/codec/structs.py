"""Read bodies as types with a `msgspec.Struct` in them, which pydantic does not support."""

import re
from collections.abc import Callable
from typing import Any

from workerkit.codec.body_types import UnknownType
from workerkit.codec.findings import LONGEST_FINDING, TOO_DEEP, Decode, explain, without_bom
from workerkit.errors import InvalidBody
from workerkit.safe_text import excerpt

_AT = re.compile(r"(?P<text>.*) - at `\$(?P<place>(?:\.\w+|\[\d+\]|\[\.\.\.\])+)`", re.DOTALL)
_QUOTED = re.compile(r"'[^']*'|(?<=unknown field )`[^`]*`")


def struct_decoder(type_: Any) -> Decode:
    """Create the function that reads JSON as *type_*.

    Raises:
        UnknownType: msgspec does not support it either.
    """
    import msgspec

    try:
        # The decoder accepts any class, but no JSON value would match it.
        msgspec.json.schema(type_, schema_hook=_refuse)
        decode_json = msgspec.json.Decoder(type_).decode
    except TypeError as error:
        text = str(error).split("\n", 1)[0]
        raise UnknownType(f"a msgspec.Struct is in it, and msgspec says: {text}") from error
    return struct_reader(decode_json, json=True)


def struct_reader(read: Callable[[Any], Any], *, json: bool = False) -> Decode:
    """Create the function that reads bodies with *read* of msgspec, and raises `InvalidBody`."""
    import msgspec

    def decode(raw: Any, may_have_bom: bool = json) -> Any:
        try:
            return read(raw)
        except RecursionError:
            raise InvalidBody(TOO_DEEP) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if may_have_bom and (plain := without_bom(raw)) is not None:
                return decode(plain, False)
            finding = _finding(msgspec_text(error))
            is_read = isinstance(error, msgspec.ValidationError)
            raise InvalidBody(explain([finding], 1), [finding] if is_read else ()) from None

    return decode


def msgspec_text(error: Exception) -> str:
    """Return the text of an error of msgspec without the values and names that it quotes."""
    return excerpt(_QUOTED.sub("...", str(error)), LONGEST_FINDING)


def _finding(text: str) -> tuple[str, str]:
    """Split a text of msgspec into the place, written as pydantic does, and the rest."""
    found = _AT.fullmatch(text)
    if found is None:
        return "the body", text
    place = found["place"].replace("[...]", ".[key]")
    return re.sub(r"\[(\d+)\]", r".\1", place).removeprefix("."), found["text"]


def _refuse(type_: Any) -> dict[str, Any]:
    if type_ is object:
        return {}
    name = getattr(type_, "__qualname__", str(type_))
    raise UnknownType(f"{name} is none of the types that it reads")
