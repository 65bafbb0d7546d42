"""A training process below torchrun: `python -m torch.distributed.run ... -m kdctool.cli.rank pretrain ...`.

The same as `-m kdctool`, but a save that was asked for ends with 0: torchrun takes every other code for a crash and
starts the processes again. What happened stands in status.json.
"""

import sys

from kdctool.cli import run


def main() -> None:
    """Run a command and leave with 0 where it was interrupted after saving."""
    code = run(sys.argv[1:])
    sys.exit(0 if code in (75, 130) else code)


if __name__ == "__main__":
    main()
