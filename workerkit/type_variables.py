"""What the type variables of a generic base class stand for in a class that is derived from it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Meanings = Mapping[Any, Any]


def hints(method: Callable[..., Any], of: type | None) -> dict[str, Any]:
    """The annotations of a method, with the type variables of its class as *of* fills them.

    Args:
        method: As the class has it.
        of: The class that is going to be used, which may have inherited it.

    Raises:
        Exception: An annotation that is a string may be any expression.
    """
    found = get_type_hints(method, include_extras=True)
    bases = of.__mro__ if of is not None else ()
    # By identity: attributes of the user's may compare in ways of their own.
    owners = (base for base in bases if any(each is method for each in vars(base).values()))
    owner = next(owners, None)
    meanings = {} if of is None or owner is None else _meanings(of, owner)
    return {name: _filled(type_, meanings) for name, type_ in found.items()}


def variables(type_: Any) -> tuple[Any, ...]:
    """Return the type variables in a type that have no value."""
    if isinstance(type_, TypeVar):
        return (type_,)
    if isinstance(type_, type) and get_origin(type_) is None:
        # A class of pydantic's that was made of a generic one is a class; no class is an alias.
        made = getattr(type_, "__pydantic_generic_metadata__", {})
        return tuple(made["parameters"]) if made.get("origin") is not None else ()
    return tuple(getattr(type_, "__parameters__", ()))


def _meanings(cls: type, owner: type) -> Meanings:
    """What the type variables of *owner*, a base of *cls*, stand for in *cls*."""
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if not (isinstance(origin, type) and issubclass(origin, owner)):
            continue
        parameters = getattr(origin, "__parameters__", ())
        given = dict(zip(parameters, get_args(base), strict=False))
        if origin is owner:
            return given
        above = _meanings(origin, owner)
        return {variable: _filled(type_, given) for variable, type_ in above.items()}
    return {}


def _filled(type_: Any, meanings: Meanings) -> Any:
    """*type_* with the meanings of its type variables, or with their defaults."""
    if isinstance(type_, TypeVar):
        return meanings.get(type_, _default(type_))
    if not (open_ := variables(type_)):
        return type_
    return type_[tuple(meanings.get(each, _default(each)) for each in open_)]


def _default(variable: Any) -> Any:
    """The default of a type variable, which they may have since Python 3.13; else itself."""
    has_default = getattr(variable, "has_default", None)
    return variable.__default__ if has_default is not None and has_default() else variable
