"""The demo as a newcomer runs it: it must learn, say so honestly, and leave a model that opens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kdctool


@pytest.mark.e2e
def test_the_demo_learns_and_its_export_opens(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kdctool", "demo", "--out", str(tmp_path / "my demo"), "--format", "json"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["n_scored"] == 40
    for metric in ("a2v_r5", "v2a_r5"):
        trained, untrained = found["trained"][metric], found["untrained"][metric]
        assert trained["chance"] == pytest.approx(0.125)
        assert trained["low"] > 3 * trained["chance"]
        assert trained["low"] > untrained["value"]
    accuracy = found["classification"]["top1"]
    assert accuracy["low"] > accuracy["chance"]

    for run, section, pictures in (("pretrain", "Retrieval", 80), ("finetune", "Classification", 0)):
        page = (tmp_path / "my demo" / "runs" / run / "report.html").read_text(encoding="utf-8")
        assert f">{section}</h2>" in page
        assert page.count("data:image/") == pictures
    assert "report" in found["seconds"]
    assert all(Path(page).is_file() for page in found["reports"])

    folder = tmp_path / "my demo" / "export"
    opened = kdctool.load(folder)
    assert opened.classifier is not None
    frame = torch.zeros(1, 3, opened.recipe.model.image_size, opened.recipe.model.image_size)
    assert opened.encoder.embed_video(frame).shape == (1, opened.recipe.model.video_tokens, opened.recipe.model.width)
    assert {path.suffix for path in folder.iterdir()} >= {".onnx", ".safetensors", ".json", ".md"}
