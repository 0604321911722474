"""Run the test suites at the same time, and summarize their results.

    python -m tests.suites              what `make test` runs
    python -m tests.suites --retry      what continuous integration runs

With `--retry` the tests that failed run once more, and only those. One that fails again fails the
run. One that passes then is listed as FLAKY: it has a defect, which has to be fixed in
the next change.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from xml.etree import ElementTree as ET

from tests.rabbit_versions import CHOSEN, NotInstalled, installation

ROOT = Path(__file__).parents[1]
NEWEST = "4.3"
RESULTS = ROOT / ".pytest_cache" / "suites"
_PASSED, _FAILED = 0, 1  # pytest's exit codes; all others mean that the run itself broke.


@dataclass(frozen=True, slots=True)
class Suite:
    """One run of pytest.

    Attributes:
        name: Of its results, and in what is printed.
        arguments: For pytest.
        directory: To run it in.
        environment: Added to the present one.
    """

    name: str
    arguments: Sequence[str]
    directory: Path = ROOT
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """The result of one suite.

    Attributes:
        passed: A number of tests.
        failed: Ids of the tests that failed.
        broken: Why there is no more to know; empty where pytest came to its end.
    """

    passed: int = 0
    failed: set[str] = field(default_factory=set)
    broken: str = ""


def suites(workers: int, arguments: Sequence[str] = ()) -> Iterator[Suite]:
    """Return the suites of `make test`.

    Args:
        workers: Processes that run tests at the same time.
        arguments: Instead of everything, run what these choose, on the machine's own RabbitMQ.
    """
    yield Suite("all", [*_parallel(workers), *arguments])
    if arguments:
        return
    if not installation().is_of(NEWEST):
        differing = ["tests/contract", "tests/faults"]
        differing += ["-k", "(test_both_brokers and rabbitmq) or test_field or test_fr"]
        differing += ["-m", "not any_broker"]
        parallel = _parallel(max(2, workers // 2))
        yield Suite(f"RabbitMQ {NEWEST}", [*parallel, *differing], environment={CHOSEN: NEWEST})
    yield Suite("template", [], ROOT / "app_template")


def _parallel(workers: int) -> list[str]:
    # tests/conftest.py has an order, in which the longest files are not the last.
    return ["--numprocesses", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]


def run(
    suite: Suite, results: Path, *, again: bool = False, output: IO[str] | None = None
) -> Result:
    """Run a suite, or its failed tests.

    Args:
        results: A directory for what pytest notes about it.
        again: Run only the tests that failed the last time, one after another.
        output: Where pytest writes to; here by default.
    """
    cache, report = results / "cache", results / "report.xml"
    report.unlink(missing_ok=True)
    chosen = [*suite.arguments]
    if again:
        chosen += ["--last-failed", "--last-failed-no-failures", "none"]
        chosen += ["--numprocesses", "0"] if "--numprocesses" in chosen else []
    else:
        shutil.rmtree(results, ignore_errors=True)
    print(f"pytest: {suite.name}{', what failed' if again else ''}", file=output, flush=True)
    kept = ["-o", f"cache_dir={cache}", f"--junitxml={report}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", *kept, *chosen],
        cwd=suite.directory,
        env={**os.environ, **suite.environment},
        stdout=output,
        stderr=output,
        check=False,
    )
    failed, code = _failed(cache), done.returncode
    if code not in (_PASSED, _FAILED) or (code == _FAILED) != bool(failed):
        return Result(broken=f"{suite.name}: pytest ended with {code}")
    return Result(_passed(report), failed)


def main(suites: Sequence[Suite], results: Path, *, retry: bool) -> int:
    """Run all suites and print a summary; return the exit code."""
    passed, failed, flaky, broken = 0, 0, [], []
    directories = {suite.name: results / suite.name.replace(" ", "-") for suite in suites}
    for suite, result in zip(suites, _run_all(suites, directories), strict=True):
        directory = directories[suite.name]
        passed += result.passed
        if result.failed and retry:
            second = run(suite, directory, again=True)
            if not second.broken:
                flaky += [f"{suite.name}: {each}" for each in sorted(result.failed - second.failed)]
            passed += second.passed
            result = second
        failed += len(result.failed)
        broken += [result.broken] if result.broken else []
    print()
    for text in broken:
        print(f"BROKEN {text}")
    for name in flaky:
        print(f"FLAKY {name}")
    print(f"{passed} passed, {failed + len(broken)} failed", flush=True)
    return 1 if failed or broken else 0


def _run_all(suites: Sequence[Suite], directories: Mapping[str, Path]) -> Sequence[Result]:
    """Run all suites at the same time: they mostly wait, and each has a last test.

    The first one writes its progress, the others are printed after it.
    """
    with ExitStack() as stack:
        outputs = [None, *(stack.enter_context(TemporaryFile("w+")) for _ in suites[1:])]
        pool = stack.enter_context(ThreadPoolExecutor(max(1, len(suites))))
        futures = [
            pool.submit(run, suite, directories[suite.name], output=output)
            for suite, output in zip(suites, outputs, strict=True)
        ]
        results = []
        for future, output in zip(futures, outputs, strict=True):
            results.append(future.result())
            if output is not None:
                output.seek(0)
                print(output.read(), end="", flush=True)
        return results


def _failed(cache: Path) -> set[str]:
    noted = cache / "v" / "cache" / "lastfailed"
    return set(json.loads(noted.read_text())) if noted.exists() else set()


def _passed(report: Path) -> int:
    total = 0
    for suite in ET.parse(report).iter("testsuite"):
        tests, *others = (int(suite.get(name, 0)) for name in ("tests", "failures", "errors"))
        total += tests - sum(others)
    return total


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description=__doc__)
    parser.add_argument("--retry", action="store_true", help="run once more what failed")
    parser.add_argument("--workers", type=int, default=3, help="processes that run tests")
    parser.add_argument("arguments", nargs="*", help="for pytest, after --")
    return parser.parse_args()


if __name__ == "__main__":
    options = _options()
    try:
        installation(NEWEST)
    except NotInstalled as error:
        sys.exit(str(error))
    chosen = list(suites(options.workers, options.arguments))
    sys.exit(main(chosen, RESULTS, retry=options.retry))
