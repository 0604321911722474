"""The form that a view takes: `Annotated[str, Form]`, `Annotated[UploadFile, Form]`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any, NotRequired, cast, get_args, get_origin

from aiohttp import web
from pydantic import BaseModel, TypeAdapter
from pydantic_core import CoreSchema, SchemaValidator
from typing_extensions import TypedDict

from workerkit.codec.findings import Decode, validating
from workerkit.http.json_shape import JSONShape, bare_type, json_shape
from workerkit.http.parameters import read_with, text_schema
from workerkit.http.request import HTTPRequest
from workerkit.http.upload import UploadFile

Values = Mapping[str, Sequence[str | UploadFile]]
"""What a client sent, by the name of the field."""

FORM: "web.RequestKey[Values]" = web.RequestKey("form", Values)
"""Where a request keeps the form after its body is read."""

MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Form:
    """A marker of a parameter that takes a field of a form, or a model with all of its fields.

    ```python
    async def post(
        self, title: Annotated[str, Form], photo: Annotated[UploadFile, Form]
    ) -> None: ...
    ```

    Attributes:
        name: Of the field; by default the name of the parameter.
    """

    name: str | None = None


@dataclass(frozen=True, slots=True)
class FormField:
    """One parameter that takes a field of a form.

    Attributes:
        argument: The name of the method's parameter.
        name: The name in the form.
        default: `Parameter.empty` if the client has to send it.
    """

    argument: str
    name: str
    type: Any
    default: Any = Parameter.empty


class UnreadableField(ValueError):
    """A field has a type that no form can contain; the text continues a sentence."""


@dataclass(frozen=True, slots=True)
class RequestForm:
    """The form that a view takes, as its body.

    Attributes:
        described: The adapter of a type with all fields.
        names: The names of the fields.
        files: The names of those that take files.
        lists: The names of those that take several values.
        required: Whether the client has to send a body.
    """

    described: TypeAdapter[Any]
    names: frozenset[str]
    files: frozenset[str]
    lists: frozenset[str]
    required: bool
    _arguments: Callable[[Any], dict[str, Any]]
    _validate: Decode = field(repr=False)

    @property
    def content_types(self) -> Sequence[str]:
        """The content types that the form may have: files have only one."""
        return (MULTIPART,) if self.files else (URLENCODED, MULTIPART)

    def read(self, delivery: HTTPRequest, arguments: dict[str, Any]) -> None:
        """Read the form of a request, and add its fields to the arguments.

        Raises:
            InvalidBody: Fields are invalid or missing; it names them.
        """
        sent = delivery.request.get(FORM, {})
        values = {
            name: list(found) if name in self.lists else found[0] for name, found in sent.items()
        }
        delivery.body = self._validate(values)
        arguments |= self._arguments(delivery.body)


def form_of_fields(name: str, fields: Sequence[FormField]) -> RequestForm:
    """Return the form that consists of these fields.

    Args:
        name: Of the form, for the OpenAPI document.

    Raises:
        UnreadableField: A form cannot have such a field.
    """
    types_: dict[str, Any] = {}
    for each in fields:
        optional = each.default is not Parameter.empty
        types_[each.name] = NotRequired[each.type] if optional else each.type
    # Up to Python 3.11, pydantic needs the `TypedDict` of typing_extensions.
    whole = cast(Any, TypedDict)(name, types_)
    defaults = {e.argument: e.default for e in fields if e.default is not Parameter.empty}

    def arguments(read: Mapping[str, Any]) -> dict[str, Any]:
        return {**defaults, **{e.argument: read[e.name] for e in fields if e.name in read}}

    required = len(defaults) < len(fields)
    return _form(whole, {each.name: each.type for each in fields}, required, arguments)


def form_of_model(argument: str, model: type[BaseModel]) -> RequestForm:
    """Return the form that a model describes.

    Raises:
        UnreadableField: A form cannot have a field of the model; the text names it.
    """
    types_ = {
        each.validation_alias if isinstance(each.validation_alias, str) else name: each.annotation
        for name, each in model.model_fields.items()
    }
    required = any(each.is_required() for each in model.model_fields.values())
    return _form(model, types_, required, lambda read: {argument: read})


def is_model(type_: Any) -> bool:
    """Return whether a type describes a whole form."""
    return isinstance(type_, type) and issubclass(type_, BaseModel)


def _form(
    whole: Any,
    types_: Mapping[str, Any],
    required: bool,
    arguments: Callable[[Any], dict[str, Any]],
) -> RequestForm:
    files, lists = set(), set()
    for name, type_ in types_.items():
        is_list, is_file = _shape(name, type_)
        if is_list:
            lists.add(name)
        if is_file:
            files.add(name)
    adapter: TypeAdapter[Any] = TypeAdapter(whole)
    texts = {name for name in types_ if name not in files}
    validator = SchemaValidator(_with_texts(text_schema(adapter.core_schema), texts - lists))
    return RequestForm(
        adapter,
        frozenset(types_),
        frozenset(files),
        frozenset(lists),
        required,
        arguments,
        validating(adapter, validator.validate_python),
    )


def _shape(name: str, type_: Any) -> tuple[bool, bool]:
    """Return whether a field takes several values, and whether they are files."""
    plain = bare_type(type_)
    if plain is UploadFile:
        return False, True
    if get_origin(plain) in (list, tuple, Sequence) and bare_type(get_args(plain)[0]) is UploadFile:
        return True, True
    found = json_shape(type_)
    if found is None or found[0] is JSONShape.BODY or found[1] is None:
        raise UnreadableField(
            f"has a field {name!r} that a form cannot contain: write UploadFile, str, int and the "
            "like, or a list of them"
        )
    return found[0] is JSONShape.LIST, False


def _with_texts(schema: Any, texts: set[str]) -> Any:
    """Return the schema of a form whose fields are read from texts, as those of a query.

    Args:
        texts: The names of the fields with one text.
    """
    if schema.get("type") in ("model-fields", "typed-dict"):
        fields = {
            name: {**each, "schema": _read_text(each["schema"])}
            if each.get("validation_alias", name) in texts
            else each
            for name, each in schema["fields"].items()
        }
        return {**schema, "fields": fields}
    # Validators of the user may surround the fields.
    inner = {"schema": _with_texts(schema["schema"], texts)} if "schema" in schema else {}
    return {**schema, **inner}


def _read_text(schema: Any) -> CoreSchema:
    """Return a schema that reads one text, with its default around it."""
    if schema.get("type") == "default":
        return cast(CoreSchema, {**schema, "schema": _read_text(schema["schema"])})
    return read_with(SchemaValidator(schema).validate_strings)
