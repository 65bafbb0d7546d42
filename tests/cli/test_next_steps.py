"""A next step is pasted as it stands: paths with spaces are quoted, and options exist."""

import json
import math
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kdctool
from kdctool import recipe as recipes
from kdctool.cli import run
from kdctool.cli.extract_rows import rows_of
from kdctool.cli.shard import train_with
from kdctool.cli.show import table
from kdctool.errors import DataFault, UsageFault, VerificationFault, quoted
from kdctool.files import InUse, locked, write_json
from kdctool.media.settings import Settings
from kdctool.recipe.machine import Guard
from kdctool.recipe.study import load_study
from kdctool.registry import options_table
from kdctool.stages import embed, run_folder
from kdctool.stages.extract_summary import Summary, judge
from kdctool.stages.foreign import no_model
from kdctool.stages.runs import find
from kdctool.tasks import tasks
from kdctool.train.guard import NonFiniteError, NonFiniteGuard


def test_a_path_with_a_space_is_quoted_and_a_plain_one_is_not() -> None:
    assert quoted(Path("my shards")) == "'my shards'"
    assert train_with("my shards").startswith("kdctool recipe new --from 'my shards' > mine.toml")
    assert train_with("shards/").startswith("kdctool recipe new --from shards/ >")


def test_a_missing_folder_is_named_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["shard", str(tmp_path / "no clips"), str(tmp_path / "shards")]) == 2
    assert f"next:  kdctool extract VIDEOS '{tmp_path / 'no clips'}'" in capsys.readouterr().err


def test_labels_of_several_files_are_named_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a b.csv", tmp_path / "c.csv"]
    for number, file in enumerate(files):
        file.write_text(f"path,label\n{number}.mp4,dog\n")
    assert run(["data", "audit", *map(str, files)]) == 0
    assert f"next: kdctool data audit '{files[0]}' {files[1]} --clips OUT" in capsys.readouterr().out


def test_a_missing_run_is_not_answered_with_an_option_that_report_lacks(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="no run nosuch") as caught:
        find(Path("nosuch"), tmp_path)
    assert "--root" not in caught.value.next_step


def test_an_unknown_option_of_a_task_names_those_there_are() -> None:
    with pytest.raises(UsageFault, match="task 'retrieval', option framez: there is no such option") as caught:
        tasks.options("retrieval", {"framez": 1})
    assert caught.value.next_step.startswith("did you mean frames? its options are ")
    with pytest.raises(UsageFault, match="option frames: must be 'mid', 'mean' or 'diagonal', got 'alll'"):
        tasks.options("retrieval", {"frames": "alll"})


def test_an_empty_recipe_says_that_it_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text("")
    assert run(["recipe", "validate", str(tmp_path / "mine.toml")]) == 2
    told = capsys.readouterr().err
    assert "mine.toml is empty" in told
    assert "kdctool recipe new --from SHARDS" in told


def test_a_typo_in_a_recipe_has_a_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nsead = 1\n')
    assert run(["recipe", "validate", str(tmp_path / "mine.toml")]) == 2
    assert "next:  kdctool recipe schema" in capsys.readouterr().err


def test_extracted_clips_are_not_embedded_as_videos(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.jsonl", {})
    with pytest.raises(UsageFault, match="holds extracted clips") as caught:
        embed._shards(None, tmp_path, tmp_path / "f.npy", None, False, None)  # type: ignore[arg-type]
    assert caught.value.next_step.startswith("kdctool shard ")


def test_a_table_in_a_pipe_breaks_no_name_in_two(capsys: pytest.CaptureFixture[str]) -> None:
    long = "runs/" + "a" * 200
    table(f"verify {long}", [], [["model", long]])
    assert f"verify {long}\n" in (told := capsys.readouterr().out)
    assert told.count(long) == 2


def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback() -> None:
    stopped = """
import sys
class Stop:
    def find_spec(self, name, *rest):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
from kdctool.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", stopped], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted before it began\n")


def test_a_run_with_damaged_json_does_not_hide_the_newest_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "damaged"):
        write_json(tmp_path / name / "status.json", {"state": "done"})
        write_json(tmp_path / name / "run.json", {"kind": "pretrain"})
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert run_folder.newest(tmp_path) == tmp_path / "good"
    assert "damaged is not looked at" in capsys.readouterr().err


def test_a_run_with_damaged_json_is_gone_on_with_by_a_message(tmp_path: Path) -> None:
    recipe = recipes.loads('name = "mine"')
    run_folder.prepare(tmp_path, recipe, "pretrain", "d" * 64, {})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(VerificationFault, match=r"run\.json is damaged"):
        run_folder.prepare(tmp_path, recipe, "pretrain", "d" * 64, {})


def test_a_model_that_is_not_there_says_in_python_too_what_a_run_is(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="does not exist") as caught:
        kdctool.load(tmp_path / "nosuch")
    shown = "".join(traceback.format_exception(caught.value))
    assert "next: a run is a folder under runs/" in shown


def test_commands_in_next_steps_quote_paths_with_spaces(tmp_path: Path) -> None:
    weights = tmp_path / "my weights.pth"
    weights.touch()
    assert f"kdctool import '{weights}' FOLDER" in no_model(weights).next_step
    study = tmp_path / "my study.toml"
    study.write_text('name = "mine"\n[model]\nwidth = 8\n')
    with pytest.raises(UsageFault, match="is a recipe, not a study") as caught:
        load_study(study)
    assert caught.value.next_step.startswith(f"kdctool sweep '{study}' --grid")
    batch = {name: torch.zeros(2, dtype=torch.int64) for name in ("row", "clip")}
    stopped = NonFiniteError(3, math.nan, 1.0)
    with pytest.raises(NonFiniteError):
        NonFiniteGuard(Guard(), tmp_path / "my run", {}, []).judge(stopped, [batch])
    capture = tmp_path / "my run" / "nonfinite" / "step-00000003.json"
    assert stopped.next_step.startswith(f"kdctool replay '{capture}';")


def test_a_capture_that_is_not_there_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", str(tmp_path / "nosuch")]) == 2
    told = capsys.readouterr().err
    assert f"error: cannot read {tmp_path / 'nosuch'}: No such file or directory\nnext:  " in told
    write_json(tmp_path / "step.json", {"step": 1, "clips": [], "data_digest": ""})
    assert run(["replay", str(tmp_path / "step.json")]) == 2
    assert "does not lie in a run" in capsys.readouterr().err


@pytest.mark.parametrize("stride", ["-1", "0"])
def test_a_stride_that_makes_no_sense_has_a_next_step(stride: str, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=rf"--stride = {stride}.0 is not between 0.1 and 86400") as caught:
        Settings(stride_s=float(stride)).check()
    assert caught.value.next_step == "give --stride within these"
    (tmp_path / "index.json").touch()
    with pytest.raises(UsageFault, match="--stride cut videos"):
        embed._shards(None, tmp_path, tmp_path / "f.npy", float(stride), False, None)  # type: ignore[arg-type]


def test_a_command_like_no_other_is_answered_with_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["frobnicate"]) == 2
    assert "next:  kdctool --help lists the commands" in capsys.readouterr().err
    assert run(["evl"]) == 2
    told = capsys.readouterr().err
    assert "Did you mean 'eval'?" in told
    assert "next:" not in told


@pytest.mark.parametrize("task", tasks.names())
def test_the_options_of_every_task_are_listed_with_default_and_meaning(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "--task", task, "--option", "help", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == tasks.get(task).options.model_fields.keys()
    assert all(option["meaning"] for option in told.values())
    # What is shown as a default can be given as it stands.
    assert options_table([f"{name}={json.dumps(option['default'])}" for name, option in told.items()]) == {
        name: option["default"] for name, option in told.items()
    }
    assert run(["eval", "--task", task, "--option", "help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in told)
    assert "next: --task names another task: " in shown


def test_clips_without_sound_are_said_to_be_kept_by_allow_missing(tmp_path: Path) -> None:
    counts, reasons = {"ok": 1, "quarantined": 5}, {"no_audio": 3, "no_video": 1, "empty": 1}
    done = Summary(tmp_path, 6, 0, 0, 0, 0, counts=counts, reasons=reasons)
    rows = dict(rows_of(done))
    assert rows["  why, for each"] == str(tmp_path / "quarantine.jsonl")
    assert rows["  to keep them"].startswith("kdctool extract --allow-missing both, into another folder, keeps 4")
    assert "  why, for each" not in dict(rows_of(replace(done, reasons={}, counts={"ok": 1})))
    none = replace(done, counts={"quarantined": 3}, reasons={"no_audio": 3})
    with pytest.raises(DataFault, match="none of 3 clips is usable: 3 no_audio") as caught:
        judge(none, 1.0)
    assert "kdctool extract --retry-quarantined tries them again" in caught.value.next_step
    assert "kdctool extract --allow-missing audio" in caught.value.next_step


HOLDS = """
import os, sys, time
from pathlib import Path
from kdctool.files import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    if sys.argv[2] == "dies":
        os._exit(9)
    time.sleep(60)
"""


@pytest.mark.parametrize("fate", ["lives", "dies"])
def test_a_lock_that_outlived_its_process_names_who_has_it(fate: str, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path), fate], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        if fate == "dies":
            process.wait()
        with pytest.raises(InUse) as caught, locked(tmp_path):
            pass
        if fate == "lives":
            assert caught.value.cause.startswith(f"{tmp_path} is in use by process {process.pid} on ")
        else:
            assert caught.value.cause.startswith(f"process {process.pid}, which used {tmp_path}, is gone")
            assert caught.value.next_step == f"wait until it ends, or end it: kill {child}"
    finally:
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
