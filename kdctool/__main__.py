"""`python -m kdctool` is `kdctool`."""

from kdctool.cli import main

if __name__ == "__main__":
    main()
