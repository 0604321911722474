"""The signature of a view's method: read once, then used to read the arguments of each call."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from inspect import Parameter, getattr_static, getdoc
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from aiohttp import web
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from workerkit.codec import adapter, decoder
from workerkit.describe import describe_class
from workerkit.errors import DeclarationError, InvalidBody, InvalidRequest
from workerkit.http.auth import Principal
from workerkit.http.form import (
    Form,
    FormField,
    RequestForm,
    UnreadableField,
    form_of_fields,
    form_of_model,
    is_model,
)
from workerkit.http.json_body import RequestBody
from workerkit.http.json_shape import (
    JSONShape,
    accepts_any_text,
    bare_type,
    is_client_data,
    is_optional,
    json_shape,
)
from workerkit.http.parameters import (
    Cookie,
    Header,
    InvalidParameter,
    ParameterLocation,
    RequestParameter,
)
from workerkit.http.request import HTTPRequest
from workerkit.http.upload import UploadFile
from workerkit.http.verifier import PrincipalParameter, Requirement, principal_fault
from workerkit.signature import ArgumentSource, Resolve, Unresolved, annotated, provided
from workerkit.type_variables import hints

_UNREADABLE = (
    "has a type that cannot be read from a request: write a pydantic model, a dataclass, a "
    "TypedDict or a msgspec.Struct for the body, without mixing Structs with models, or str, int "
    "and the like, or a list of them, for the query"
)
_UNMARKED_FILE = "is a file, which comes from a form: write Annotated[UploadFile, Form]"
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})

Marker = Header | Cookie | Form | type[Principal]


class RequestSignature:
    """The signature of one method of a view.

    The source of a parameter is the first of these that applies: its marker (`Provide`, `Header`,
    `Cookie`, `Form`, `Principal`), the path parameter of the same name, the request, the JSON body,
    the query. Anything else is provided by the container for each call.

    Args:
        view: The class.
        name: Of the method.
        verbs: The HTTP methods that it handles, such as `GET`.
        names: The names of path parameters; True for those that every route has.
        resolve: Returns the container's provider for a parameter and its type.
        required: What verbs require of their clients.

    Attributes:
        parameters: Those that are read from path, query, headers and cookies.
        body: The body that the method takes, a form or JSON; None if it takes none.
        returns: The return annotation; `Parameter.empty` if there is none.
        doc: The docstring of the method.

    Raises:
        DeclarationError: With all faults of the signature.
    """

    batch = False
    answers = True

    def __init__(
        self,
        view: type,
        name: str,
        verbs: Collection[str],
        names: Mapping[str, bool],
        resolve: Resolve,
        required: Mapping[str, Requirement] = MappingProxyType({}),
    ) -> None:
        method = getattr(view, name)
        found = getattr_static(view, name)
        if isinstance(found, staticmethod | classmethod):
            kind = type(found).__name__
            raise DeclarationError(
                f"{describe_class(method)}: is a {kind}; write a method, with self first"
            )
        self.verbs = tuple(verbs)
        self.required = required
        self.parameters: list[RequestParameter] = []
        self.body: RequestBody | RequestForm | None = None
        self.doc = getdoc(method) or ""
        self._where = describe_class(method)
        self._names = names
        self._resolve = resolve
        self._request: list[str] = []
        self._provide: dict[str, ArgumentSource] = {}
        self._readers: list[RequestParameter | PrincipalParameter] = []
        self._fields: list[FormField] = []
        self._form_name = f"{view.__name__}_{name}_form"
        self._body_from = ""
        self._faults: list[str] = []
        parameters = annotated(method, self._faults, view)
        for parameter, type_ in parameters:
            self._add(parameter, type_)
        if self._faults:
            raise DeclarationError(*self._faults)
        # A method that takes only the request gets it directly, without any further work.
        kinds = [parameter.kind for parameter, _ in parameters]
        self._only_request = bool(self._request) and kinds == [Parameter.POSITIONAL_OR_KEYWORD]
        self.returns = hints(method, view).get("return", Parameter.empty)

    @property
    def takes_request(self) -> bool:
        """Whether the method takes the request itself."""
        return bool(self._request)

    @property
    def provides(self) -> bool:
        """Whether the container provides arguments of a call."""
        return bool(self._provide)

    def read(self, delivery: HTTPRequest) -> HTTPRequest:
        """Return the request itself: there are no batches of requests."""
        return delivery

    def bind(self, delivery: HTTPRequest) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments that are read from the request.

        Raises:
            InvalidRequest: Parts of the request are invalid; it names each of them.
            Exception: A validator of the user raised it.
        """
        request = delivery.request
        if self._only_request:
            return (request,), {}
        arguments: dict[str, Any] = dict.fromkeys(self._request, request) if self._request else {}
        invalid: list[dict[str, str]] = []
        more = 0
        for value in self._readers:
            try:
                arguments[value.argument] = value.read(request)
            except InvalidParameter as error:
                assert isinstance(value, RequestParameter)
                invalid.append({"in": value.part, "name": value.name, "detail": str(error)})
        if self.body is not None:
            try:
                self.body.read(delivery, arguments)
            except InvalidBody as error:
                if not error.findings:
                    raise InvalidRequest(400, str(error)) from error
                invalid += [{"in": "body", "name": n, "detail": t} for n, t in error.findings]
                more = error.more
        if invalid:
            texts = [f"{each['in']} {each['name']}: {each['detail']}" for each in invalid]
            if more:
                texts.append(f"and {more:,} more")
            raise InvalidRequest(422, "; ".join(texts), invalid)
        return (), arguments

    def provided(self) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Return a context with the arguments of one call that the container provides."""
        return provided(self._provide)

    def _add(self, parameter: Parameter, type_: Any) -> None:
        if _is_marker(parameter.default):
            type_ = Annotated[type_, parameter.default]
            parameter = parameter.replace(default=Parameter.empty)
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            self._fault(parameter, "must not be positional-only")
        elif isinstance(parameter.default, FieldInfo):
            self._fault(
                parameter,
                "has Field(...) as its default: write Annotated[int, Field(gt=0)] = 1 instead",
            )
        elif (marker := _marker(type_)) is not None:
            self._from_marked(parameter, type_, marker)
        elif _is_provided(parameter, type_):
            self._from_container(parameter, type_)
        elif parameter.name in self._names:
            self._value(parameter, type_, ParameterLocation.PATH, parameter.name)
        elif type_ in (web.Request, web.BaseRequest):
            self._request.append(parameter.name)
        elif (found := json_shape(type_)) is None and is_client_data(type_):
            self._from_container_or_query(parameter, type_)
        elif found is None:
            self._from_container(parameter, type_)
        elif found[0] is JSONShape.BODY:
            self._from_body(parameter, type_, found[1])
        else:
            self._value(parameter, type_, ParameterLocation.QUERY, parameter.name)

    def _from_marked(self, parameter: Parameter, type_: Any, marker: Marker) -> None:
        name = parameter.name
        if isinstance(marker, Form):
            self._from_form(parameter, type_, marker.name or name)
        elif isinstance(marker, Header):
            found = marker.name or name.replace("_", "-")
            self._value(parameter, type_, ParameterLocation.HEADER, found)
        elif isinstance(marker, Cookie):
            self._value(parameter, type_, ParameterLocation.COOKIE, marker.name or name)
        else:
            self._from_auth(parameter, type_)

    def _value(self, parameter: Parameter, type_: Any, part: ParameterLocation, name: str) -> None:
        shape, adapter = json_shape(type_) or (JSONShape.BODY, None)
        if shape is JSONShape.BODY or adapter is None:
            self._fault(parameter, f"has a type that cannot be read from a {part}")
            return
        if shape is JSONShape.LIST and part in (ParameterLocation.PATH, ParameterLocation.COOKIE):
            self._fault(parameter, f"is a list, and a {part} parameter has only one value")
            return
        default = _default(parameter, type_)
        if part is ParameterLocation.PATH and default is Parameter.empty and not self._names[name]:
            self._fault(parameter, "needs a default: not every route has it")
        self._add_parameter(RequestParameter(parameter.name, part, name, adapter, shape, default))

    def _add_parameter(self, parameter: RequestParameter) -> None:
        self.parameters.append(parameter)
        self._readers.append(parameter)

    def _from_body(
        self, parameter: Parameter, type_: Any, adapter: TypeAdapter[Any] | None
    ) -> None:
        if self._may_read_body(parameter):
            default = _default(parameter, type_)
            self.body = RequestBody(parameter.name, type_, adapter, decoder(type_), default)

    def _may_read_body(self, parameter: Parameter) -> bool:
        """Return whether a parameter can be read from the body; otherwise there is a fault."""
        other, self._body_from = self._body_from, parameter.name
        if other:
            self._fault(
                parameter,
                f"is read from the body, and so is {other!r}; mark one of them with "
                "Provide[...] if it comes from the container",
            )
        elif not _WITHOUT_BODY.isdisjoint(self.verbs):
            self._fault(
                parameter,
                f"is read from the body, and a {self.verbs[0]} has none; mark it with Provide[...] "
                "if it comes from the container",
            )
        else:
            return True
        return False

    def _from_form(self, parameter: Parameter, type_: Any, name: str) -> None:
        plain = get_args(type_)[0] if get_origin(type_) is Annotated else type_
        if not (self._fields or self._may_read_body(parameter)):
            return
        try:
            if not is_model(plain):
                field = FormField(parameter.name, name, type_, _default(parameter, type_))
                self.body = form_of_fields(self._form_name, [*self._fields, field])
                self._fields.append(field)
            elif self._fields:
                self._fault(parameter, "is a whole form, and other parameters are fields of one")
            else:
                self.body = form_of_model(parameter.name, plain)
        except UnreadableField as error:
            self._fault(parameter, str(error))

    def _from_auth(self, parameter: Parameter, type_: Any) -> None:
        default = _default(parameter, type_)
        for verb in self.verbs:
            found = self.required.get(verb)
            optional = found is None and default is not Parameter.empty
            if not optional and (fault := principal_fault(type_, found)):
                self._fault(parameter, fault)
                return
        self._readers.append(PrincipalParameter(parameter.name, default))

    def _from_container(self, parameter: Parameter, type_: Any) -> None:
        try:
            self._provide[parameter.name] = self._resolve(parameter, type_)
        except Unresolved as error:
            is_file = bare_type(type_) is UploadFile
            self._fault(parameter, _UNMARKED_FILE if is_file else str(error))

    def _from_container_or_query(self, parameter: Parameter, type_: Any) -> None:
        try:
            # Without the default: it would silently replace a value that the client sends.
            needed = parameter.replace(default=Parameter.empty)
            self._provide[parameter.name] = self._resolve(needed, type_)
        except Unresolved as error:
            if parameter.default is Parameter.empty:
                self._fault(parameter, str(error))
            elif accepts_any_text(type_):
                name, default = parameter.name, parameter.default
                text = adapter(type_)
                self._add_parameter(
                    RequestParameter(
                        name, ParameterLocation.QUERY, name, text, JSONShape.SCALAR, default
                    )
                )
            else:
                self._fault(parameter, f"{_UNREADABLE}; now it {error}")

    def _fault(self, parameter: Parameter, sentence: str) -> None:
        self._faults.append(f"{self._where}: parameter {parameter.name!r} {sentence}")


def _default(parameter: Parameter, type_: Any) -> Any:
    """Return the value for a missing parameter: None if the type allows it."""
    if parameter.default is Parameter.empty and is_optional(type_):
        return None
    return parameter.default


def _marker(type_: Any) -> Marker | None:
    for extra in filter(_is_marker, _extras(type_)):
        if extra is Principal:
            return Principal
        found: Header | Cookie | Form = extra() if isinstance(extra, type) else extra
        return found
    return None


_MARKERS = (Header, Cookie, Form)


def _is_marker(found: Any) -> bool:
    return isinstance(found, _MARKERS) or any(found is each for each in (*_MARKERS, Principal))


def _is_provided(parameter: Parameter, type_: Any) -> bool:
    """Return whether the parameter is marked with `Provide` of dependency-injector."""
    found = (*_extras(type_), parameter.default)
    return any(getattr(type(each), "__IS_MARKER__", False) is True for each in found)


def _extras(type_: Any) -> Iterator[Any]:
    """Yield the metadata of `Annotated`, also inside of a union such as `| None`."""
    if get_origin(type_) is Annotated:
        yield from get_args(type_)[1:]
    elif get_origin(type_) in (Union, UnionType):
        for member in get_args(type_):
            yield from _extras(member)
