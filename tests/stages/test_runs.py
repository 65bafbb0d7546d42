"""Runs as their folders tell them: whole, half-written, damaged, dead, and while they grow."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdctool import recipe as recipes
from kdctool.cli import run as command
from kdctool.files import locked, write_json
from kdctool.stages import run_state, runs
from kdctool.train.log import Log, write_status

RECIPE = 'name = "tiny"\n[training]\nglobal_batch = 8'


def make_run(
    root: Path, name: str = "tiny-s0-abcdef", state: str = "done", rows: int = 5, loss: float = 2.0, text: str = RECIPE
) -> Path:
    """A pre-training run as the trainer leaves it behind."""
    run = root / name
    recipe = recipes.loads(text)
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text(recipes.to_toml(recipe))
    write_json(run / "run.json", {"kind": "pretrain", "keys": {}, "data_digest": "d" * 64, "recipe_digest": "r"})
    lines = [json.dumps({"step": n, "epoch": 0, "loss": loss - n / 10, "lr": 0.1}) + "\n" for n in range(rows)]
    (run / "metrics.jsonl").write_text("".join(lines))
    code = {"done": 0, "failed": 4, "interrupted": 75}.get(state)
    follow = f"kdctool eval {run} --task retrieval" if state == "done" else "the same command goes on"
    write_status(
        run, state, rows if state != "running" else 0, code, "no space left" if state == "failed" else "", follow
    )
    return run


def listed(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert command(["runs", "list", "--root", str(root), "--format", "json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["runs"]}


def test_the_list_tells_state_step_loss_and_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    stopped = make_run(tmp_path, "stopped", "interrupted")
    found = listed(tmp_path, capsys)
    row = found[run.name]
    assert (row["kind"], row["state"], row["step"], row["total_steps"]) == ("pretrain", "done", 5, 5)
    assert row["last"]["loss"] == pytest.approx(1.6)
    assert row["next"] == f"kdctool eval {run} --task retrieval"
    assert found["stopped"]["next"] == f"kdctool pretrain {stopped}/recipe.toml --out {stopped}"
    assert command(["runs", "list", "--root", str(tmp_path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(run.name))
    assert line.split()[1:3] == ["pretrain", "done"]
    assert "1.6" in line
    assert row["next"] in line


def test_a_probe_row_does_not_hide_the_loss(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "probe/r1": 0.5}\n')
    assert run_state.read(run).last == pytest.approx({"loss": 1.6, "lr": 0.1, "probe/r1": 0.5})


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("status.json", "", "status.json cannot be read"),
        ("status.json", '{"state": "running', "status.json cannot be read"),
        ("status.json", "[1]", "status.json holds no object"),
        ("status.json", '{"state": "dancing"}', "state is 'dancing'"),
        ("status.json", '{"state": "done", "step": "many", "next": 3}', ""),
        ("run.json", "\x00\xff", "run.json cannot be read"),
        ("run.json", '{"kind": 7, "keys": [], "data_digest": {}}', ""),
        ("metrics.jsonl", "nonsense\n" * 3, "metrics.jsonl: 3 lines are no row"),
        ("metrics.jsonl", '{"step": 1, "loss": NaN}\n{"step": 2, "lo', ""),
        ("recipe.toml", "name = ", "recipe.toml cannot be read"),
        ("recipe.toml", 'name = "x"\n[objective]\nname = 5\n', ""),
        ("eval/retrieval/results.json", '{"metrics": 3}', ""),
    ],
)
def test_a_damaged_run_is_named_and_stops_no_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, told: str
) -> None:
    run = make_run(tmp_path, "damaged", "failed")
    make_run(tmp_path, "whole")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(text)
    outputs = []
    for arguments in (["list"], ["show", "damaged"], ["compare", "damaged", "whole"], ["watch", "damaged", "--once"]):
        assert command(["runs", *arguments, "--root", str(tmp_path)]) == 0, arguments
        outputs.append(capsys.readouterr().out)
    assert told in outputs[1].replace("\n", " ")
    if name != "recipe.toml":  # A list reads no recipes.
        assert told in outputs[0]
    for arguments in (["list"], ["show", "damaged"], ["compare", "damaged", "whole"]):
        assert command(["runs", *arguments, "--root", str(tmp_path), "--format", "json"]) == 0
        json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.parametrize("missing", ["status.json", "run.json", "recipe.toml", "metrics.jsonl"])
def test_a_run_without_one_of_its_files_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    run = make_run(tmp_path)
    (run / missing).unlink()
    state = listed(tmp_path, capsys)[run.name]
    assert state["state"] == ("unknown" if missing == "status.json" else "done")
    assert command(["runs", "show", str(run)]) == 0
    assert (f"no {missing}" in capsys.readouterr().out) == (missing in ("run.json", "recipe.toml"))


def test_folders_that_are_no_runs_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    assert list(listed(tmp_path, capsys)) == ["tiny-s0-abcdef"]


def test_a_missing_folder_and_a_missing_run_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["runs", "list", "--root", str(tmp_path / "none")]) == 2
    make_run(tmp_path)
    assert command(["runs", "show", "other", "--root", str(tmp_path)]) == 2
    assert "tiny-s0-abcdef" in capsys.readouterr().err
    assert command(["runs", "compare", "tiny-s0-abcdef", "--root", str(tmp_path)]) == 2


def test_a_run_whose_process_is_there_is_running(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="running")
    os.utime(run / "metrics.jsonl", (0, 0))
    os.utime(run / "status.json", (0, 0))
    assert run_state.read(run).state == "running?"
    with locked(run):
        state = run_state.read(run)
        assert (state.state, state.step) == ("running", 5)
        assert state.next_step == f"kdctool runs watch {run}"


def test_a_run_whose_process_is_gone_is_doubted_with_the_age_of_its_files(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="running")
    (run / ".lock").write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    hours_ago = time.time() - 3 * 3600
    for name in ("metrics.jsonl", "status.json"):
        os.utime(run / name, (hours_ago, hours_ago))
    state = run_state.read(run)  # This very process lives, but does not hold the lock: the number was used again.
    assert state.state == "running?"
    assert "gone" in state.note
    assert "3 h ago by file time" in state.note
    assert state.next_step.startswith("kdctool pretrain")


def test_a_killed_training_is_doubted(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="running")
    code = "import sys, time; from pathlib import Path; from kdctool.files import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert run_state.read(run).state == "running"
    process.kill()
    process.wait()
    assert run_state.read(run).state == "running?"


def test_a_run_on_another_machine_is_judged_by_its_files(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="running")
    (run / ".lock").write_text("process 1 on another-machine\n")
    assert run_state.read(run).state == "running"
    for name in ("metrics.jsonl", "status.json"):
        os.utime(run / name, (1, 1))
    assert "another-machine" in run_state.read(run).note


def test_files_from_the_future_are_told_not_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, state="running")
    ahead = time.time() + 86400
    for name in ("metrics.jsonl", "status.json"):
        os.utime(run / name, (ahead, ahead))
    assert "in the future" in run_state.read(run).note
    assert command(["runs", "list", "--root", str(tmp_path)]) == 0
    assert "in the future" in capsys.readouterr().out


def test_show_tells_settings_checkpoints_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, text='name = "tiny"\nseed = 3\n[objective]\nname = "cav_mae"\n[optim]\nlr = 0.5')
    for name in ("step-00000004", "step-00000005.partial"):
        (run / "checkpoints" / name).mkdir(parents=True)
        (run / "checkpoints" / name / "model.safetensors").write_bytes(b"x" * 2048)
    (run / "checkpoints" / "step-00000004" / "manifest.json").write_text("{}")
    metrics = {"r1": {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.01}, "rank": {"value": None}}
    write_json(run / "eval" / "retrieval" / "results.json", {"task": "retrieval", "metrics": metrics})
    shown = runs.show(run)
    # A preset's own defaults (one view, no self-distillation) are no changes.
    assert shown.changed == {"name": "tiny", "seed": 3, "objective.name": "cav_mae", "optim.lr": 0.5}
    assert [(s.size, s.complete) for s in shown.saved] == [(2050, True), (2048, False)]
    assert command(["runs", "show", str(run)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("optim.lr", "0.5", "incomplete", "2.0 KB", "r1", "0.4", "chance"))


def test_the_total_of_steps_is_known_where_the_shards_are(
    tiny_recipe: Callable[..., Path], tiny_shards: Path, tmp_path: Path
) -> None:
    from kdctool.shards import index

    run = make_run(tmp_path / "runs", state="interrupted")
    (run / "recipe.toml").write_text(tiny_recipe("training.epochs=4").read_text())
    assert runs.total_steps(run_state.read(run)) is None  # Other shards lie there than the run was made from.
    write_json(run / "run.json", {"kind": "pretrain", "keys": {}, "data_digest": index.load(tiny_shards).digest})
    assert runs.total_steps(run_state.read(run)) == 12


def test_compare_shows_only_the_settings_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make_run(tmp_path, "a")
    b = make_run(tmp_path, "b", rows=9, text=RECIPE + "\n[optim]\nlr = 0.5")
    write_json(b / "eval" / "retrieval" / "results.json", {"metrics": {"r1": {"value": 0.25}}})
    found = runs.compare([a, b])
    assert found.recipe == {"optim.lr": [recipes.loads(RECIPE).optim.lr, 0.5]}
    assert found.metrics["loss"] == pytest.approx([1.6, 1.2])
    assert found.scores == {"retrieval/r1": [None, 0.25]}
    assert command(["runs", "compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "optim.lr" in out
    assert "training.epochs" not in out


def watched(run: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "kdctool", "runs", "watch", str(run), "--every", "0.1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 4), ("interrupted", 75)])
def test_watch_follows_until_the_run_ends_and_ends_as_it_did(tmp_path: Path, state: str, code: int) -> None:
    run = make_run(tmp_path, state="running", rows=2)
    process = watched(run)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("step 0  loss 2")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "loss": 1.')
        file.flush()
        time.sleep(0.5)
        file.write("5}\n")
        file.flush()
        write_status(run, state, 3, code, "", "go on")
    out, _ = process.communicate(timeout=30)
    assert "step 2  loss 1.5\n" in out
    assert f"{state} (step 3)" in out
    assert process.returncode == code


def test_watch_once_prints_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, state="running", rows=3)
    assert command(["runs", "watch", str(run), "--once"]) == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("step")] == [
        "step 0",
        "step 1",
        "step 2",
    ]


def test_watch_tells_rows_once_and_a_resume_that_takes_some_back(tmp_path: Path, tiny_recipe: Any) -> None:
    run = make_run(tmp_path, state="running", rows=5)
    options = recipes.loads('name = "x"\n[log]\ntensorboard = false').log
    events: list[runs.Event] = []
    looks = threading.Semaphore(0)
    turn = 0

    def sleep(_: float) -> None:
        nonlocal turn
        turn += 1
        if turn == 1:
            log = Log(run, 3, options)  # The resume: rows from step 3 on are cut, then written again.
            log.write(3, {"loss": 9.0})
            log.close()
        elif turn == 2:
            log = Log(run, 4, options)  # A resume that takes nothing back.
            log.write(4, {"loss": 8.0})
            log.close()
        else:
            write_status(run, "done", 5, 0)
        looks.release()

    events = list(runs.follow(run, sleep=sleep))
    told = [(event.kind, event.step) for event in events if event.kind in ("row", "cut")]
    assert told == [("row", n) for n in range(5)] + [("cut", 3), ("row", 3), ("row", 4)]
    assert events[-1].kind == "end"


def test_watch_waits_for_a_run_that_has_written_nothing_yet(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="running", rows=0)
    (run / "metrics.jsonl").unlink()

    def sleep(_: float) -> None:
        (run / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
        write_status(run, "done", 1, 0)

    assert [event.kind for event in runs.follow(run, sleep=sleep)] == ["row", "end"]


def test_watch_draws_a_table_on_a_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="done", rows=3)
    leader, follower = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-m", "kdctool", "runs", "watch", str(run)], stdout=follower, env=environment
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # The other end was closed.
        pass
    os.close(leader)
    assert process.wait(timeout=30) == 0
    assert b"loss" in shown
    assert b"\x1b[" in shown
    assert b"1.8" in shown


@pytest.mark.parametrize("arguments", [["list"], ["show", "tiny-s0-abcdef"], ["watch", "tiny-s0-abcdef", "--once"]])
def test_no_torch_is_loaded(tmp_path: Path, arguments: list[str]) -> None:
    make_run(tmp_path)
    code = "import sys; from kdctool.cli import run; code = run(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    asked = ["runs", *arguments, "--root", str(tmp_path)]
    assert subprocess.run([sys.executable, "-c", code, *asked], stdout=subprocess.DEVNULL, check=False).returncode == 0
