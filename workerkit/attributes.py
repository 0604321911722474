"""Find class attributes and methods without effect: misspelt, or named as in another library.

An attribute with any name is valid if code of the user reads it. That code may be the
class, a class that inherits from it, or a function of the same module.
"""

import ast
import difflib
import gc
import inspect
import linecache
import textwrap
from collections.abc import Collection, Iterator, Mapping
from types import CodeType, MappingProxyType, ModuleType
from typing import Any

_SIMILAR = 0.88
_SIMILAR_HOOK = 0.83

_RETRY = ("retry",)
_SIZE, _INTERVAL = ("batch_size",), ("batch_interval", "every")
_POOL = ("concurrency",)

FOREIGN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    # Celery, Dramatiq, taskiq, Huey, Spring.
    dict.fromkeys(("max_retries", "retries", "retry_limit", "max_attempts", "attempts"), _RETRY)
    | dict.fromkeys(("autoretry_for", "retry_backoff", "retry_delay", "retry_kwargs"), _RETRY)
    | dict.fromkeys(("default_retry_delay", "retry_policy", "retry_jitter", "backoff"), _RETRY)
    | dict.fromkeys(("time_limit", "soft_time_limit", "task_timeout", "max_duration"), ("timeout",))
    | dict.fromkeys(("acks_late", "auto_ack", "no_ack", "ack_policy"), ("on_success",))
    # pika, aio-pika, kombu, FastStream.
    | dict.fromkeys(("prefetch_count", "prefetch_size", "qos", "max_in_flight"), ("prefetch",))
    | dict.fromkeys(("queue", "queue_name", "queue_names", "topic", "topics"), ("queues",))
    | dict.fromkeys(("exchange", "exchange_name", "routing_key", "binding_keys"), ("queues",))
    | dict.fromkeys(("virtual_host", "virtualhost"), ("vhost",))
    | dict.fromkeys(("workers", "max_workers", "num_workers", "n_workers", "threads"), _POOL)
    | dict.fromkeys(("max_concurrency", "parallelism", "max_parallel", "pool_size"), _POOL)
    | dict.fromkeys(("max_batch_size", "max_records", "bulk_size"), _SIZE)
    | dict.fromkeys(("batch_timeout", "batch_wait", "max_wait", "linger"), _INTERVAL)
    # aiohttp, Django, Flask; cron libraries.
    | dict.fromkeys(("route", "path", "paths", "endpoint", "urls"), ("routes",))
    | dict.fromkeys(("http_method_names", "allowed_methods", "verbs"), ("methods",))
    | dict.fromkeys(("event", "event_types", "event_names"), ("events", "types"))
    | dict.fromkeys(("message_types", "type_map", "type_mapping", "id_class_mapping"), ("types",))
    | dict.fromkeys(("type_header", "type_key", "type_id", "class_id_field_name"), ("type_from",))
    | dict.fromkeys(("on_unknown_type", "on_unhandled", "on_missing_type"), ("on_unknown",))
    | dict.fromkeys(("interval", "period", "seconds", "run_every"), ("every", "batch_interval"))
    | dict.fromkeys(("schedule", "crontab", "cron_expression"), ("cron",))
    | dict.fromkeys(("tz", "time_zone"), ("timezone",))
    | dict.fromkeys(("interceptor", "middleware", "middlewares"), ("interceptors",))
    | dict.fromkeys(("publish", "produces", "emits"), ("publishes",))
    # Options of one kind of consumer that have another name in another kind.
    | {"queues": ("routes",), "routes": ("queues",), "prefetch": _POOL}
    | {"events": ("types",), "types": ("events",)}
)
"""Names of options in other libraries, each with the names here.

Of several, the first that a kind of consumer has is proposed.
"""

FOREIGN_HOOKS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("on_startup", "on_started", "on_init", "on_ready", "startup"), "on_start")
    | dict.fromkeys(("on_shutdown", "on_stopped", "on_close", "on_exit", "shutdown"), "on_stop")
    | dict.fromkeys(
        ("on_connect_error", "on_connection_lost", "on_disconnect", "on_reconnect"),
        "on_connection_error",
    )
    | dict.fromkeys(
        ("handler", "handle_message", "on_message", "on_event", "process_message"), "handle"
    )
)
"""Names of hooks in other libraries, each with the name here."""


def users_classes(declared: type) -> list[type]:
    """Return *declared* and its bases without those of the framework, in their order."""
    base = kind_of(declared)
    return [each for each in declared.__mro__ if each not in base.__mro__]


def kind_of(declared: type) -> type:
    """Return the base class that defines which options a consumer has."""
    found = (each for each in declared.__mro__ if isinstance(vars(each).get("options"), type))
    return next(found, object)


def misspelt(
    declared: type, owner: type, options: Collection[str], unset: Collection[str]
) -> dict[str, str]:
    """Return the attributes of *owner* that look like options, each with that option.

    Args:
        owner: *declared* or one of its bases.
        options: All options of its kind.
        unset: Those options that are not set.
    """
    found: dict[str, str] = {}
    known = {*options, "interceptors"}
    for name in _own_attributes(declared, owner):
        if name in known:
            continue
        option = next((each for each in FOREIGN.get(name, ()) if each in known), None)
        if option is None:
            nearest = difflib.get_close_matches(name, unset, n=1, cutoff=_SIMILAR)
            option = nearest[0] if nearest else None
        if option is not None and not is_read(declared, name):
            found[name] = option
    return found


def of_other_kinds(
    declared: type, owner: type, options: Collection[str], others: Collection[str]
) -> list[str]:
    """Return the attributes of *owner* that are options of other kinds of consumers only.

    A base that several kinds may share may have the options of all of them.
    """
    if owner is not declared and not issubclass(owner, kind_of(declared)):
        return []
    names = (name for name in _own_attributes(declared, owner) if name not in options)
    return [name for name in names if name in others and not is_read(declared, name)]


def misspelt_hooks(declared: type) -> Iterator[tuple[type, str, str]]:
    """Yield the methods that nothing calls: class, name, and the most similar hook."""
    base = kind_of(declared)
    owners = users_classes(declared)
    defined = {name for owner in owners for name in vars(owner)}
    hooks = {"handle"} | {
        name
        for each in base.__mro__
        for name, value in vars(each).items()
        if not name.startswith("_") and inspect.iscoroutinefunction(value)
    }
    missing = sorted(hooks - defined)
    for owner in owners:
        for name, value in vars(owner).items():
            method = inspect.isroutine(value) or isinstance(value, staticmethod | classmethod)
            if not method or name.startswith("_") or hasattr(base, name) or name in hooks:
                continue
            nearest = difflib.get_close_matches(name, missing, n=1, cutoff=_SIMILAR_HOOK)
            hook = FOREIGN_HOOKS.get(name) or next(iter(nearest), "")
            if hook in missing and not is_read(declared, name):
                yield owner, name, hook


def is_read(declared: type, name: str) -> bool:
    """Return whether code reads the attribute *name* of a class.

    It searches the class, its bases, other classes that inherit the attribute, and the functions of
    their modules.
    """
    owners = users_classes(declared)
    having = [each for each in owners if name in vars(each)]
    readers = dict.fromkeys([*owners, *(each for owner in having for each in _subclasses(owner))])
    classes = {each.__name__ for reader in readers for each in reader.__mro__}
    for reader in readers:
        if (tree := _source_of(reader)) is not None:
            if _reads(tree, name, classes):
                return True
        elif any(name in (*code.co_names, *code.co_consts) for code in _codes(reader)):
            return True
    files = dict.fromkeys(code.co_filename for reader in readers for code in _codes(reader))
    return any(_is_read_outside(_parsed("".join(linecache.getlines(file))), name) for file in files)


def _subclasses(owner: type) -> Iterator[type]:
    direct: list[type] = type.__subclasses__(owner)
    for each in direct:
        yield each
        yield from _subclasses(each)


def _own_attributes(declared: type, owner: type) -> Iterator[str]:
    """Yield the names of plain values in a class, without constants in upper case."""
    base = kind_of(declared)
    fields = getattr(declared, "__dataclass_fields__", {})
    for name, value in vars(owner).items():
        plain = not (callable(value) or hasattr(value, "__get__") or isinstance(value, ModuleType))
        public = not name.startswith("_") and name == name.lower()
        known = name in fields or (base is not object and hasattr(base, name))
        if plain and public and not known:
            yield name


def _source_of(owner: type) -> ast.ClassDef | None:
    """Return the source of a class; None if it has none because a call of `type` created it."""
    for code in _codes(owner):
        file = _parsed("".join(linecache.getlines(code.co_filename)))
        classes = [each for each in ast.walk(file) if isinstance(each, ast.ClassDef)]
        for each in classes:
            within = each.lineno <= code.co_firstlineno <= (each.end_lineno or 0)
            if within and each.name == owner.__name__:
                return each
    try:
        tree = _parsed(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError):
        return None
    return next((each for each in tree.body if isinstance(each, ast.ClassDef)), None)


def _parsed(source: str) -> ast.Module:
    # Python 3.11, up to 3.11.7, may raise SystemError if the garbage collector runs code during
    # this call (gh-106905).
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        # The file has changed since it was imported.
        return ast.Module([], [])
    finally:
        if collects:
            gc.enable()


def _reads(tree: ast.ClassDef, name: str, classes: Collection[str]) -> bool:
    """Return whether the source of a class reads the attribute, in its body or by `self.name`."""
    methods = [each for each in ast.walk(tree) if isinstance(each, _FUNCTIONS)]
    within = {id(node) for each in methods for body in each.body for node in ast.walk(body)}
    owners = {"self", "cls", *classes, *(arg.arg for each in methods for arg in each.args.args[:1])}
    owners |= _aliases(tree, owners)
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=found, ctx=ast.Load()) if found == name and id(node) not in within:
                return True
            case ast.Attribute(attr=found, value=ast.Name(id=of)) if found == name and of in owners:
                return True
            case ast.Attribute(attr=found, value=ast.Call() | ast.Attribute(attr="__class__")):
                if found == name:
                    return True  # type(self).name, super().name, self.__class__.name
            case ast.MatchClass(kwd_attrs=names) if name in names:
                return True
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=found), *_]):
                if found == name:
                    return True
    return False


def _aliases(tree: ast.ClassDef, owners: Collection[str]) -> set[str]:
    """Return the other names of an object or its class: `kind = type(self)`, `me = self`."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=alias)], value=value):
                match value:
                    case (
                        ast.Name(id=of)
                        | ast.Attribute(attr="__class__", value=ast.Name(id=of))
                        | ast.Call(func=ast.Name(id="type"), args=[ast.Name(id=of)])
                    ) if of in owners:
                        found.add(alias)
    return found


def _is_read_outside(file: ast.Module, name: str) -> bool:
    """Return whether code of a module outside of classes reads an attribute of that name."""
    waiting: list[ast.AST] = [each for each in file.body if not isinstance(each, ast.ClassDef)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Attribute) and node.attr == name and type(node.ctx) is ast.Load:
            return True
        waiting += [
            each for each in ast.iter_child_nodes(node) if not isinstance(each, ast.ClassDef)
        ]
    return False


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _codes(owner: type) -> Iterator[CodeType]:
    """Yield the code of the methods of a class and of the functions in them."""
    for value in vars(owner).values():
        function: Any = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        waiting = [code] if code is not None else []
        while waiting:
            code = waiting.pop()
            yield code
            waiting += [each for each in code.co_consts if isinstance(each, CodeType)]
