"""What the notes under a study's tables let nobody claim."""

import json
import math
from pathlib import Path

from sweep_studies import a_study, run

from kdctool.stages import sweep_notes, sweep_plan

FEW = "a claim at p < 0.01 takes 8 fresh seeds of a frozen protocol"
AMENDED = [{"reason": "forgotten", "changes": ["a: 1 -> 2"]}]


CASES = [
    ([(0.009, 5), (0.5, 3)], [], "here a p below it comes from 5 seeds: none is made"),
    ([(0.009, 8), (0.001, 7)], [], "here a p below it comes from 7 seeds: none is made"),
    ([(0.009, 8)], AMENDED, "here the protocol was changed: none is made"),
    ([(0.009, 8), (0.04, 2)], [], ""),
    ([(0.01, 5)], AMENDED, ""),
    ([(math.nan, 1)], [], ""),
    ([], [], ""),
]
"""p and n of the contrasts, amendments, and what the note says of them."""


def test_a_small_p_of_few_seeds_or_of_a_changed_protocol_is_no_claim(one_view: Path, tmp_path: Path) -> None:
    plan = sweep_plan.make_plan(a_study(one_view), shards=None, out=tmp_path, overrides=[], arms=[], seeds=None)
    for tested, amendments, said in CASES:
        notes = [note for note in sweep_notes.make(plan, {}, tested, amendments) if note.startswith(FEW)]
        assert [note.removeprefix(f"{FEW}, ") for note in notes] == ([said] if said else []), tested


def test_p_stands_in_the_table_as_it_is_and_the_note_under_it(one_view: Path, tmp_path: Path) -> None:
    study = a_study(one_view, seeds=[0, 1, 2], secondary={})
    run(study, tmp_path / "s", cell="1/6")
    first = tmp_path / "s" / "cells" / "A-s0"
    told = json.loads((first / "cell.json").read_text())
    for arm, values in (("A", (0.1, 0.2, 0.3)), ("B", (0.3, 0.401, 0.499))):
        for seed, value in enumerate(values):
            folder = first.with_name(f"{arm}-s{seed}")
            folder.mkdir(exist_ok=True)
            record = {**told, "arm": arm, "seed": seed, "values": {"retrieval-test/a2v_r5": value}}
            (folder / "cell.json").write_text(json.dumps(record))
    done = run(study, tmp_path / "s", summary_only=True)
    (primary,) = done.payload["primary"]
    assert primary["p"] < 0.01
    assert primary["verdict"] == "higher"
    assert any(note.startswith(FEW) and "from 3 seeds" in note for note in done.notes)
    (row,) = [line for line in (tmp_path / "s" / "table.md").read_text().splitlines() if line.startswith("| B - A |")]
    assert row.endswith("| higher |")
    assert f"| {primary['p']:.1e} |" in row
