"""The command `workerkit`."""

import gc
import sys

from workerkit.cli.probe import probe


def main() -> None:
    """Run the command line in `sys.argv`."""
    if sys.argv[1:2] == ["probe"]:
        sys.exit(probe(sys.argv[2:]))
    # The other commands import the whole package, which takes too long for a probe. Without garbage
    # collections, which would find nothing, it is 5 % shorter; later ones may skip what it creates.
    gc.disable()
    from workerkit.cli.commands import app

    gc.freeze()
    gc.enable()
    app(prog_name="workerkit")
