"""Types of bodies by a name in each delivery: `types` of AMQP consumers, `events` of streams."""

from collections.abc import Iterator, Mapping
from typing import Any, get_origin

from workerkit.codec import UnknownType
from workerkit.config.annotations import members
from workerkit.signature import Signature, shown_type

Types = Mapping[str, Any]


def type_faults(attribute: str, types: Types, signature: Signature) -> list[str]:
    """Return the faults of *types*, one phrase each.

    Args:
        attribute: The class attribute that has the types.
        signature: That of `handle`.
    """
    found = []
    for name, type_ in types.items():
        start = f"{attribute}[{name!r}]"
        if isinstance(type_, str):
            found.append(f"{start} is {type_!r}: write the type itself, not its name")
            continue
        try:
            signature.reader(type_)
        except UnknownType as error:
            found.append(f"{start} cannot be decoded: {error}")
            continue
        if not _takes(signature.body, type_):
            shown = shown_type(type_)
            found.append(
                f"{start} is {shown}, which handle does not take: add it to the annotation"
            )
    return found


def unused_types(attribute: str, types: Types, body: Any) -> Iterator[str]:
    """Yield a phrase for each alternative of a *body* that is no value of *types*."""
    for each in members(body) if types else ():
        if not any(_takes(each, type_) or _takes(type_, each) for type_ in types.values()):
            shown = shown_type(each)
            yield f"handle takes {shown}, which is not in {attribute}: nothing is read as it"


def _takes(taken: Any, type_: Any) -> bool:
    """Return whether each value of *type_* is one of the type *taken*."""
    if type_ == taken:
        return True
    return all(
        any(_is_part(each, of) for of in (taken, *members(taken))) for each in members(type_)
    )


def _is_part(type_: Any, of: Any) -> bool:
    if type_ == of or of in (Any, object):
        return True
    try:
        return issubclass(get_origin(type_) or type_, of)
    except TypeError:  # One of them is no class, or a TypedDict, which has no such check.
        return False
