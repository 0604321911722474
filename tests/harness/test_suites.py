"""Failed tests run once more, and a test that fails twice fails the run."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from tests import suites
from tests.suites import Suite

PASSES = "def test_passes(): pass\n"
FAILS = "def test_fails(): assert False\n"
# Fails the first time, and passes then.
FLAKY = """
from pathlib import Path
from textwrap import dedent
def test_flaky():
    seen = Path(__file__).with_name("seen")
    before = seen.exists()
    seen.touch()
    assert before
"""


def outcome(
    directory: Path, capfd: pytest.CaptureFixture[str], *files: str, retry: bool = True
) -> tuple[int, list[str]]:
    """Run a suite of *files*; return its exit code and the lines of its summary."""
    (directory / "pytest.ini").write_text("[pytest]\n")
    # Most of the time of these runs would be that of plugins which they do not use.
    bare = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for number, text in enumerate(files):
        (directory / f"test_{number}.py").write_text(text)
    suite = Suite("few", [], directory, bare)

    code = suites.main([suite], directory / "results", retry=retry)

    return code, re.split(r"\n\n", capfd.readouterr().out)[-1].splitlines()


def test_what_passes_runs_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run without failures has one line."""
    assert outcome(tmp_path, capfd, PASSES) == (0, ["1 passed, 0 failed"])


def test_a_test_that_passes_the_second_time_is_listed_as_flaky(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run passes, and the name is printed before the closing line."""
    code, lines = outcome(tmp_path, capfd, PASSES, FLAKY)

    assert code == 0
    assert lines == ["FLAKY few: test_1.py::test_flaky", "2 passed, 0 failed"]


def test_a_test_that_fails_twice_fails_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A test that fails twice fails the run, also next to a flaky one."""
    code, lines = outcome(tmp_path, capfd, PASSES, FLAKY, FAILS)

    assert code == 1
    assert lines == ["FLAKY few: test_1.py::test_flaky", "2 passed, 1 failed"]


def test_by_hand_nothing_is_tried_twice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A local run shows each failure."""
    assert outcome(tmp_path, capfd, FLAKY, retry=False) == (1, ["0 passed, 1 failed"])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("import no_such_module\n", 2, id="a file that cannot be imported"),
        pytest.param("", 5, id="no tests"),
    ],
)
def test_a_run_that_breaks_is_not_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, code: int
) -> None:
    """Other failures are unknown then."""
    assert outcome(tmp_path, capfd, text) == (
        1,
        [f"BROKEN few: pytest ended with {code}", "0 passed, 1 failed"],
    )


def test_suites_run_at_the_same_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each waits here for the other; what the second one prints follows the first."""
    meets = """
        import time
        from pathlib import Path

        def test_meets():
            here = Path(__file__).parent
            (here / "there").touch()
            other = here.parent / ({"one": "two", "two": "one"}[here.name]) / "there"
            until = time.monotonic() + 60.0
            while not other.exists():
                assert time.monotonic() < until
                time.sleep(0.01)
    """
    both = []
    for name in ("one", "two"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "pytest.ini").write_text("[pytest]\n")
        (directory / "test_meets.py").write_text(dedent(meets))
        both.append(Suite(name, [], directory, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}))

    code = suites.main(both, tmp_path / "results", retry=False)

    lines = capfd.readouterr().out.splitlines()
    assert (code, lines[-1]) == (0, "2 passed, 0 failed")
    assert lines.index("pytest: one") < lines.index("pytest: two")
