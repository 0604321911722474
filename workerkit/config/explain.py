"""Faults of variables as sentences: the variable, what it holds, what would be right; no secret."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin
from urllib.parse import unquote

from pydantic import Secret, SecretBytes, SecretStr
from pydantic_core import ErrorDetails

from workerkit.config.annotations import (
    Location,
    fields_of,
    has_parts,
    members,
    types_at,
    unknown_keys,
)
from workerkit.config.sources import split_list, takes_list
from workerkit.config.variables import (
    CONSUMERS,
    LocatedValue,
    Variable,
    Variables,
    VariableSource,
    most_similar,
)
from workerkit.safe_text import HIDDEN, may_hold_credentials

_SECRET_NAME = re.compile(
    "url|(?<!sec)uri|dsn|password|passwd|passphrase|secret|token|credential|api_?key", re.IGNORECASE
)
_CREDENTIALS = re.compile(r"(?:://|^)(\S*)@")
_COUNT = re.compile(r"^\w+ (should have at (?:least|most) \d+ items?) after validation, not \d+$")
_UNKNOWN_KEY = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
_KEY = "[key]"  # pydantic's mark for a key that is invalid, and not its value.
_CONNECTIONS = frozenset({"amqp", "sse"})  # Settings that have a name before their parts.
_SHORTEST_SECRET = 4
_LONGEST_VALUE = 80


class Faults:
    """The sentences for faults of the variables of one class of settings."""

    def __init__(self, variables: Variables) -> None:
        self._variables = variables
        self._unknown = variables.unknown()

    def of_errors(self, errors: Sequence[ErrorDetails]) -> list[str]:
        """Return a sentence for each setting or part of an option that *errors* are about."""
        grouped: dict[Location, list[ErrorDetails]] = {}
        for each in errors:
            location = self._variables.without_union_tags(each["loc"])
            grouped.setdefault(location, []).append(each)
        # A list that has only invalid items counts as too short: that is no second fault.
        parents = {location[:-1] for location in grouped}
        texts = (
            self._of_errors_at(location, each)
            for location, each in grouped.items()
            if location not in parents or each[0]["type"] != "too_short"
        )
        return [text for text in texts if text]

    def of_names(self) -> Iterator[str]:
        """Yield a sentence for each variable that sets nothing, or the same as another one."""
        for variable in self._unknown:
            nearest = self._variables.nearest(variable.name)
            yield f"{variable.name}: no setting of that name{_did_you_mean(nearest)}"
        for names in self._variables.contradicting():
            yield f"{' and '.join(names)} set the same setting to different values: keep one"

    def of_option_names(self, at: Location, value: Any) -> Iterator[str]:
        """Yield a sentence for each unknown name in or above the *value* of the option *at*."""
        consumers = self._variables.annotation((CONSUMERS,))
        for path in unknown_keys(consumers, {at[1]: {at[2]: value}}):
            what = "consumer" if len(path) == 1 else "option"
            *above, name = path
            kinds = (kind for each in types_at(consumers, above) for kind in members(each))
            nearest = most_similar(
                str(name), [known for kind in kinds for known in fields_of(kind) or ()]
            )
            rest = at[len(path) + 1 :]
            hint = _did_you_mean(self._variables.name((CONSUMERS, *above, nearest, *rest)))
            location = (CONSUMERS, *path, *rest)
            whole = location == at and isinstance(value, Mapping)
            parts = self._variables.under(at) if whole else []
            for label in [_label_of(each) for each in parts] or [self.label(location)]:
                yield f"{label}: no {what} of that name{hint}"

    def of_json(self, at: Location, error: Exception) -> str:
        """Return the sentence for an option that contains invalid JSON."""
        labels = [_label_of(each) for each in self._variables.under(at)]
        return f"{', '.join(labels) or self.label(at)} {_invalid_json(error)}"

    def of_parts(self, at: Location) -> Iterator[str]:
        """Yield a sentence for each variable for a part of *at*, which another variable sets."""
        for part in self._variables.under(at):
            yield f"{part.name} has no effect beside {self._variables.name(at)}: keep one"

    def label(self, location: Location) -> str:
        """Return the variable that sets the value at *location*, or the expression in code."""
        found = self._variables.locate(location)
        return _label_of(found.variable, found.path) if found else in_code(location)

    def _of_errors_at(self, location: Location, errors: list[ErrorDetails]) -> str | None:
        kind = errors[0]["type"]
        if kind == "missing" and (text := self._missing(location)):
            return text
        if location[-1:] == (_KEY,):
            return f"{self.label(location[:-1])}: the last part of the name {self._text(errors)}"
        if location[:1] == (CONSUMERS,):
            location = self._variables.longest_set(location)
        found = self._variables.locate(location)
        parts = self._variables.under(location)
        annotation = self._variables.annotation(location)
        is_unknown = kind in _UNKNOWN_KEY
        has_sentence = any(each in self._unknown for each in ([found.variable] if found else parts))
        if has_sentence and (is_unknown or not (found or has_parts(annotation))):
            return None
        if is_unknown:
            if location[0] == CONSUMERS:
                return None  # `of_option_names` yields it.
            nearest = self._variables.nearest(self._variables.name(location))
            return f"{self.label(location)}: no setting of that name{_did_you_mean(nearest)}"
        if found:
            return self._of_value(location, annotation, found, errors)
        label = ", ".join(map(_label_of, parts)) or self.label(location)
        shown = "" if parts else _shown(errors[0]["input"], _is_hidden(location, annotation))
        return f"{label}{shown}: {self._text(errors)}"

    def _of_value(
        self, location: Location, annotation: Any, found: LocatedValue, errors: list[ErrorDetails]
    ) -> str:
        label = _label_of(found.variable, found.path)
        is_option = location[0] == CONSUMERS and len(location) > 2
        is_list = takes_list(annotation)
        if isinstance(found.value, str) and not is_option and (is_list or has_parts(annotation)):
            try:
                (split_list if is_list else json.loads)(found.value)
            except (ValueError, RecursionError) as error:
                hint = self._without_a_name(location, annotation)
                return f"{label} {hint or _invalid_json(error)}"
            # It may hold anything, the credentials of a whole connection too.
            return f"{label}: {self._text(errors, found.value)}"
        in_file = found.variable.source is VariableSource.SECRET_FILE
        secret = in_file or _is_hidden(location, annotation)
        own = str(found.value) if secret else ""
        return f"{label}{_shown(found.value, secret)}: {self._text(errors, own)}"

    def _without_a_name(self, location: Location, annotation: Any) -> str:
        """Return the hint for a connection whose name was left out, as in `AMQP__URL`."""
        section, name = location[0], str(location[-1])
        known = {part for each in members(annotation) for part in getattr(each, "model_fields", ())}
        if section not in _CONNECTIONS or len(location) != 2 or name not in known:
            return ""
        nearest = self._variables.name((section, "default", name))
        return f"lacks the name of a connection{_did_you_mean(nearest)}"

    def _missing(self, location: Location) -> str:
        """Return the sentence for a value that is not set; "" if no variable could set it."""
        reason = "it is required and has no default"
        if any(isinstance(step, int) for step in location):
            parent = self._variables.locate(location[:-1])
            label = _label_of(parent.variable, parent.path) if parent else ""
            return label and f"{label} lacks {str(location[-1])!r}: {reason}"
        state = "empty" if self._variables.is_empty(location) else "not set"
        return f"{self._variables.name(location)} is {state}: {reason}"

    def _text(self, errors: list[ErrorDetails], *secrets: str) -> str:
        """Return what would be right; of a union, what each member wants."""
        text = " or ".join(dict.fromkeys(sentence(each["msg"]) for each in errors))
        others = [each.text for each in self._variables.all if _is_secret_variable(each)]
        for secret in sorted(_parts(*secrets, *others), key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text


def sentence(message: str) -> str:
    """Return a message of pydantic as the end of a fault: `should be greater than 0`."""
    for start in ("Value error, ", "Assertion failed, ", "Input "):
        message = message.removeprefix(start)
    # Such as "Value should have at least 1 item after validation, not 0".
    message = _COUNT.sub(r"\1", message)
    return message[:1].lower() + message[1:]


def in_code(location: Location) -> str:
    """Return the expression for the value at *location* where it was given in code."""
    if not location:
        return "settings"
    return f"settings.{location[0]}" + "".join(f"[{step!r}]" for step in location[1:])


def is_secret(location: Location, annotation: Any) -> bool:
    """Return whether the name or the type of a setting says that its value is a secret."""
    named = any(isinstance(step, str) and _SECRET_NAME.search(step) for step in location)
    return named or any(_is_secret_type(kind) for kind in members(annotation))


def _did_you_mean(name: str) -> str:
    return f"; did you mean {name}?" if name else ""


def _invalid_json(error: Exception) -> str:
    """Return why a text is not valid JSON, without quoting it."""
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON: {error.msg.lower()} (character {error.pos + 1})"
    return "is not valid JSON: it is too deep or holds a number that is too long"


def _label_of(variable: Variable, path: Location = ()) -> str:
    secret = variable.source is VariableSource.SECRET_FILE
    name = f"secret file {variable.name}" if secret else variable.name
    steps = (f"[{each}]" if isinstance(each, int) else f".{each}" for each in path)
    return f"{name} at {''.join(steps).removeprefix('.')}" if path else name


def _shown(value: Any, secret: bool) -> str:
    """Return ` is <value>`; nothing for a list or a dict."""
    if secret:
        return f" is {HIDDEN}"
    if value is not None and not isinstance(value, (str, int, float)):
        return ""
    text = repr(value)
    # JSON in place of a plain value may hold anything, too.
    is_json = isinstance(value, str) and value.lstrip().startswith(("{", "["))
    if is_json or may_hold_credentials(text):
        return f" is {HIDDEN}"
    return f" is {text}" if len(text) <= _LONGEST_VALUE else f" is {text[:_LONGEST_VALUE]}…"


def _is_hidden(location: Location, annotation: Any) -> bool:
    """Return whether to hide an invalid value: an invalid URL may have a password anywhere."""
    return is_secret(location, annotation) or any(
        hasattr(kind, "unicode_string") for kind in members(annotation)
    )


def _is_secret_type(kind: Any) -> bool:
    """Return whether *kind* is one of pydantic's secrets, or a collection of them."""
    if any(_is_secret_type(each) for item in get_args(kind) for each in members(item)):
        return True
    kind = get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, (Secret, SecretStr, SecretBytes))


def _is_secret_variable(variable: Variable) -> bool:
    in_file = variable.source is VariableSource.SECRET_FILE
    return in_file or "@" in variable.text or _SECRET_NAME.search(variable.name) is not None


def _parts(*secrets: str) -> set[str]:
    """Return *secrets* and the passwords of those that are URLs, as written and decoded."""
    pieces = set(secrets)
    for credentials in (each for secret in secrets for each in _CREDENTIALS.findall(secret)):
        password = str(credentials).partition(":")[2]
        pieces |= {str(credentials), password, unquote(password)}
    return {piece for piece in pieces if len(piece) >= _SHORTEST_SECRET}
