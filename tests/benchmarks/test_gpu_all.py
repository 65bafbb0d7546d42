"""gpu_all.py runs through at tiny size, goes on after a kill, and survives a piece that fails."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gpu_all
import pytest
from gpu_all import Piece, Row, Settings

SCRIPT = Path(gpu_all.__file__)


def smoke(out: Path, *more: str) -> tuple[dict, str]:
    """The last line of a smoke run, and its stderr."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--out", str(out), *more],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("gpu") / "out"
    return out, smoke(out)[0]


def test_every_piece_runs_through(measured: tuple[Path, dict]) -> None:
    out, summary = measured
    assert set(summary["pieces"].values()) == {"done"}, [
        json.loads((out / f"{name}.json").read_text()).get("error") for name in summary["pieces"]
    ]
    assert {"benchmark", "hardware", "versions", "commit", "results", "ratios"} <= summary.keys()
    assert {"step_speedup_over_reference_bf16", "step_share_of_matmul_rate_bf16", "end_to_end_share_of_synthetic"} <= (
        summary["ratios"].keys()
    )
    assert json.loads((out / "gpu_all.json").read_text()) == summary


def test_what_is_done_is_not_measured_again(measured: tuple[Path, dict]) -> None:
    out, _ = measured
    before = {path.name: path.read_text() for path in out.glob("*.json")}
    (out / "optimizers.json").unlink()
    summary, said = smoke(out)
    assert said.count("is there") == len(summary["pieces"]) - 1
    assert "optimizers" in said.splitlines()[-1]
    changed = {path.name for path in out.glob("*.json") if path.read_text() != before[path.name]}
    assert changed <= {"optimizers.json", "gpu_all.json"}


def test_a_piece_that_fails_leaves_its_rows_and_its_error(tmp_path: Path) -> None:
    def fails(_: Settings) -> Iterator[Row]:
        yield {"name": "first", "value": 1.0, "unit": "s"}
        raise RuntimeError("the card is gone")

    settings = Settings(True, "cpu", tmp_path, time.monotonic() + 60)
    gpu_all.run(Piece("broken", 10, fails), settings)
    record = json.loads((tmp_path / "broken.json").read_text())
    assert record["state"] == "failed"
    assert record["error"] == "RuntimeError: the card is gone"
    assert [row["name"] for row in record["rows"]] == ["first"]


def test_a_piece_ends_with_its_time_and_the_run_with_its_own(tmp_path: Path) -> None:
    def endless(_: Settings) -> Iterator[Row]:
        while True:
            time.sleep(0.02)
            yield {"name": "again"}

    settings = Settings(True, "cpu", tmp_path, time.monotonic() + 0.3)
    gpu_all.run(Piece("long", 0.1, endless), settings)
    assert json.loads((tmp_path / "long.json").read_text())["state"] == "cut"
    settings.deadline = time.monotonic() - 1
    gpu_all.run(Piece("late", 10, endless), settings)
    assert json.loads((tmp_path / "late.json").read_text()) == {
        "piece": "late", "state": "out of time", "rows": [], "seconds": 0.0,
    }  # fmt: skip


def test_the_packages_it_needs_are_those_of_its_readme() -> None:
    """A machine without network gets wheels: a new import must stand in the list."""
    code = (
        f"import sys; sys.path[:0] = [{str(SCRIPT.parent)!r}, {str(SCRIPT.parents[1])!r}]\n"
        "before = set(sys.modules)\nimport gpu_pieces, soundfile\n"
        "from kdctool.data import clips, device, loader\nfrom kdctool.shards.write import tar_writer\ntar_writer()\n"
        "import importlib.metadata as m\nowners = m.packages_distributions()\n"
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted({d.lower().replace('_', '-') for t in tops for d in owners.get(t, [])}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout.splitlines()[-1].replace("'", '"')))
    readme = (SCRIPT.parent / "README.md").read_text()
    named = {word.strip("`,.;:()") for word in readme.lower().split()}
    assert loaded - {"kdctool"} <= named, sorted(loaded - named)
