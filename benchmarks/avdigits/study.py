"""The whole study in one command: build AV-Digits, pass the cheat gates, run the studies, tell the tables.

    python benchmarks/avdigits/study.py --speech fsdd-recordings.tar.gz --digits FOLDER --out data/avdigits
    python benchmarks/avdigits/study.py ... --throughput --budget-hours 8     first: how long will it take here?
    python benchmarks/avdigits/study.py ... --steps 1000     T, for all arms of all studies alike
    python benchmarks/avdigits/study.py ... --only weight,tune,main
    python benchmarks/avdigits/study.py ... --minutes 8      in pieces: ends with exit code 75, again goes on
    python benchmarks/avdigits/study.py ... --jobs 4         four cells side by side on one GPU
    python benchmarks/avdigits/study.py ... --quick          two arms, one seed, a CPU: does the machinery run?

Each study takes over what the ones before it chose: weight (of the contrastive loss), tune (arm E), main (five arms),
parts (the second table), ideas (on val), winner (the best idea, once on test), labels (few-label curves). Ends with one
JSON line; the studies as they were run and their tables are in OUT/studies.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from avdigits import chain, throughput

CHAIN = chain.Chain(
    name="avdigits_study",
    quick_name="avdigits_quick",
    studies=(
        "avdigits_weight", "avdigits_tune", "avdigits", "avdigits_parts", "avdigits_ideas", "avdigits_winner",
        "avdigits_labels",
    ),
    quick=("avdigits_quick",),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = chain.parser(__doc__, CHAIN)
    throughput.add_arguments(parser)
    args = parser.parse_args(arguments)
    if args.throughput:
        return chain.told(lambda: throughput.run(CHAIN, args), args, "throughput.json")
    return chain.told(lambda: chain.run(CHAIN, args), args, "study.json")


if __name__ == "__main__":
    sys.exit(main())
