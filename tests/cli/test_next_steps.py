"""A next step is pasted as it stands: paths with spaces are quoted, and options exist."""

import subprocess
import sys
from pathlib import Path

import pytest

from kdctool import recipe as recipes
from kdctool.cli import run
from kdctool.cli.shard import train_with
from kdctool.cli.show import table
from kdctool.errors import UsageFault, VerificationFault, quoted
from kdctool.files import write_json
from kdctool.stages import embed, run_folder
from kdctool.stages.runs import find
from kdctool.tasks import tasks


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
