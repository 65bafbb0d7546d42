"""Every way to hold it wrong: one line of cause, one next step, the documented exit code, nothing written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdctool.cli import run as kdctool
from kdctool.files import read_json


class Ended:
    """How a command ended."""

    def __init__(self, code: int, err: str) -> None:
        self.code, self.err = code, err
        lines = err.splitlines()
        self.cause = next((line for line in lines if line.startswith("error: ")), "")
        self.next = next((line for line in lines if line.startswith("next:")), "")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def one(*arguments: object) -> Ended:
        capfd.readouterr()
        code = kdctool([str(argument) for argument in arguments])
        return Ended(code, capfd.readouterr().err)

    return one


Run = Callable[..., Ended]
Recipe = Callable[..., Path]


def test_a_missing_folder_of_videos(run: Run, tmp_path: Path) -> None:
    ended = run("extract", tmp_path / "nowhere", tmp_path / "out")
    assert ended.code == 2
    assert "nowhere" in ended.cause
    assert ended.next
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_of_videos(run: Run, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    ended = run("extract", tmp_path / "videos", tmp_path / "out")
    assert ended.code == 3
    assert ended.next


def test_a_missing_recipe_is_answered_with_the_shipped_ones(run: Run, tmp_path: Path) -> None:
    ended = run("pretrain", tmp_path / "vggsoun.toml")
    assert ended.code == 2
    assert "did you mean recipes/vggsound.toml" in ended.next


def test_wrong_types_and_unknown_keys_are_told_together_with_their_lines(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('name = "r"\n[optim]\nlr = "fast"\n[model]\ndeptth = 3\n')
    ended = run("pretrain", path)
    assert ended.code == 2
    assert f"{path}:3  optim.lr must be a valid number, got 'fast'" in ended.err
    assert f"{path}:5  unknown key model.deptth (did you mean model.depth?)" in ended.err
    assert "2 errors; nothing was written" in ended.err


def test_a_missing_shard_folder_is_answered_with_the_commands_that_make_one(
    run: Run, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    ended = run("pretrain", tiny_recipe(), "--shards", tmp_path / "none", "--out", tmp_path / "run")
    assert ended.code == 3
    assert "kdctool shard" in ended.next
    assert not (tmp_path / "run").exists()


def test_a_shard_folder_without_an_index_is_indexed_once(
    run: Run, tiny_recipe: Recipe, tiny_shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_shards, tmp_path / "shards")
    (tmp_path / "shards" / "index.json").unlink()
    arguments = ("pretrain", tiny_recipe("training.epochs=1"), "--shards", tmp_path / "shards", "--device", "cpu")
    assert run(*arguments, "--out", tmp_path / "run").code == 0
    assert (tmp_path / "shards" / "index.json").exists()


def test_a_truncated_tar_is_named_before_training(
    run: Run, tiny_recipe: Recipe, tiny_shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_shards, tmp_path / "shards")
    tar = min((tmp_path / "shards").glob("train-*.tar"))
    os.truncate(tar, tar.stat().st_size // 2)
    ended = run("pretrain", tiny_recipe(), "--shards", tmp_path / "shards", "--out", tmp_path / "run")
    assert ended.code in (3, 5)
    assert tar.name in ended.cause
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert run("verify", tmp_path / "shards").code == 5


def test_a_flipped_bit_is_named_with_shard_and_member(
    run: Run, tiny_recipe: Recipe, tiny_shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_shards, tmp_path / "shards")
    for tar in (tmp_path / "shards").glob("train-*.tar"):
        data = bytearray(tar.read_bytes())
        for place in range(600, len(data), 1500):
            data[place] ^= 1
        tar.write_bytes(data)
    ended = run(
        "pretrain", tiny_recipe(), "--shards", tmp_path / "shards", "--out", tmp_path / "run", "--device", "cpu"
    )
    assert ended.code in (3, 5)
    assert "train-" in ended.cause
    assert read_json(tmp_path / "run" / "status.json")["state"] == "failed"


def test_a_checkpoint_of_another_model(run: Run, tiny_recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("pretrain", tiny_recipe("training.epochs=1"), "--out", out, "--device", "cpu").code == 0
    init = f"model.init={out}"
    ended = run("pretrain", tiny_recipe(init, "model.width=64"), "--out", tmp_path / "b", "--device", "cpu")
    assert ended.code == 2
    assert "patch_embed" in ended.cause or "tensors" in ended.cause
    assert ended.next
    (out / "run.json").unlink()
    ended = run("pretrain", tiny_recipe("training.epochs=1", "model.width=64"), "--out", out, "--device", "cpu")
    assert ended.code == 2
    assert "another model" in ended.cause


def test_weights_that_would_run_code(run: Run, tiny_recipe: Recipe, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {canary}",)

    torch.save({"x": Payload()}, tmp_path / "evil.pth")
    changed = tiny_recipe(f"model.init={tmp_path / 'evil.pth'}")
    ended = run("pretrain", changed, "--out", tmp_path / "run", "--device", "cpu")
    assert ended.code in (2, 5)
    assert not canary.exists()


def test_more_processes_than_the_machine_has(run: Run, tiny_recipe: Recipe, tmp_path: Path) -> None:
    ended = run("pretrain", tiny_recipe(), "--nproc", "4096", "--device", "cpu", "--out", tmp_path / "run")
    assert ended.code == 2
    assert "--nproc 4096 is more than the" in ended.cause
    assert ended.next
    assert not (tmp_path / "run").exists()


def test_fewer_clips_than_a_batch(run: Run, tiny_recipe: Recipe, tmp_path: Path) -> None:
    changed = tiny_recipe("training.global_batch=100")
    ended = run("pretrain", changed, "--out", tmp_path / "run", "--device", "cpu")
    assert ended.code == 3
    assert "24 clips, fewer than one batch of 100" in ended.cause
    assert not (tmp_path / "run").exists()


def test_a_label_that_is_not_in_the_list(run: Run, tmp_path: Path, tiny_extraction: Path) -> None:
    (tmp_path / "classes.txt").write_text("blue\ngreen\n")
    rows = [line.split('"source":"')[1].split('"')[0] for line in (tiny_extraction / "manifest.jsonl").open()]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{row},grean\n" for row in rows))
    ended = run(
        "shard", tiny_extraction, tmp_path / "shards", "--labels", tmp_path / "labels.csv",
        "--label-list", tmp_path / "classes.txt",
    )  # fmt: skip
    assert ended.code == 3
    assert "grean" in ended.cause
    assert not list(tmp_path.glob("shards/*.tar"))


def test_labels_that_the_classifier_does_not_know(
    run: Run, tiny_recipe: Recipe, tiny_extraction: Path, tmp_path: Path
) -> None:
    pre, fine = tmp_path / "pre", tmp_path / "fine"
    assert run("pretrain", tiny_recipe("training.epochs=1"), "--out", pre, "--device", "cpu").code == 0
    assert run("finetune", pre, "--out", fine, "--device", "cpu").code == 0
    uids = [json.loads(line)["uid"] for line in (tiny_extraction / "manifest.jsonl").open()]
    (tmp_path / "labels.csv").write_text("uid,label\n" + "".join(f"{uid},violet\n" for uid in uids))
    assert run("shard", tiny_extraction, tmp_path / "shards", "--labels", tmp_path / "labels.csv").code == 0
    ended = run("eval", fine, "--task", "classification", "--shards", tmp_path / "shards", "--device", "cpu")
    assert ended.code == 3
    assert "violet" in ended.cause


def test_a_pretraining_has_no_classifier(run: Run, tiny_recipe: Recipe, tmp_path: Path) -> None:
    pre = tmp_path / "pre"
    assert run("pretrain", tiny_recipe("training.epochs=1"), "--out", pre, "--device", "cpu").code == 0
    ended = run("eval", pre, "--task", "classification", "--device", "cpu")
    assert ended.code == 2
    assert "kdctool finetune" in ended.next


def test_eval_without_any_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("eval", "--task", "retrieval")
    assert ended.code == 2
    assert "kdctool pretrain" in ended.next


def test_no_ffmpeg_anywhere(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"x" * 100)
    (tmp_path / "empty").mkdir()
    hide = "import sys; sys.modules['imageio_ffmpeg'] = None; from kdctool.cli import main; main()"
    arguments = ["extract", str(tmp_path / "videos"), str(tmp_path / "out"), "--decoder", "ffmpeg"]
    environment = {**os.environ, "PATH": str(tmp_path / "empty")}
    environment.pop("KDCTOOL_FFMPEG", None)
    done = subprocess.run([sys.executable, "-c", hide, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    assert "ffmpeg" in done.stderr
    assert "next:" in done.stderr


def test_a_base_size_recipe_on_a_cpu_is_told_what_it_costs(run: Run, tiny_shards: Path) -> None:
    ended = run("pretrain", "recipes/vggsound.toml", "--shards", tiny_shards, "--device", "cpu", "--dry-run",
                "--set", "training.global_batch=24", "--set", "training.epochs=4000")  # fmt: skip
    assert ended.code == 0
    assert "hours and" in ended.err
    assert "recipes/small.toml" in ended.err
    assert "will not be reached" in ended.err


def test_an_unknown_command_and_a_wrong_option(run: Run) -> None:
    assert run("pretrian", "x.toml").code == 2
    assert run("shard", "--frobnicate").code == 2
