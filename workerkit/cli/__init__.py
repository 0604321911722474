"""The command `workerkit`."""

from workerkit.cli.commands import app


def main() -> None:
    """Run the command line in `sys.argv`."""
    app(prog_name="workerkit")
