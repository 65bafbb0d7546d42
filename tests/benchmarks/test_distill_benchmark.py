"""distill.py ends with its JSON line, and its counts are those of the masks."""

import json
import subprocess
import sys
from pathlib import Path

import harness
import pytest


def test_quick_gives_the_line_with_counts_and_times(tmp_path: Path) -> None:
    script, out = Path(harness.__file__).with_name("distill.py"), tmp_path / "distill.json"
    command = [sys.executable, str(script), "--quick", "--batch", "1", "--rounds", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = json.loads(done.stdout.splitlines()[-1])
    assert line == json.loads(out.read_text())
    assert line["benchmark"] == "distill_quick"
    assert line["settings"]["tokens"] == {"none": [196, 196], "k10": [142, 196], "k30": [66, 196]}
    ratios = line["ratios"]
    assert set(ratios) == {
        f"{what}_saving_{name}"
        for what in ("step_wall", "step_cpu", "counted", "by_formula")
        for name in ("k10", "k30")
    }
    assert ratios["counted_saving_k30"] == pytest.approx(1.72, abs=0.02)
    assert ratios["counted_saving_k10"] == pytest.approx(ratios["by_formula_saving_k10"], rel=0.02)
