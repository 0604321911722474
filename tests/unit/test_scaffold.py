"""How the texts of a new project are made from those of a template."""

import re
import tomllib
from pathlib import Path

import pytest

from workerkit.cli.new import template_directory
from workerkit.cli.scaffold import FEATURES, TABLE, Names, files, kept

NAMES = Names("my-orders", "my_orders")


def template(directory: Path, **texts: str) -> Path:
    """Write a template of these files, whose names have no suffix."""
    for name, text in {".gitignore": "", **texts}.items():
        (directory / name).write_text(text)
    return directory


def text_of(directory: Path, text: str, features: str = "") -> str:
    """Return a text of a template as a project with *features* has it."""
    made = dict(files(template(directory, file=text), NAMES, features.split()))
    return made[Path("file")]


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("from shop.orders import Order", "from my_orders.orders import Order"),
        ("shop-worker, shop-worker-rabbitmq", "my-orders, my-orders-rabbitmq"),
        ("/opt/shop-worker/.venv", "/opt/my-orders/.venv"),
        ("SHOP_SSE__SHOP__URL, SHOP", "MY_ORDERS_SSE__MY_ORDERS__URL, MY_ORDERS"),
        ("shops shopping Shop workshop shop_ ESHOP", "shops shopping Shop workshop shop_ ESHOP"),
    ],
)
def test_names_replace_whole_words(text: str, replaced: str) -> None:
    """The package, the prefix of the variables, and the name of the project are replaced."""
    assert NAMES.replace(text) == replaced


@pytest.mark.parametrize(
    ("condition", "features", "there"),
    [
        ("with amqp", "amqp", True),
        ("with amqp", "http", False),
        ("with amqp and http", "http amqp", True),
        ("with amqp and http", "http", False),
        ("without amqp", "http", True),
        ("without amqp", "amqp http", False),
        ("with sse without http", "sse", True),
        ("with sse without http", "sse http", False),
        ("with sse without http and amqp", "sse amqp", False),
    ],
)
@pytest.mark.parametrize("comment", ["# {}", "    # {}", "<!-- {} -->"])
def test_lines_with_a_condition(
    tmp_path: Path, comment: str, condition: str, features: str, there: bool
) -> None:
    """They are there if it holds; the comments around them never are."""
    text = f"before\n{comment.format(condition)}\nline\n{comment.format('end')}\nafter\n"

    assert text_of(tmp_path, text, features) == "before\n" + "line\n" * there + "after\n"


def test_other_comments_stay(tmp_path: Path) -> None:
    """A comment that only resembles one of a region is part of the text."""
    text = "# with care\n# amqp\nx  # with amqp\n# with amqp, of course\n# the end\n"

    assert text_of(tmp_path, text) == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# end\n", 1),
        ("# with amqp\n# with http\n# end\n", 2),
        ("\n# with amqp\nx\n", 2),
    ],
)
def test_regions_that_do_not_match(tmp_path: Path, text: str, line: int) -> None:
    """A template with one is refused, with the line."""
    with pytest.raises(ValueError, match=rf"file:{line}: a region"):
        text_of(tmp_path, text, "http")


def test_files_with_a_condition(tmp_path: Path) -> None:
    """The table of the template has paths and patterns; all conditions of a file must hold."""
    table = '[files]\n"a.py" = "amqp and sse"\n"b/*" = "http"\n"*/both" = "sse"\n'
    template(tmp_path, **{TABLE: table, "a.py": "", "c": ""})
    for name in ("one", "deeper/both"):
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).write_text("")

    def made(*features: str) -> list[str]:
        return [path.as_posix() for path, _ in files(tmp_path, NAMES, features)]

    assert made() == [".gitignore", "c"]
    assert made("amqp", "sse") == [".gitignore", "a.py", "c"]
    assert made("http") == [".gitignore", "b/one", "c"]
    assert made("http", "sse") == [".gitignore", "b/deeper/both", "b/one", "c"]


def test_what_git_ignores_is_left_out(tmp_path: Path) -> None:
    """Caches, and the database of a demo, are no part of a project; paths get its names."""
    template(tmp_path, **{".gitignore": "# caches\n__pycache__/\n*.db\n", "x.db": ""})
    for name in ("shop/a.py", "shop/__pycache__/a.pyc", "deploy/shop-worker.service"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    made = [path.as_posix() for path, _ in files(tmp_path, NAMES, FEATURES)]

    assert made == [".gitignore", "deploy/my-orders.service", "my_orders/a.py"]


def test_imports_of_a_feature(tmp_path: Path) -> None:
    """The empty line that ruff wants before the comment after them is gone with the comment."""
    text = "import a\n\n# with amqp\nfrom shop import b\n\n# end\nfrom shop.c import d\n"
    template(tmp_path, **{"a.py": text})

    made = {
        features: dict(files(tmp_path, NAMES, [features]))[Path("a.py")]
        for features in ("amqp", "http")
    }

    assert made["amqp"] == "import a\n\nfrom my_orders import b\nfrom my_orders.c import d\n"
    assert made["http"] == "import a\n\nfrom my_orders.c import d\n"


def test_imports_that_get_too_long(tmp_path: Path) -> None:
    """A longer name wraps them as ruff does; other lines stay as they are."""
    names = ", ".join(f"Name{number}" for number in range(10, 21))
    line = f"from shop.package import {names}\n"
    template(tmp_path, **{"a.py": line, "b.txt": line})

    made = dict(files(tmp_path, NAMES, ()))

    wrapped = "".join(f"    Name{number},\n" for number in range(10, 21))
    assert made[Path("a.py")] == f"from my_orders.package import (\n{wrapped})\n"
    assert made[Path("b.txt")] == line.replace("shop", "my_orders")


def test_the_table_of_our_template() -> None:
    """Each path or pattern is that of a file, and its condition has features only."""
    directory = template_directory()
    table = tomllib.loads((directory / TABLE).read_text())["files"]
    paths = [path.as_posix() for path in kept(directory)]
    some = rf"({'|'.join(FEATURES)})( and ({'|'.join(FEATURES)}))*"

    assert [each for each in table if not any(Path(path).match(each) for path in paths)] == []
    for condition in table.values():
        assert re.fullmatch(rf"{some}( without {some})?|without {some}", condition), condition
