"""The command `workerkit`."""

import sys

from workerkit.cli.probe import probe


def main() -> None:
    """Run the command line in `sys.argv`."""
    if sys.argv[1:2] == ["probe"]:
        sys.exit(probe(sys.argv[2:]))
    # The other commands import the whole package, which takes too long for a probe.
    from workerkit.cli.commands import app

    app(prog_name="workerkit")
