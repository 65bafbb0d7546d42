"""What stands in a page: numbers that equal their JSON, names that stay text, a size that is kept, equal bytes."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_runs
from report.page_reading import Page, agrees, read

from kdctool.cli import run as command
from kdctool.stages import report as stage

CROOKED = b'{"details": {"confusion": {"labels": ["a"], "counts": [[1, 2]]}}}'
"""Two answers for one class."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.make_full(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def page(full: Path) -> Page:
    return read(stage.run(full).path.read_bytes())


@pytest.fixture
def copied(full: Path, tmp_path: Path) -> Path:
    """The same run, free to be damaged; its clips are found by the absolute path in details.json."""
    return shutil.copytree(full, tmp_path / "runs" / "copied")


def test_every_cell_of_every_table_says_what_the_embedded_json_says(page: Page) -> None:
    told = page.results["tables"]
    assert set(told) == set(page.tables)
    assert len(told) > 15
    for name, table in told.items():
        head, *rows = page.tables[name]
        assert head == [column.strip() for column in table["columns"]], name
        assert len(rows) == len(table["rows"]), name
        for row, values in zip(rows, table["rows"], strict=True):
            assert all(agrees(text, value) for text, value in zip(row, values, strict=True)), (name, row, values)


def test_the_embedded_results_are_those_of_the_evaluations(full: Path, page: Page) -> None:
    told = {one["folder"]: one["results"] for one in page.results["evaluations"]}
    assert set(told) == {"retrieval", "localization", "inpainting", "classification", "diagnose"}
    for task, results in told.items():
        assert results == json.loads((full / "eval" / task / "results.json").read_text())


def test_n_missing_chance_digests_and_published_numbers_can_be_read(full: Path, page: Page) -> None:
    results = json.loads((full / "eval" / "retrieval" / "results.json").read_text())
    for text in (
        "24 of 26 clips scored; missing 2: 2 no_audio",
        results["data_digest"],
        results["weights_sha256"],
        "retrieval/frame-mid@1",
        "a paper <b>that</b> says so",
    ):
        assert text in page.text, text
    row = next(row for row in page.tables["eval-0-metrics"] if row[0] == "a2v_r1")
    metric = results["metrics"]["a2v_r1"]
    assert row[1:5] == [f"{metric[key]:.3f}" for key in ("value", "low", "high", "chance")]
    assert row[5:] == ["0.300", "a paper <b>that</b> says so"]


def test_names_stay_text_whatever_they_hold(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert not [attrs for tag, attrs in page.elements if tag == "img" and "src" in attrs]
    for text in (
        "<img src=x onerror=alert(1)>.mp4",
        "</script><script>alert(2)</script>.mp4",
        "<script>alert(3)</script>",
        "white <script>alert(4)</script>",
        "two\\nlines\\tand a tab.mp4",
        "not-utf8-\\xff\\xfe.mp4",
        "\\u202egpj.mp4",
        "{{ 7 * 7 }}",
    ):
        assert text in page.text, text


def test_nothing_in_the_page_points_outside(page: Page) -> None:
    for _, attrs in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attrs.get(name)
            assert not value or value.startswith(("#", "data:")), (name, value)
    policy = next(attrs["content"] for tag, attrs in page.elements if tag == "meta" and "Security" in str(attrs))
    assert str(policy).startswith("default-src 'none'; ")
    assert "unsafe" not in str(policy)
    assert "http" not in str(policy)


def test_equal_runs_give_equal_bytes(full: Path, tmp_path: Path) -> None:
    one = stage.run(full, out=tmp_path / "one.html").path.read_bytes()
    assert one == stage.run(full, out=tmp_path / "two.html").path.read_bytes()


def test_the_gallery_shows_the_stored_ranking_and_marks_the_true_item(full: Path, page: Page) -> None:
    assets = np.load(full / "eval" / "retrieval" / "assets.npz")
    gallery = page.results["evaluations"][0]["gallery"]
    for way in ("a2v", "v2a"):
        assert gallery[way]["top"] == assets[f"gallery.top_{way}"].tolist()
        assert gallery[way]["rank"] == assets[f"gallery.rank_{way}"].tolist()
    table = page.tables["eval-0-gallery"]
    for row in table[1:]:
        assert (row[6] == "yes") == (row[1] == row[4])
        if row[6] == "yes":
            assert float(row[2]) == float(row[3])


def test_a_size_limit_takes_picture_size_first_then_sounds_and_is_told(full: Path, tmp_path: Path) -> None:
    whole = stage.run(full, out=tmp_path / "whole.html")
    assert not whole.is_small
    assert not whole.left_out
    small = stage.run(full, out=tmp_path / "small.html", max_mb=whole.size / 1e6 * 0.6)
    assert small.is_small
    assert small.size <= whole.size * 0.6
    assert "pictures are half as large" in read(small.path.read_bytes()).text
    tiny = stage.run(full, out=tmp_path / "tiny.html", max_mb=whole.size / 1e6 * 0.5)
    assert tiny.size <= whole.size * 0.5
    assert tiny.left_out["sound"] > 0
    assert tiny.kept["picture"] > 10 * tiny.kept.get("sound", 0)
    text = read(tiny.path.read_bytes()).text
    assert f"{tiny.left_out['sound']} of {whole.kept['sound']} sounds" in text


def test_a_run_without_evaluations_has_its_curves_and_the_commands_to_type(full: Path, copied: Path) -> None:
    shutil.rmtree(copied / "eval")
    done = stage.run(copied)
    page = read(done.path.read_bytes())
    assert not done.sections
    assert len(page.results["curves"]["loss"]["step"]) > 100
    assert sum(tag == "figure" for tag, _ in page.elements) > 5
    for task in ("retrieval", "localization", "inpainting", "diagnose"):
        assert f"kdctool eval {copied} --task {task}" in page.text
    assert f"kdctool finetune {copied}" in page.text


def test_a_folder_that_holds_nothing_yet_still_gives_a_page(full: Path, copied: Path) -> None:
    shutil.rmtree(copied / "eval")
    (copied / "metrics.jsonl").unlink()
    page = read(stage.run(copied).path.read_bytes())
    assert "Nothing was measured yet." in page.text
    assert "No rows in metrics.jsonl" in page.text


def test_missing_shards_leave_names_and_a_reason(full: Path, copied: Path) -> None:
    for path in copied.glob("eval/*/details.json"):
        details = json.loads(path.read_text())
        details["data"]["shards"] = str(copied / "gone")
        path.write_text(json.dumps(details))
    done = stage.run(copied)
    page = read(done.path.read_bytes())
    assert "no pictures and no sound of clips: there are no shards" in page.text
    assert "sound" not in done.kept
    assert len(page.tables["eval-0-gallery"]) > 60
    found = stage.run(copied, shards=full.parent.parent / "shards")
    assert found.kept["sound"] == 24


def test_shards_with_other_content_are_not_shown_as_if_they_were_scored(copied: Path) -> None:
    path = copied / "eval" / "retrieval" / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "data_digest": "0" * 64}))
    assert "now holds other data" in read(stage.run(copied).path.read_bytes()).text


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("retrieval/results.json", b"{", "results.json cannot be read"),
        ("retrieval/results.json", b"[]", "results.json holds no object"),
        ("retrieval/assets.npz", b"PK nothing", "assets.npz cannot be read"),
        ("diagnose/details.json", b"{", "details.json cannot be read"),
        ("classification/details.json", CROOKED, "do not hold"),
        ("diagnose/details.json", b'{"details": {"towers": {"audio": [{"ahd_mean": 1}]}}}', "do not hold"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_the_rest_is_shown(copied: Path, file: str, damage: bytes, says: str) -> None:
    (copied / "eval" / file).write_bytes(damage)
    page = read(stage.run(copied).path.read_bytes())
    assert says in page.text
    assert len(page.results["evaluations"]) == 5


def test_a_collapsed_model_is_called_so_and_has_no_perfect_score(full: Path, copied: Path) -> None:
    assert "Collapsed" not in read(stage.run(copied).path.read_bytes()).text
    report_runs.add_retrieval(copied, full.parent.parent / "shards", collapsed=True)
    page = read(stage.run(copied).path.read_bytes())
    assert "Collapsed: the model ranks every clip exactly as guessing would" in page.text
    row = next(row for row in page.tables["eval-0-metrics"] if row[0] == "a2v_r1")
    assert row[1] == row[4] == "0.042"


def test_values_that_are_no_number_are_counted_and_null(copied: Path) -> None:
    lines = [json.dumps({"step": n, "loss": float("nan") if n == 3 else 1.0, "odd/thing": n}) for n in range(6)]
    (copied / "metrics.jsonl").write_text("\n".join([*lines, "half a li"]))
    page = read(stage.run(copied).path.read_bytes())
    assert page.results["curves"]["loss"]["step"] == [0, 1, 2, 4, 5]
    assert "1 values that are no finite number are not drawn." in page.text
    assert "NaN" not in page.scripts["kdctool-results"]


def test_more_classes_than_can_be_drawn_become_a_picture(full: Path, copied: Path) -> None:
    labels = [f"class {n}" for n in range(60)]
    report_runs.add_classification(copied, full.parent.parent / "shards", labels)
    page = read(stage.run(copied).path.read_bytes())
    assert any("Confusion of 60 classes" in str(attrs.get("alt")) for tag, attrs in page.elements if tag == "img")
    assert len(page.tables["eval-3-classes"]) == 61


def test_two_evaluations_of_one_task_are_told_apart(full: Path, copied: Path) -> None:
    shutil.copytree(copied / "eval" / "retrieval", copied / "eval" / "other" / "retrieval")
    page = read(stage.run(copied).path.read_bytes())
    assert "Retrieval (retrieval)" in page.text
    assert "Retrieval (other/retrieval)" in page.text
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_a_task_that_the_page_does_not_know_shows_its_metrics_and_details(full: Path, copied: Path) -> None:
    metrics = {"wonder": report_runs.metric(0.5, 0.4, 0.6, 0.1)}
    report_runs.write_eval(copied, "plugin", metrics, full.parent.parent / "shards", {"more": [1, {"<b>": None}]})
    page = read(stage.run(copied).path.read_bytes())
    assert next(row for row in page.tables["eval-5-metrics"] if row[0] == "wonder")[1] == "0.500"
    assert '"<b>": null' in page.text


def test_the_command_tells_path_size_and_what_is_missing(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sub" / "page.html"
    assert command(["report", str(full), "-o", str(out), "--title", "A <title>", "--format", "json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["bytes"] == out.stat().st_size
    assert told["not_evaluated"] == ["probe"]
    assert "<title>A &lt;title&gt;</title>" in out.read_text()
    assert command(["report", str(full), "-o", str(out)]) == 0
    assert f"next: kdctool eval {full} --task probe" in capsys.readouterr().out


def test_no_run_ends_with_the_usage_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["report", str(tmp_path / "none")]) == 2
    assert "no run" in capsys.readouterr().err


def test_every_template_goes_into_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["kdctool"]
    packed = {path for pattern in patterns for path in (ROOT / "kdctool").glob(pattern)}
    templates = set((ROOT / "kdctool" / "report" / "templates").iterdir())
    assert len(templates) > 5
    assert templates <= packed
