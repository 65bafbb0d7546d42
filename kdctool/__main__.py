"""`python -m kdctool` is `kdctool`."""

import sys


def main() -> None:
    """Run the command line; a Ctrl-C while it is still being imported is no traceback either."""
    try:
        from kdctool.cli import main as run
    except KeyboardInterrupt:
        print("interrupted before it began", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
