"""Weights come in whole or not at all, and say why not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdctool.errors import UsageFault, VerificationFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.weights import load_encoder, load_state, load_strict, merge_state, split_state
from kdctool.objectives import build
from kdctool.recipe import validate

MODEL = {
    "audio_frames": 32, "mel_bins": 16, "image_size": 16, "audio_patch": 8, "video_patch": 8,
    "width": 16, "heads": 2, "depth": 1,
}  # fmt: skip


def make(seed: int, **changes: int) -> tuple[AVEncoder, torch.nn.Module]:
    torch.manual_seed(seed)
    decoder = {"width": 8, "heads": 2, "depth": 1}
    recipe = validate({"name": "tiny", "model": {**MODEL, **changes}, "objective": {"decoder": decoder}})
    encoder = AVEncoder(recipe.model)
    return encoder, build(recipe, encoder).decoder


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_released_checkpoint_goes_in_and_comes_out_with_the_same_bits(tmp_path: Path, suffix: str) -> None:
    encoder, decoder = make(0)
    state = merge_state(encoder, decoder)
    path = tmp_path / f"audio_model.25{suffix}"
    released = {f"module.{name}": value for name, value in state.items()}
    save_file(released, path) if suffix == ".safetensors" else torch.save(released, path)
    loaded = load_state(path)
    other_encoder, other_decoder = make(1)
    load_encoder(other_encoder, loaded)
    load_strict(other_decoder, split_state(loaded)[1], "decoder")
    assert equal(merge_state(other_encoder, other_decoder), state)


def test_a_finetuned_state_keeps_the_official_names_of_its_head() -> None:
    encoder, _ = make(0)
    classifier = AVClassifier(encoder, 3, "both")
    state = merge_state(classifier.encoder, head=classifier.mlp_head)
    assert {name for name in state if "mlp" in name and "blocks" not in name} == {
        f"mlp_head.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }
    encoder_part, decoder_part, head = split_state(state)
    assert equal(encoder_part, dict(encoder.state_dict()))
    assert decoder_part == {}
    assert equal(head, dict(classifier.mlp_head.state_dict()))


def test_a_wrapped_training_checkpoint_is_unwrapped(tmp_path: Path) -> None:
    encoder, _ = make(0)
    torch.save({"epoch": 3, "model": encoder.state_dict(), "optimizer": {"step": 1}}, tmp_path / "checkpoint.3.pth")
    assert equal(load_state(tmp_path / "checkpoint.3.pth"), dict(encoder.state_dict()))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "was run",)

    torch.save({"x": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(UsageFault, match=r"bad\.pth holds more than tensors"):
        load_state(tmp_path / "bad.pth")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"not a header", VerificationFault), (b"\x00" * 40, VerificationFault), (b"", VerificationFault)],
)
def test_a_damaged_safetensors_file_fails_verification(tmp_path: Path, content: bytes, fault: type[Exception]) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(fault, match=r"x\.safetensors"):
        load_state(tmp_path / "x.safetensors")


def test_a_damaged_pickle_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 nothing")
    for name in ("x.pth", "none.safetensors"):
        with pytest.raises(UsageFault, match=name):
            load_state(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UsageFault, match="not a state dict"):
        load_state(tmp_path / "list.pth")


def test_weights_of_another_model_are_refused_whole() -> None:
    encoder, _ = make(0)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    deeper, _ = make(1, depth=2)
    wider, _ = make(1, width=32)
    shallower = {name: value for name, value in make(1)[0].state_dict().items() if not name.startswith("norm.")}
    for state, said in (
        (deeper.state_dict(), r"40 unknown: blocks_a\.1\.norm1\.weight"),
        (wider.state_dict(), r"of another shape: modality_a is \(1, 1, 32\), the recipe makes it \(1, 1, 16\)"),
        (shallower, r"2 missing: norm\.weight, norm\.bias"),
    ):
        with pytest.raises(UsageFault, match=said):
            load_encoder(encoder, state)
    assert equal(dict(encoder.state_dict()), before)


def test_weights_that_are_not_finite_are_refused_whole() -> None:
    encoder, _ = make(0)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = dict(make(1)[0].state_dict())
    state["norm_v.bias"] = torch.full_like(state["norm_v.bias"], float("nan"))
    with pytest.raises(VerificationFault, match=r"norm_v\.bias"):
        load_encoder(encoder, state)
    assert equal(dict(encoder.state_dict()), before)
