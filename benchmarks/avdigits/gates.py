"""The cheat gates, before any method is compared: what can be had without both senses must not pay.

    python benchmarks/avdigits/gates.py --speech fsdd-recordings.tar.gz --digits FOLDER [--train 8000 --test 10000]

A network sees one frame and says which of the two digits sounds; another hears the sound and says where it comes
from. Both are trained with the answers, on drawn clips of train, and asked about clips of test and test_hard. With
each goes a control that has a way to cheat planted into its clips: a control that fails to find it has no power, and
then the gate says nothing. Exit code 5 when a gate fails.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import finish, hardware, report, result

from avdigits import gate_clips, gate_networks
from avdigits.sources import Sources, read
from kdctool.errors import KdctoolError
from kdctool.progress import say
from kdctool.tasks.contrasts import wilson

MOST = 0.52
"""A network without the other sense may reach this share of right answers."""
LEAST_CONTROL = 0.60
SPLITS = ("test", "test_hard")


@dataclass(frozen=True)
class Gate:
    """One answer of a gate."""

    name: str
    correct: float
    """Right answers; a tie is half a right one."""
    n: int
    is_control: bool

    @property
    def share(self) -> float:
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.correct, self.n)

    @property
    def passed(self) -> bool:
        """Below chance by as much as above it is not allowed would be a way to cheat, too: answer the other digit."""
        return self.share >= LEAST_CONTROL if self.is_control else 1 - MOST <= self.share <= MOST

    def said(self) -> str:
        low, high = self.interval
        wanted = f"at least {LEAST_CONTROL:.0%}" if self.is_control else f"{1 - MOST:.0%} to {MOST:.0%}"
        word = "passed" if self.passed else "FAILED"
        return f"{self.name}: {self.share:.1%} ({low:.1%} - {high:.1%}, n = {self.n}), wanted {wanted}: {word}"


def run(sources: Sources, train: int, test: int, epochs: int, seed: int) -> Iterator[Gate]:
    """Every gate with its control; `train` and `test` are numbers of drawn clips."""
    for sense in ("video", "sound"):
        for leak in (False, True):
            learn = gate_clips.drawn(sources, "train", train, seed, sense, leak)
            network = gate_networks.fit(sense, learn, epochs, seed)
            for split in SPLITS[:1] if leak else SPLITS:
                asked = gate_clips.drawn(sources, split, test, seed + 1, sense, leak)
                correct = gate_networks.correct(sense, network, asked)
                name = f"{sense} alone, {split}" + (", with a planted leak" if leak else "")
                yield Gate(name, correct, len(asked.places), leak)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--digits", type=Path, required=True)
    parser.add_argument("--train", type=int, default=8_000, metavar="N", help="drawn clips to learn from")
    parser.add_argument("--test", type=int, default=10_000, metavar="N", help="drawn clips of each test split")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the last line there, too")
    args = parser.parse_args(arguments)
    try:
        sources = read(args.speech, args.digits)
        gates, start = [], time.monotonic()
        for gate in run(sources, args.train, args.test, args.epochs, args.seed):
            gates.append(gate)
            say(gate.said())
    except KdctoolError as error:
        say(f"error: {error.cause}\nnext:  {error.next_step}")
        return error.exit_code
    rows = [result(gate.name, [gate.share], "share of right answers") for gate in gates]
    told = [
        {"name": g.name, "share": g.share, "n": g.n, "wilson": g.interval, "passed": g.passed, "control": g.is_control}
        for g in gates
    ]
    more = {"gates": told, "seconds": round(time.monotonic() - start, 1), "train": args.train, "epochs": args.epochs}
    finish(report("avdigits_gates", hardware(), ("torch", "numpy"), rows, {}, **more), args.out)
    return 0 if all(gate.passed for gate in gates) else 5


if __name__ == "__main__":
    sys.exit(main())
