"""held.py ends with its JSON line, and its ratios are what their names say."""

import json
import subprocess
import sys
from pathlib import Path

import harness
import pytest


def test_quick_compares_held_clips_with_the_loader() -> None:
    script = Path(harness.__file__).with_name("held.py")
    command = [sys.executable, str(script), "--quick", "--rounds", "1", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["benchmark"] == "held"
    values = {item["name"]: item["value"] for item in line["results"]}
    # 256 clips of 10 frames of 112 x 112 x 3 bytes and 33,520 samples of 2 bytes, and 12 bytes beside them.
    assert values["held"] == pytest.approx(256 * (376320 + 67040 + 12) / 2**20, rel=1e-4)
    assert set(line["ratios"]) == {
        "held_in_main_memory_speedup_over_loader",
        "held_in_main_memory_to_batch_speedup_over_loader_to_batch",
        "held_in_main_memory_wall_speedup_over_loader_workers_wall",
    }
    ratio = line["ratios"]["held_in_main_memory_speedup_over_loader"]
    assert ratio == pytest.approx(values["loader"] / values["held_in_main_memory"], rel=1e-3)
    assert ratio > 2, "looking clips up costs a small part of decoding them"
