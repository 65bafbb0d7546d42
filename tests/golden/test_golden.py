"""The golden data of the released code holds, and the harness notices when it does not."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
SIX = ("cavmae_pretrain", "kdc_pretrain", "masking", "data_audio", "data_image", "metrics_retrieval")
ALL = (
    *SIX, "cavmae_pretrain_joint2", "kdc_pretrain_shared_restore", "kdc_three_views_kd", "cavmae_finetune",
    "data_image_tiles", "metrics_classification",
)  # fmt: skip


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_check", HERE / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def verdicts(check: ModuleType) -> dict[str, dict]:
    return check.check(HERE, lambda line: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden data that may be spoilt."""
    for path in (*HERE.glob("*.json"), *HERE.glob("*.safetensors")):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


def spoil(folder: Path, case: str, tensor: str, by: float) -> None:
    path = folder / f"{case}.safetensors"
    tensors = load_file(path)
    tensors[tensor].flatten()[0] += by
    save_file(tensors, path)


@pytest.mark.parametrize("case", ALL)
def test_the_case_holds(case: str, verdicts: dict[str, dict]) -> None:
    verdict = verdicts[case]
    assert verdict["status"] == "holds", verdict
    assert verdict["compared"] > 0


def test_every_stored_number_is_compared(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    verdicts = check.check(HERE, lines.append)
    assert set(verdicts) == set(ALL)
    assert not [line for line in lines if "not compared" in line]


@pytest.mark.parametrize(
    ("case", "tensor", "by"),
    [
        ("cavmae_pretrain", "latent", 1e-4),
        ("cavmae_pretrain", "grad.mask_token", 1e-3),
        ("kdc_pretrain", "pred_v2", 1e-4),
        ("kdc_pretrain", "js_joint", 1e-4),
        ("masking", "time.mask", 1.0),
        ("data_audio", "fbank1", 1e-2 * 2),
        ("data_image", "input0", 1e-4),
        ("metrics_retrieval", "rank_a2v", 1),
        ("cavmae_finetune", "logits_audioonly", 1e-4),
        ("metrics_classification", "ap", 1e-6),
    ],
)
def test_one_changed_number_fails_its_case(
    check: ModuleType, folder: Path, case: str, tensor: str, by: float, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder, case, tensor, by)
    for path in folder.glob("*.json"):
        if path.stem not in (case, "data_image") and not path.stem.startswith("weights"):
            path.unlink()
    assert check.main([str(folder), "--json"]) == 5
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert cases[case]["status"] == "fails"
    assert cases[case]["worst"]["tensor"].startswith(tensor)


@pytest.mark.parametrize("key", ["loss", "alt.loss_c", "loss_mae_v"])
def test_a_changed_scalar_fails_its_case(check: ModuleType, folder: Path, key: str) -> None:
    path = folder / "cavmae_pretrain.json"
    about = json.loads(path.read_text())
    about["scalars"][key]["value"] += 1e-3
    path.write_text(json.dumps(about))
    assert check.one("cavmae_pretrain", path, lambda line: None)["worst"]["tensor"] == key


def test_a_parameter_that_should_have_no_gradient_is_noticed(check: ModuleType, folder: Path) -> None:
    path = folder / "cavmae_pretrain.json"
    about = json.loads(path.read_text())
    about["grad_l2_norm"]["norm.weight"] = None
    about["grad_l2_norm"]["modality_a"] *= 1.001
    path.write_text(json.dumps(about))
    lines: list[str] = []
    assert check.one("cavmae_pretrain", path, lines.append)["status"] == "fails"
    assert {line.split()[-1] for line in lines if "FAILS" in line} == {
        "grad_l2_norm.norm.weight", "grad_l2_norm.modality_a",
    }  # fmt: skip


def test_an_unknown_case_and_a_broken_one_do_not_stop_the_others(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "new.json").write_text(json.dumps({"case": "something_new", "tensors_file": "none"}))
    (tmp_path / "data_image.json").write_text(json.dumps({"case": "data_image", "tensors_file": "none.safetensors"}))
    for suffix in ("json", "safetensors"):
        shutil.copy(HERE / f"metrics_retrieval.{suffix}", tmp_path)
    verdicts = check.check(tmp_path, lambda line: None)
    assert {name: verdict["status"] for name, verdict in verdicts.items()} == {
        "something_new": "not_covered", "data_image": "fails", "metrics_retrieval": "holds",
    }  # fmt: skip
    json.dumps(verdicts, allow_nan=False)


def test_nan_never_holds(check: ModuleType, folder: Path) -> None:
    spoil(folder, "cavmae_pretrain", "latent", float("nan"))
    verdict = check.one("cavmae_pretrain", folder / "cavmae_pretrain.json", lambda line: None)
    assert verdict["status"] == "fails"
    json.dumps(verdict, allow_nan=False)


def test_the_script_runs_on_its_own_and_says_how_it_went(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "some"
    small.mkdir()
    for suffix in ("json", "safetensors"):
        shutil.copy(HERE / f"data_image.{suffix}", small)
    command = [sys.executable, str(HERE / "check.py")]
    run = subprocess.run([*command, str(small)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "input0" in run.stdout
    assert "holds" in run.stdout
    (tmp_path / "empty").mkdir()
    empty = subprocess.run([*command, str(tmp_path / "empty")], capture_output=True, text=True, check=False)
    assert empty.returncode == 2
    assert "no golden case" in empty.stderr


def test_spoiling_is_real(folder: Path) -> None:
    before = load_file(folder / "data_image.safetensors")["input0"]
    spoil(folder, "data_image", "input0", 1.0)
    assert not torch.equal(load_file(folder / "data_image.safetensors")["input0"], before)
