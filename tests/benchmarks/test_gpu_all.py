"""gpu_all.py runs through at tiny size, goes on after a kill, and survives a piece that fails."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gpu_all
import gpu_plan
import gpu_worker
import pytest
from gpu_worker import Piece, Row, Settings

SCRIPT = Path(gpu_all.__file__)
MADE_UP = """
import os, time

def one(s):
    yield {"name": "a", "value": 1.0, "unit": "s"}

def raises(s):
    yield {"name": "first", "value": 2.0, "unit": "s"}
    raise RuntimeError("no such kernel")

def lost(s):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def dies(s):
    yield {"name": "before", "value": 3.0, "unit": "s"}
    os.write(2, b"segmentation fault, core dumped")
    os._exit(139)

last = one

def hangs(s):
    yield {"name": "before", "value": 4.0, "unit": "s"}
    time.sleep(600)

MEASURES = "made_up_pieces"
BUDGETS = {"one": 5, "raises": 5, "lost": 5, "dies": 5, "hangs": 1, "last": 5}
"""


def run(out: Path, *more: str, **environment: str) -> tuple[dict, str]:
    """The last line of a run, and its stderr."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--out", str(out), *more],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("gpu") / "out"
    return out, run(out)[0]


@pytest.fixture
def made_up(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "made_up_pieces.py").write_text(MADE_UP)
    return {"PYTHONPATH": str(tmp_path)}


def record(out: Path, name: str) -> dict:
    return json.loads((out / f"{name}.json").read_text())


def test_every_piece_runs_through(measured: tuple[Path, dict]) -> None:
    out, summary = measured
    assert set(summary["pieces"].values()) == {"done"}, [record(out, name).get("error") for name in summary["pieces"]]
    assert {"benchmark", "hardware", "versions", "commit", "results", "ratios"} <= summary.keys()
    assert {"step_speedup_over_reference_bf16", "step_share_of_matmul_rate_bf16", "end_to_end_share_of_synthetic"} <= (
        summary["ratios"].keys()
    )
    bundle = record(out, "gpu_all")
    assert bundle["results"] == summary["results"]
    assert bundle["records"].keys() == summary["pieces"].keys()


def test_what_is_done_is_not_measured_again(measured: tuple[Path, dict]) -> None:
    out, _ = measured
    before = {path.name: path.read_text() for path in out.glob("*.json")}
    (out / "optimizers.json").unlink()
    (out / "gpu_all.json").unlink()
    summary, said = run(out)
    assert said.count("is there") == len(summary["pieces"]) - 1
    assert "optimizers" in said.splitlines()[-1]
    changed = {path.name for path in out.glob("*.json") if path.read_text() != before[path.name]}
    assert changed <= {"optimizers.json", "gpu_all.json", "now.json"}


def test_one_file_brings_all_back(measured: tuple[Path, dict], tmp_path: Path) -> None:
    """What a machine without a disk of its own leaves behind is one file."""
    kept = tmp_path / "kept.json"
    kept.write_text((measured[0] / "gpu_all.json").read_text())
    before = json.loads(kept.read_text())
    again, said = run(tmp_path / "elsewhere", "--copy", str(kept))
    assert said.count("is there") == len(before["records"])
    assert again["results"] == before["results"]


def test_a_piece_that_fails_dies_or_hangs_does_not_take_the_others_along(
    made_up: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    copy = tmp_path / "copy.json"
    summary, _ = run(out, "--plan", "made_up_pieces", "--copy", str(copy), **made_up)
    assert summary["pieces"] == {
        "one": "done", "raises": "failed", "lost": "failed", "dies": "failed", "hangs": "cut", "last": "done",
    }  # fmt: skip
    assert {(row["name"], row["value"]) for row in summary["results"]} == {
        ("one/a", 1.0), ("raises/first", 2.0), ("dies/before", 3.0), ("hangs/before", 4.0), ("last/a", 1.0),
    }  # fmt: skip
    records = json.loads(copy.read_text())["records"]
    assert "no such kernel" in records["raises"]["traceback"]
    assert records["dies"]["error"] == "the process ended with code 139"
    assert "core dumped" in records["dies"]["stderr"]
    assert {name: item["tries"] for name, item in records.items()} == dict.fromkeys(records, 1)


def test_what_failed_is_tried_once_more_after_the_rest(made_up: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--plan", "made_up_pieces", "--only", "raises", **made_up)
    for tries in (2, 2):
        _, said = run(out, "--plan", "made_up_pieces", "--only", "raises", "last", **made_up)
        assert record(out, "raises")["tries"] == tries
    assert "raises: is there (failed)" in said
    assert "last: is there (done)" in said


def test_a_run_ends_with_its_minutes(made_up: dict[str, str], tmp_path: Path) -> None:
    """A piece that the run had no time for is measured the next time."""
    out = tmp_path / "out"
    begun = time.monotonic()
    summary, _ = run(out, "--plan", "made_up_pieces", "--minutes", "0.1", **made_up)
    assert time.monotonic() - begun < 20
    assert set(summary["pieces"].values()) == {"not run"}


def test_a_process_that_cannot_even_start_is_told_with_its_stderr(made_up: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "made_up_pieces.py").write_text('MEASURES = "not_there"\nBUDGETS = {"one": 5.0}\n')
    summary, said = run(tmp_path / "out", "--plan", "made_up_pieces", **made_up)
    assert summary["pieces"] == {"one": "not run"}
    assert "No module named 'not_there'" in said


def test_every_piece_of_the_plan_can_be_measured() -> None:
    import gpu_pieces

    assert all(callable(getattr(gpu_pieces, name)) for name in gpu_plan.BUDGETS)
    assert 400 < sum(gpu_plan.BUDGETS.values()) < 2 * 530


def test_a_piece_that_is_killed_for_the_runs_time_is_out_of_time(tmp_path: Path) -> None:
    (tmp_path / "now.json").write_text(json.dumps({"piece": "long", "start": time.monotonic() - 5}))
    gpu_all.settle(tmp_path, "long", "out of time")
    found = record(tmp_path, "long")
    assert (found["state"], found["tries"], found["rows"]) == ("out of time", 1, [])
    assert found["seconds"] >= 5
    assert gpu_all.rounds(tmp_path, {"long": 1.0}) == [["long"], []]


def test_a_piece_ends_with_its_time_and_the_run_with_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_worker, "errors_to", lambda path: None)

    def endless(_: Settings) -> Iterator[Row]:
        while True:
            time.sleep(0.02)
            yield {"name": "again"}

    settings = Settings(True, "cpu", tmp_path, time.monotonic() + 60)
    assert gpu_worker.run(Piece("long", 0.1, endless), settings)
    assert record(tmp_path, "long")["state"] == "cut"
    settings.deadline = time.monotonic() + 0.1
    assert gpu_worker.run(Piece("late", 10, endless), settings)
    assert record(tmp_path, "late")["state"] == "out of time"
    assert gpu_worker.run(Piece("later", 10, endless), settings)
    assert not (tmp_path / "later.json").exists()


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
