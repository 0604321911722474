"""The RabbitMQ of the tests: the installed one, or one that is unpacked into a cache.

`TEST_RABBITMQ=4.3` chooses a version for a run of the tests; without it they take what the machine
has. `.ci/rabbitmq` makes the others available.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CHOSEN = "TEST_RABBITMQ"
_PROVIDE = Path(__file__).parents[1] / ".ci" / "rabbitmq"
# The scripts in /usr/sbin change to the user `rabbitmq` and refuse others; these do not.
_DEBIAN_SCRIPTS = Path("/usr/lib/rabbitmq/bin")
_DIRECTORY = re.compile(r"rabbitmq_server-(\d+(?:\.\d+)*)")
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


class NotInstalled(Exception):
    """This RabbitMQ is not on this machine; the text describes how to get it."""


@dataclass(frozen=True, slots=True)
class Installation:
    """One RabbitMQ on this machine.

    Attributes:
        scripts: The directory of `rabbitmq-server` and `rabbitmqctl`.
        path: The `PATH` that finds its Erlang.
        version: Such as (4, 3, 6).
    """

    scripts: Path
    path: str
    version: tuple[int, ...]

    def is_of(self, version: str) -> bool:
        """Return whether *version* is its series: 4.3 is that of 4.3.6."""
        numbers = tuple(map(int, version.split(".")))
        return self.version[: len(numbers)] == numbers


@cache
def installation(version: str | None = None) -> Installation:
    """Find a RabbitMQ; one that is not installed is unpacked, which takes half a minute.

    Args:
        version: Such as "4.3"; None for the one that `TEST_RABBITMQ` names, or the machine's own.

    Raises:
        NotInstalled: There is none.
    """
    version = version or os.environ.get(CHOSEN)
    own = _own()
    if version is None:
        if own is None:
            raise NotInstalled(
                "RabbitMQ is not installed, and these tests need a real one:"
                " run `make test`, or install the package"
                " (Debian: apt-get install rabbitmq-server)."
            )
        return own
    return own if own is not None and own.is_of(version) else _unpacked(version)


def _own() -> Installation | None:
    """Return the machine's own, if it has one."""
    path = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"
    found = shutil.which("rabbitmq-server", path=path)
    if (_DEBIAN_SCRIPTS / "rabbitmq-server").exists():
        scripts = _DEBIAN_SCRIPTS
    elif found is not None:
        scripts = Path(found).resolve().parent
    else:
        return None
    if shutil.which("epmd", path=path) is None:
        return None
    # Debian has the scripts in bin, beside lib/rabbitmq_server-3.10.8; others inside of that.
    places = [str(scripts), *map(str, (scripts.parent / "lib").glob("rabbitmq_server-*"))]
    return Installation(scripts, path, _version_in(places))


def _unpacked(version: str) -> Installation:
    done = subprocess.run(
        [str(_PROVIDE), version], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise NotInstalled(done.stderr.strip())
    home = Path(done.stdout.strip())
    (scripts,) = home.glob("root/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin")
    return Installation(scripts, f"{home / 'bin'}:{_SYSTEM_PATH}", _version_in([str(scripts)]))


def _version_in(places: list[str]) -> tuple[int, ...]:
    for place in places:
        if found := _DIRECTORY.search(place):
            return tuple(map(int, found[1].split(".")))
    raise NotInstalled(f"the version of RabbitMQ is not found in {', '.join(places)}")
