"""step.py ends with its JSON line, quick on a CPU; harness.py's numbers are what they say."""

import json
import subprocess
import sys
from pathlib import Path

import harness
import pytest


def test_quick_gives_the_line_with_ratios(tmp_path: Path) -> None:
    script = Path(harness.__file__).with_name("step.py")
    out = tmp_path / "step.json"
    command = [sys.executable, str(script), "--quick", "--batch", "1", "--rounds", "1", "--threads", "1"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=True)
    line = json.loads(done.stdout.splitlines()[-1])
    assert line == json.loads(out.read_text())
    assert line["benchmark"] == "step_quick"
    assert set(line["ratios"]) == {
        "step_speedup_over_reference_fp32", "step_speedup_over_reference_bf16", "step_share_of_matmul_rate_bf16",
    }  # fmt: skip
    values = {item["name"]: item["value"] for item in line["results"]}
    want = values["reference_fp32_step"] / values["ours_bf16_step"]
    assert line["ratios"]["step_speedup_over_reference_bf16"] == pytest.approx(want, rel=1e-3)
    assert values["ours_bf16_loss"] == pytest.approx(values["ours_fp32_loss"], rel=1e-2)


def test_a_result_is_the_median_and_the_relative_spread() -> None:
    found = harness.result("x", [1.0, 4.0, 2.0], "s")
    assert (found.value, found.spread, found.runs) == (2.0, 1.5, 3)


def test_variants_take_turns() -> None:
    calls: list[str] = []
    variants = {name: (lambda n=name: calls.append(n) or float(len(calls))) for name in "ab"}
    assert harness.interleaved(variants, 3) == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    assert calls == list("ababab")
