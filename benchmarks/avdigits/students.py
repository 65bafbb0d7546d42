"""Small students and their teachers in one command: build AV-Digits, train the teachers, distil, tell both tables.

    python benchmarks/avdigits/students.py --speech fsdd-recordings.tar.gz --digits FOLDER --out data/avdigits
    python benchmarks/avdigits/students.py ... --minutes 8   in pieces: ends with exit code 75, again goes on
    python benchmarks/avdigits/students.py ... --jobs 4      four cells side by side on one GPU
    python benchmarks/avdigits/students.py ... --quick       one seed, 10 steps, no gates, a CPU: does it run?

With the folder of study.py it takes over what was built there, gates and all. Ends with one JSON line; the tables are
in OUT/studies/NAME/table.md, and the studies as they were run, with the paths of the teachers, beside them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from avdigits import chain
from avdigits.chain import Tree
from kdctool import recipe as recipes

TEACHERS, STUDENTS = "avdigits_teachers", "avdigits_hybrid"
TEACHING_SEED = 0
QUICK_STEPS, QUICK_BATCH = 10, 20


def changed(name: str, tree: Tree, out: Path, quick: bool) -> Tree:
    """A study with whole paths of its teachers; a small one when it is `quick`."""
    for arm in tree["arms"]:
        taught = recipes.load(Path(arm.get("recipe") or tree["recipe"])).objective.distill.teachers
        if taught:
            run = out.resolve() / "studies" / TEACHERS / "cells"
            paths = {f"objective.distill.teachers.{who}.path": str(run / f"{who}-s{TEACHING_SEED}" / "pretrain")
                     for who in taught}  # fmt: skip
            arm["set"] = {**arm.get("set", {}), **paths}
    return small(tree) if quick else tree


def small(tree: Tree) -> Tree:
    """One seed, few steps, and of the measurements what few clips allow."""
    quick = chain.shipped("avdigits_quick")
    tasks = {item["task"] for item in tree["evaluations"]}
    evaluations = [item for item in quick["evaluations"] if item["task"] in tasks]
    endpoints = dict.fromkeys(name.replace("gallery_*", "retrieval") for name in tree["secondary"]["endpoints"])
    secondary = {**tree["secondary"], "endpoints": list(endpoints)}
    same = {key: quick[key] for key in ("seeds", "set", "protocol")}
    return {**tree, **same, "steps": QUICK_STEPS, "evaluations": evaluations, "secondary": secondary}


CHAIN = chain.Chain(
    name="avdigits_students",
    quick_name="avdigits_students_quick",
    studies=(TEACHERS, STUDENTS),
    quick=(TEACHERS, STUDENTS),
    changed=changed,
    gates_when_quick=False,
    quick_set=(f"training.global_batch={QUICK_BATCH}",),
)


def main(arguments: list[str] | None = None) -> int:
    args = chain.parser(__doc__, CHAIN).parse_args(arguments)
    return chain.told(lambda: chain.run(CHAIN, args), args, "students.json")


if __name__ == "__main__":
    sys.exit(main())
