"""kdctool doctor: each row says what would fail and how to mend it, and FAIL ends with 4."""

import json
import time

import pytest
import typer

from kdctool.cli import doctor as command
from kdctool.stages import doctor, doctor_machine, doctor_software
from kdctool.stages.doctor import Report, Row


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return doctor.run(tmp_path_factory.mktemp("out"))


def test_a_machine_that_runs_the_tests_has_no_failure(report):
    assert [row for row in report.rows if row.status == "FAIL"] == []


def test_every_room_of_the_machine_is_looked_at(report):
    names = {row.check for row in report.rows}
    wanted = {
        "python", "versions", "torch", "torchvision", "torchaudio", "ffmpeg", "ffmpeg decoders", "ffmpeg encoders",
        "PyAV", "FLAC", "GPU", "bf16", "cores", "memory", "shared memory", "open files", "disk", "writing",
        "several processes",
    }  # fmt: skip
    assert wanted <= names


def test_no_check_breaks_and_none_is_without_a_finding(report):
    assert not [row for row in report.rows if "the check itself failed" in row.found]
    assert all(row.found for row in report.rows)


def test_what_is_not_ok_says_what_fails_and_the_fix(report):
    assert all(row.breaks and row.fix for row in report.rows if row.status != "OK")


def test_doctor_is_quick_and_leaves_nothing_behind(tmp_path):
    start = time.monotonic()
    doctor.run(tmp_path)
    assert time.monotonic() - start < 15
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_fails():
    rows = {row.check: row for row in doctor.run(doctor_machine.Path("/proc/nowhere")).rows}
    assert rows["writing"].status == "FAIL"
    assert "writable" in rows["writing"].fix


def test_a_missing_ffmpeg_fails_with_its_fix(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCTOOL_FFMPEG", str(tmp_path / "none"))
    (row,) = doctor_software.ffmpeg()
    assert (row.check, row.status) == ("ffmpeg", "FAIL")
    assert row.fix


def test_an_ffmpeg_that_cannot_decode_aac_fails(tmp_path, monkeypatch):
    poor = tmp_path / "ffmpeg"
    poor.write_text("#!/bin/sh\necho 'ffmpeg version 0.1 Copyright'\necho ' V....D h264 x'\n")
    poor.chmod(0o755)
    monkeypatch.setenv("KDCTOOL_FFMPEG", str(poor))
    rows = {row.check: row for row in doctor_software.ffmpeg()}
    assert rows["ffmpeg"].found.startswith("0.1")
    assert rows["ffmpeg decoders"].status == "FAIL"
    assert "aac" in rows["ffmpeg decoders"].found


def test_an_empty_ffmpeg_is_reported_and_does_not_stop_the_rest(tmp_path, monkeypatch):
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("KDCTOOL_FFMPEG", str(broken))
    (row,) = doctor_software.ffmpeg()
    assert row.status == "FAIL"


@pytest.mark.parametrize(
    ("name", "version", "torch_version", "fit"),
    [
        ("torchvision", "0.26.0", "2.11.0+cu130", True),
        ("torchvision", "0.25.0", "2.11.0", False),
        ("torchaudio", "2.11.0", "2.11.0", True),
        ("torchaudio", "2.10.0", "2.11.0", False),
        ("torchaudio", "2.11.1+cpu", "2.11.0+cpu", True),
    ],
)
def test_packages_built_for_another_torch_are_found(name, version, torch_version, fit):
    assert doctor_software.fits(name, version, torch_version) is fit


@pytest.mark.parametrize(
    ("major", "minor", "built", "served"),
    [
        (9, 0, ["sm_75", "sm_80", "sm_90"], True),
        (8, 9, ["sm_75", "sm_80", "sm_86"], True),
        (7, 0, ["sm_75", "sm_80"], False),
        (12, 1, ["sm_90", "sm_120a"], True),
        (10, 3, ["sm_90", "compute_90"], True),
        (6, 1, ["sm_75", "compute_75"], False),
    ],
)
def test_gpus_that_this_torch_was_not_built_for_are_found(major, minor, built, served):
    assert doctor_machine.arch_served(major, minor, built) is served


def test_the_worst_row_is_the_status():
    rows = [Row("a", "OK", "x"), Row("b", "WARN", "x", "y", "z"), Row("c", "FAIL", "x", "y", "z")]
    assert Report(tuple(rows[:1])).status == "OK"
    assert Report(tuple(rows[:2])).status == "WARN"
    assert Report(tuple(rows)).status == "FAIL"


def test_the_command_prints_one_json_object(tmp_path, capsys):
    command.doctor(tmp_path, "json")
    payload = json.loads(capsys.readouterr().out)
    assert payload["status"] in ("OK", "WARN")
    assert {"check", "status", "found", "breaks", "fix"} == set(payload["rows"][0])


def test_the_command_ends_with_4_when_a_row_fails(capsys):
    with pytest.raises(typer.Exit) as ended:
        command.doctor(doctor_machine.Path("/proc/nowhere"), "human")
    assert ended.value.exit_code == 4
    out = capsys.readouterr().out
    assert "FAIL writing" in out
    assert "fix:" in out
