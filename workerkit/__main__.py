"""`python -m workerkit` is the command `workerkit`."""

from workerkit.cli import main

if __name__ == "__main__":
    main()
