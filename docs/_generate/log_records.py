"""The table of all log records: read from the source, without running it."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import workerkit
from docs._generate.markdown import code, table

PACKAGE = Path(workerkit.__file__).parent
LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
_METHODS = {"exception": "ERROR"} | {each.lower(): each for each in LEVELS}
_WITH_LEVEL = {"log": (0, 1), "makeRecord": (1, 4)}
"""Methods with the level among their arguments: its place, and that of the message."""
_SUBJECTS = {
    "amqp": "RabbitMQ",
    "sse": "Event streams",
    "http": "HTTP",
    "periodic": "Periodic tasks",
    "embedded": "The embedded broker",
}
_PROCESS = "The process"
DELIVERIES = "workerkit.observe"
"""The logger of what `log_success` and `log_failure` of a delivery say."""
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Record:
    """One log record.

    Attributes:
        module: The logger, which has the name of the module.
        fields: Names of the fields, in the order of the source.
    """

    module: str
    line: int
    levels: tuple[str, ...]
    text: str
    fields: tuple[str, ...]


def log_records() -> str:
    """Return a table of the records of each part of the package."""
    subjects: dict[str, list[Record]] = {_PROCESS: []}
    for each in records():
        subject = _SUBJECTS.get(each.module.split(".")[1], _PROCESS)
        subjects.setdefault(subject, []).append(each)
    return "\n\n".join(f"## {subject}\n\n{_table(found)}" for subject, found in subjects.items())


@cache
def records() -> tuple[Record, ...]:
    """Return the records of all modules."""
    sources = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    return tuple(
        record
        for path, source in sources.items()
        if re.search(r"\blog[._]", source)
        for record in module_named(module_name(path)).records()
    )


def module_name(path: Path) -> str:
    """Return the name of the module in a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _table(found: list[Record]) -> str:
    """Return a table with one line for each text, the most severe level first."""
    merged: dict[str, list[Record]] = {}
    for each in found:
        merged.setdefault(each.text, []).append(each)
    lines = []
    for text, same in merged.items():
        levels = sorted({level for each in same for level in each.levels}, key=LEVELS.index)
        fields = dict.fromkeys(field for each in same for field in each.fields)
        loggers = dict.fromkeys(each.module for each in same)
        lines.append(
            (
                levels,
                text.replace("%s", "…"),
                ", ".join(map(code, fields)),
                ", ".join(map(code, loggers)),
            )
        )
    lines.sort(key=lambda line: (LEVELS.index(line[0][0]), line[1]))
    return table(
        ("level", "message", "fields", "logger"),
        [(", ".join(levels), text, fields, logger) for levels, text, fields, logger in lines],
    )


class Module:
    """The source of one module, and what its expressions can be.

    It follows names to constants and to assignments of the same function, parameters to the calls
    of their function in the same module, and calls to what the function returns: all that our calls
    of `log` need.
    """

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name = name
        self._tree = tree
        self._functions = [each for each in ast.walk(tree) if isinstance(each, _Function)]
        self._imported = {
            alias.asname or alias.name: each.module
            for each in ast.walk(tree)
            if isinstance(each, ast.ImportFrom) and (each.module or "").startswith("workerkit.")
            for alias in each.names
        }

    def records(self) -> Iterator[Record]:
        """Yield the records of calls of `log`, and those that the methods of deliveries name."""
        for function in self._functions:
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and _is_log(node):
                    yield from self._logged(node, function)
                if isinstance(node, ast.Return) and function.name == "log_failure":
                    yield from self._returned(node, function)
        for node in ast.walk(self._tree):
            match node:
                case ast.AnnAssign(ast.Name("log_success"), value=ast.Constant(str(text))):
                    yield self._of_delivery(node.lineno, ("DEBUG",), text)

    def _logged(self, call: ast.Call, function: _Function) -> Iterator[Record]:
        assert isinstance(call.func, ast.Attribute)
        text, levels = call.args[0], [_METHODS.get(call.func.attr, "")]
        if call.func.attr in _WITH_LEVEL:
            level, message = _WITH_LEVEL[call.func.attr]
            text = call.args[message]
            levels = [each for each in self._values(call.args[level], function) if each in LEVELS]
        extra = next((each.value for each in call.keywords if each.arg == "extra"), None)
        fields = tuple(dict.fromkeys(self._fields(extra, function)))
        for each in self._values(text, function):
            if each not in LEVELS:
                yield Record(self.name, call.lineno, tuple(dict.fromkeys(levels)), each, fields)

    def _returned(self, node: ast.Return, function: _Function) -> Iterator[Record]:
        if isinstance(node.value, ast.Tuple):
            level, text = node.value.elts
            found = tuple(each for each in self._values(level, function) if each in LEVELS)
            # The level of another class is that of `Delivery`.
            for each in self._values(text, function):
                yield self._of_delivery(node.lineno, found or ("WARNING", "ERROR"), each)

    def _of_delivery(self, line: int, levels: tuple[str, ...], text: str) -> Record:
        named = {each.name: each for each in self._functions}
        fields = ["consumer"]
        for method in ("log_context", "log_fields"):
            found = [each for each in self._functions if each.name == method]
            for function in found:
                for node in ast.walk(function):
                    if isinstance(node, ast.Return):
                        fields += self._fields(node.value, function)
        if "log_fields" not in named:
            fields += ["source", "delivery", "attempt", "action"]
        return Record(DELIVERIES, line, levels, text, (*fields, "seconds", "error"))

    def _values(self, node: ast.expr, function: _Function) -> list[str]:
        """Return the texts and names of levels that an expression can be."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.IfExp(body=body, orelse=other):
                return [*self._values(body, function), *self._values(other, function)]
            case ast.Attribute(value=ast.Name(id="logging"), attr=level):
                return [level]
            case ast.JoinedStr(values=parts):
                texts = [each.value if isinstance(each, ast.Constant) else "…" for each in parts]
                return ["".join(map(str, texts))]
            case ast.List(elts=[first, *_]) | ast.Call(ast.Attribute(attr="join"), [first]):
                return self._values(first, function)
            case ast.Name(id=name):
                return [text for each in self._assigned(name, function) for text in each.values()]
            case ast.Call():
                return [text for each in self._results(node) for text in each.values()]
        return []

    def _results(self, call: ast.expr) -> Iterator["_Found"]:
        """Yield what a function that is called returns or yields: of this module, or imported."""
        if not isinstance(call, ast.Call):
            return
        name = _called(call)
        module = self if name not in self._imported else module_named(self._imported[name])
        for function in module._functions:
            if function.name == name:
                for node in ast.walk(function):
                    if isinstance(node, ast.Return | ast.Yield) and node.value:
                        yield _Found(module, function, node.value)

    def _assigned(self, name: str, function: _Function) -> Iterator["_Found"]:
        """Yield the expressions that a name of a function can be."""
        own = [each for each in ast.walk(function) if isinstance(each, ast.Assign)]
        top = [each for each in self._tree.body if isinstance(each, ast.Assign)]
        for each in [*own, *top]:
            for target in each.targets:
                for value in _bound(target, each.value, name):
                    yield _Found(self, function, value)
        for loop in ast.walk(function):
            if isinstance(loop, ast.For):
                for item in self._results(loop.iter):
                    for value in _bound(loop.target, item.value, name):
                        yield item._replace(value=value)
        yield from self._given(name, function)

    def _given(self, name: str, function: _Function) -> Iterator["_Found"]:
        """Yield what the calls of a function give for one of its parameters."""
        parameters = [each.arg for each in function.args.args if each.arg != "self"]
        if name not in parameters:
            return
        for caller in self._functions:
            for node in ast.walk(caller):
                if isinstance(node, ast.Call) and _called(node) == function.name:
                    given = dict(zip(parameters, node.args, strict=False))
                    given |= {each.arg: each.value for each in node.keywords if each.arg}
                    if name in given:
                        yield _Found(self, caller, given[name])

    def _fields(self, node: ast.expr | None, function: _Function) -> Iterator[str]:
        """Yield the keys that an expression for a mapping can have."""
        match node:
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant):
                        yield str(key.value)
                    elif key is None:
                        yield from self._fields(value, function)
            case ast.BinOp(left=one, right=other) | ast.IfExp(body=one, orelse=other):
                yield from self._fields(one, function)
                yield from self._fields(other, function)
            case ast.Name(id=name):
                for found in self._assigned(name, function):
                    yield from found.fields()
            case ast.DictComp(generators=[ast.comprehension(iter=ast.Call(ast.Attribute(value)))]):
                yield from self._fields(value, function)
            case ast.Call(keywords=keywords):
                for found in self._results(node):
                    yield from found.fields()
                for each in keywords:
                    yield from [each.arg] if each.arg else self._fields(each.value, function)


class _Found(NamedTuple):
    """An expression, and the module and function in which its names have a meaning."""

    module: Module
    function: _Function
    value: ast.expr

    def values(self) -> list[str]:
        """Return the texts that it can be."""
        return self.module._values(self.value, self.function)

    def fields(self) -> Iterator[str]:
        """Yield the keys that it can have."""
        return self.module._fields(self.value, self.function)


@cache
def module_named(name: str) -> Module:
    """Return a module of the package."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return Module(name, ast.parse(file.read_text()))


def _is_log(call: ast.Call) -> bool:
    method = call.func
    return (
        isinstance(method, ast.Attribute)
        and isinstance(method.value, ast.Name)
        and method.value.id == "log"
        and method.attr in {*_METHODS, *_WITH_LEVEL}
    )


def _called(call: ast.Call) -> str:
    """Return the last name of what is called."""
    return ast.unparse(call.func).rpartition(".")[2]


def _bound(target: ast.expr, value: ast.expr, name: str) -> Iterator[ast.expr]:
    """Yield what an assignment binds to *name*."""
    if isinstance(target, ast.Name) and target.id == name:
        yield value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for inner, part in zip(target.elts, value.elts, strict=False):
            yield from _bound(inner, part, name)
