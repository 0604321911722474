"""Put the template of `workerkit new` into the package; everything else is in setup.cfg."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TEMPLATE = Path(__file__).parent / "app_template"


class BuildWithTemplate(build_py):
    """Copies `app_template` to `workerkit/app_template`.

    An editable installation needs no copy: `workerkit new` finds the directory beside the package.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "workerkit" / "app_template"
        shutil.rmtree(target, ignore_errors=True)  # An earlier build may have left other files.
        lines = (TEMPLATE / ".gitignore").read_text(encoding="utf-8").splitlines()
        ignored = [line.strip("/") for line in lines]
        shutil.copytree(
            TEMPLATE,
            target,
            ignore=lambda _, names: {n for n in names if any(fnmatch(n, each) for each in ignored)},
        )


setup(cmdclass={"build_py": BuildWithTemplate})
