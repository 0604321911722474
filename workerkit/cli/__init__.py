"""The command `workerkit`."""

import sys

from workerkit.cli.probe import probe


def main() -> None:
    """Run the command line in `sys.argv`."""
    if sys.argv[1:2] == ["probe"]:
        sys.exit(probe(sys.argv[2:]))
    # The other commands import everything, which takes longer than a probe may.
    from workerkit.cli.commands import app

    app(prog_name="workerkit")
