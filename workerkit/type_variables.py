"""Resolve the type variables of a generic base class in a class that is derived from it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Values = Mapping[Any, Any]


def hints(method: Callable[..., Any], of: type | None) -> dict[str, Any]:
    """Return the annotations of a method, with the type variables of its class as *of* sets them.

    Args:
        method: As the class has it.
        of: The class that is going to be used, which may have inherited it.

    Raises:
        Exception: An annotation that is a string may be any expression.
    """
    found = get_type_hints(method, include_extras=True)
    bases = of.__mro__ if of is not None else ()
    # By identity: attributes of user classes may override `==`.
    owners = (base for base in bases if any(each is method for each in vars(base).values()))
    owner = next(owners, None)
    values = {} if of is None or owner is None else _values_in(of, owner)
    return {name: _replace(type_, values) for name, type_ in found.items()}


def variables(type_: Any) -> tuple[Any, ...]:
    """Return the type variables in a type that have no value."""
    if isinstance(type_, TypeVar):
        return (type_,)
    if isinstance(type_, type) and get_origin(type_) is None:
        # A parametrized generic model of pydantic is a class, not an alias.
        metadata = getattr(type_, "__pydantic_generic_metadata__", {})
        return tuple(metadata["parameters"]) if metadata.get("origin") is not None else ()
    return tuple(getattr(type_, "__parameters__", ()))


def _values_in(cls: type, owner: type) -> Values:
    """Return the values of the type variables of *owner*, a base of *cls*, in *cls*."""
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if not (isinstance(origin, type) and issubclass(origin, owner)):
            continue
        parameters = getattr(origin, "__parameters__", ())
        given = dict(zip(parameters, get_args(base), strict=False))
        if origin is owner:
            return given
        above = _values_in(origin, owner)
        return {variable: _replace(type_, given) for variable, type_ in above.items()}
    return {}


def _replace(type_: Any, values: Values) -> Any:
    """Return *type_* with its type variables replaced by their values or defaults."""
    if isinstance(type_, TypeVar):
        return values.get(type_, _default(type_))
    if not (open_ := variables(type_)):
        return type_
    return type_[tuple(values.get(each, _default(each)) for each in open_)]


def _default(variable: Any) -> Any:
    """Return the default of a type variable (Python 3.13 and later), else the variable itself."""
    has_default = getattr(variable, "has_default", None)
    return variable.__default__ if has_default is not None and has_default() else variable
