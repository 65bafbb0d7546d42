"""The cheat gates: they find what is planted, they do not find what is not there, and they say so with exit code 5."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from avdigits import gate_clips, gate_networks, gates
from avdigits.gates import Gate
from avdigits.sources import Sources
from avdigits_made_up import made_up

from kdctool.errors import VerificationFault


@pytest.fixture(scope="module")
def sources() -> Sources:
    return made_up()


@pytest.mark.parametrize(
    ("correct", "n", "is_control", "passed"),
    [(5_199, 10_000, False, True), (5_201, 10_000, False, False), (4_799, 10_000, False, False),
     (6_000, 10_000, True, True), (5_999, 10_000, True, False)],
)  # fmt: skip
def test_the_limits_are_52_percent_and_60_for_a_control(correct: float, n: int, is_control: bool, passed: bool) -> None:
    gate = Gate("g", correct, n, is_control)
    assert gate.passed is passed
    assert ("FAILED" in gate.said()) is not passed
    low, high = gate.interval
    assert low < correct / n < high


def test_exchanging_the_digits_turns_the_answer_round(sources: Sources) -> None:
    """So the network cannot learn that the first one always sounds."""
    clips = gate_clips.drawn(sources, "train", 6, 0, "video", False)
    network = gate_networks.WhichDigit().eval()
    with torch.no_grad():
        one = network(clips.seen, clips.boxes, clips.places)
        other = network(clips.seen, clips.boxes.flip(1), clips.places.flip(1))
    assert one.abs().max() > 0
    torch.testing.assert_close(one, -other)


def test_a_planted_leak_is_found_and_without_it_nothing_is(sources: Sources) -> None:
    shares = {}
    for leak in (True, False):
        learn = gate_clips.drawn(sources, "train", 400, 0, "sound", leak)
        network = gate_networks.fit("sound", learn, 6, 0)
        asked = gate_clips.drawn(sources, "test", 200, 1, "sound", leak)
        shares[leak] = gate_networks.correct("sound", network, asked) / 200
    assert shares[True] > 0.65
    assert 0.36 < shares[False] < 0.64  # Four standard errors of 200 answers.


def test_the_gates_clips_are_not_the_benchmarks(sources: Sources) -> None:
    clips = gate_clips.drawn(sources, "test", 30, 0, "video", False)
    again = gate_clips.drawn(sources, "test", 30, 0, "video", False)
    other = gate_clips.drawn(sources, "test", 30, 1, "video", False)
    assert torch.equal(clips.seen, again.seen)
    assert not torch.equal(clips.places, other.places)


def main(monkeypatch: pytest.MonkeyPatch, found: list[Gate], out: Path) -> int:
    monkeypatch.setattr(gates, "read", lambda *_: None)
    monkeypatch.setattr(gates, "run", lambda *_: iter(found))
    return gates.main(["--speech", "x", "--digits", "x", "--out", str(out)])


def test_a_gate_that_fails_ends_with_code_5(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good, bad = Gate("video alone, test", 5_000, 10_000, False), Gate("sound alone, test", 5_600, 10_000, False)
    assert main(monkeypatch, [good], tmp_path / "line.json") == 0
    assert main(monkeypatch, [good, bad], tmp_path / "line.json") == 5
    line = json.loads((tmp_path / "line.json").read_text())
    told = {gate["name"]: gate for gate in line["gates"]}
    assert told["sound alone, test"]["passed"] is False
    assert told["sound alone, test"]["n"] == 10_000
    assert told["sound alone, test"]["wilson"][0] < 0.56 < told["sound alone, test"]["wilson"][1]


def test_no_arm_runs_when_a_gate_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sources: Sources) -> None:
    from avdigits import chain

    def one(*_: Any) -> Any:
        return iter([Gate("video alone, test", 5_300, 10_000, False)])

    monkeypatch.setattr(gates, "run", one)
    with pytest.raises(VerificationFault, match="video alone, test"):
        chain.pass_gates(sources, tmp_path, True, 0)
    monkeypatch.setattr(gates, "run", lambda *_: iter([]))
    with pytest.raises(VerificationFault):  # Nor when they are asked again: the answer is kept.
        chain.pass_gates(sources, tmp_path, True, 0)
