"""What is wrong with a variable, in one sentence that contains no secret."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin
from urllib.parse import unquote

from pydantic import Secret, SecretBytes, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from workerkit.config.annotations import Location, is_nested, members, sentence, without_tags
from workerkit.config.sources import split_list, takes_list
from workerkit.config.variables import Found, Place, Variable, Variables
from workerkit.safe_text import HIDDEN, may_hold_credentials

_SECRET_NAME = re.compile(
    "url|(?<!sec)uri|dsn|password|passwd|passphrase|secret|token|credential|api_?key", re.IGNORECASE
)
_CREDENTIALS = re.compile(r"(?:://|^)(\S*)@")
_UNKNOWN_KEY = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
_KEY = "[key]"  # How pydantic marks that a key is wrong, not the value that it has.
_CONNECTIONS = frozenset({"amqp", "sse"})  # Settings that have a name before their parts.
_SHORTEST_SECRET = 4
_LONGEST_VALUE = 80


class Faults:
    """Says what is wrong with the variables of one class of settings."""

    def __init__(self, variables: Variables) -> None:
        self._variables = variables
        self._unknown = variables.unknown()

    def of_settings(self, error: ValidationError) -> list[str]:
        """Return a sentence for each setting that *error* is about."""
        grouped: dict[Location, list[ErrorDetails]] = {}
        for each in error.errors(include_url=False, include_context=False):
            grouped.setdefault(self._variables.plain(each["loc"]), []).append(each)
        # Of a list that has only wrong items nothing is left, which is no fault of its own.
        parents = {location[:-1] for location in grouped}
        for location in [each for each in grouped if each in parents]:
            if grouped[location][0]["type"] == "too_short":
                del grouped[location]
        texts = (self._of_setting(location, each) for location, each in grouped.items())
        return [text for text in texts if text]

    def of_option(self, error: ValidationError, at: Location, hint: Any, value: Any) -> list[str]:
        """Return a sentence for each part of the option *at* that *error* is about.

        Keys that the option does not know are left to the caller, who can name the nearest.

        Args:
            hint: The type of the option.
            value: What was found, as written.
        """
        grouped: dict[Location, list[ErrorDetails]] = {}
        for each in error.errors(include_url=False, include_context=False):
            grouped.setdefault(without_tags(hint, each["loc"]), []).append(each)
        return [
            self._of_part(at, path, each, value)
            for path, each in grouped.items()
            if each[0]["type"] not in _UNKNOWN_KEY
        ]

    def of_names(self) -> Iterator[str]:
        """Yield a sentence for each variable that sets nothing, or the same as another one."""
        for variable in self._unknown:
            nearest = self._variables.nearest(variable.name)
            yield f"{variable.name}: no setting of that name{did_you_mean(nearest)}"
        for names in self._variables.contradicting():
            yield f"{' and '.join(names)} set the same setting to different values: keep one"

    def label(self, location: Location, *expected: Any) -> str:
        """Return what an operator calls the value at *location*.

        Args:
            expected: The value, where it may also come from code: only a variable that holds
                just this is then meant.
        """
        found = self._variables.locate(location)
        if found and all(found.value == each for each in expected):
            return _label_of(found)
        return in_code(location)

    def labels(self, location: Location, value: Any) -> list[str]:
        """Return the same, but every variable where several make up the *value*."""
        parts = self._variables.under(location) if isinstance(value, Mapping) else []
        return [_name_of(part) for part in parts] or [self.label(location, value)]

    def _of_setting(self, location: Location, errors: list[ErrorDetails]) -> str | None:
        kind = errors[0]["type"]
        found = self._variables.locate(location)
        parts = self._variables.under(location) if location else []
        if kind == "missing":
            return self._missing(location)
        if location[-1:] == (_KEY,):
            return f"{self.label(location[:-1])}: the last part of the name {self._text(errors)}"
        if found is None and self._is_told(location, kind, parts):
            return None
        if kind == "extra_forbidden":
            if found and found.variable in self._unknown:
                return None
            nearest = self._variables.nearest(self._variables.name(location))
            return f"{self._place(location)}: no setting of that name{did_you_mean(nearest)}"
        annotation = self._variables.annotation(location)
        if found is None:
            label = ", ".join(map(_name_of, parts)) or self._place(location)
            shown = "" if parts else _shown(errors[0]["input"], _is_hidden(location, annotation))
            return f"{label}{shown}: {self._text(errors)}"
        return self._sentence(location, annotation, found, errors)

    def _is_told(self, location: Location, kind: str, parts: list[Variable]) -> bool:
        """Whether only parts that are unknown anyway make the value at *location* wrong."""
        simple = not is_nested(self._variables.annotation(location))
        return any(part in self._unknown for part in parts) and (
            simple or kind == "extra_forbidden"
        )

    def _of_part(self, at: Location, path: Location, errors: list[ErrorDetails], value: Any) -> str:
        found = self._variables.locate(at)
        if not isinstance(value, Mapping) and not (found and found.value == value):
            shown = _shown(errors[0]["input"], is_secret((*at, *path), None))
            return f"{in_code((*at, *path))}{shown}: {self._text(errors)}"
        for depth in range(len(path), -1, -1):
            location = (*at, *path[:depth])
            if found := self._variables.locate(location):
                return self._sentence(location, None, found, errors)
        shown = _shown(errors[0]["input"], is_secret((*at, *path), None))
        label = ", ".join(map(_name_of, self._variables.under(at))) or self._place((*at, *path))
        return f"{label}{shown}: {self._text(errors)}"

    def _sentence(
        self, location: Location, annotation: Any, found: Found, errors: list[ErrorDetails]
    ) -> str:
        secret = _is_hidden(location, annotation) or found.variable.place is Place.SECRET_FILE
        if isinstance(found.value, str) and (is_nested(annotation) or takes_list(annotation)):
            try:
                (split_list if takes_list(annotation) else json.loads)(found.value)
            except (ValueError, RecursionError) as error:
                hint = self._without_a_name(location, annotation)
                return f"{_label_of(found)} {hint or bad_json(error)}"
            # It may hold anything, the credentials of a whole connection too.
            return f"{_label_of(found)}: {self._text(errors, found.value)}"
        own = str(found.value) if secret else ""
        return f"{_label_of(found)}{_shown(found.value, secret)}: {self._text(errors, own)}"

    def _without_a_name(self, location: Location, annotation: Any) -> str:
        """The hint for a part of a connection whose name was left out, as in `AMQP__URL`."""
        section, name = location[0], str(location[-1])
        known = {part for each in members(annotation) for part in getattr(each, "model_fields", ())}
        if section not in _CONNECTIONS or len(location) != 2 or name not in known:
            return ""
        meant = self._variables.name((section, "default", name))
        return f"lacks the name of a connection{did_you_mean(meant)}"

    def _missing(self, location: Location) -> str:
        reason = "it is required and has no default"
        parent = self._variables.locate(location[:-1])
        if parent and any(isinstance(step, int) for step in location):
            return f"{_label_of(parent)} lacks {str(location[-1])!r}: {reason}"
        state = "empty" if self._variables.empty(location) else "not set"
        return f"{self._variables.name(location)} is {state}: {reason}"

    def _place(self, location: Location) -> str:
        return self.label(location) if location else "settings"

    def _text(self, errors: list[ErrorDetails], *secrets: str) -> str:
        """Return what would be right; of a union, what each member wants."""
        texts = list(dict.fromkeys(sentence(each["msg"]) for each in errors))
        text = " or ".join(texts)
        standing = [each.text for each in self._variables.standing if _is_secret_variable(each)]
        for secret in sorted({*_parts(*secrets), *_parts(*standing)}, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text


def in_code(location: Location) -> str:
    """Return what the value at *location* is called where it was given in code."""
    return f"settings.{location[0]}" + "".join(f"[{step!r}]" for step in location[1:])


def did_you_mean(name: str) -> str:
    """Return the end of a sentence that proposes *name*, nothing where there is none."""
    return f"; did you mean {name}?" if name else ""


def bad_json(error: Exception) -> str:
    """Return what is wrong with a JSON text, without anything of the text."""
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON: {error.msg.lower()} (character {error.pos + 1})"
    return "is not valid JSON: it is too deep or holds a number that is too long"


def _name_of(variable: Variable) -> str:
    secret = variable.place is Place.SECRET_FILE
    return f"secret file {variable.name}" if secret else variable.name


def _label_of(found: Found) -> str:
    steps = [f"[{each}]" if isinstance(each, int) else f".{each}" for each in found.path]
    path = "".join(steps).removeprefix(".")
    return f"{_name_of(found.variable)} at {path}" if path else _name_of(found.variable)


def _shown(value: Any, secret: bool) -> str:
    """Return ` is <value>`, or nothing for what is no plain value."""
    if secret:
        return f" is {HIDDEN}"
    if value is not None and not isinstance(value, (str, int, float)):
        return ""
    text = repr(value)
    # JSON where a plain value belongs may hold anything, too.
    if may_hold_credentials(text) or (
        isinstance(value, str) and value.lstrip().startswith(("{", "["))
    ):
        return f" is {HIDDEN}"
    return f" is {text}" if len(text) <= _LONGEST_VALUE else f" is {text[:_LONGEST_VALUE]}…"


def is_secret(location: Location, annotation: Any) -> bool:
    named = any(isinstance(step, str) and _SECRET_NAME.search(step) for step in location)
    return named or any(_hides(kind) for kind in members(annotation))


def _is_hidden(location: Location, annotation: Any) -> bool:
    """Whether a value that does not fit is not quoted: nobody knows where the password is in it."""
    return is_secret(location, annotation) or any(
        hasattr(kind, "unicode_string") for kind in members(annotation)
    )


def _hides(kind: Any) -> bool:
    """Whether *kind* is one of pydantic's secrets, or a collection of them."""
    if any(_hides(each) for argument in get_args(kind) for each in members(argument)):
        return True
    kind = get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, (Secret, SecretStr, SecretBytes))


def _is_secret_variable(variable: Variable) -> bool:
    if variable.place is Place.SECRET_FILE or "@" in variable.text:
        return True
    return _SECRET_NAME.search(variable.name) is not None


def _parts(*secrets: str) -> Iterator[str]:
    """Yield *secrets* and the passwords of those that are addresses, as written and decoded."""
    for secret in secrets:
        pieces = [secret]
        for credentials in _CREDENTIALS.findall(secret):
            password = str(credentials).partition(":")[2]
            pieces += [str(credentials), password, unquote(password)]
        yield from (piece for piece in pieces if len(piece) >= _SHORTEST_SECRET)
