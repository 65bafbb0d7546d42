"""Two decoders, one result: the matrix of awkward clips, with every ffmpeg binary that is there."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kdctool.media.settings import Tools

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def _load() -> ModuleType:
    """benchmarks/decoders.py, which makes the clips, compares the decoders and prints the same as a table."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("decoder_matrix", BENCHMARKS / "decoders.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["decoder_matrix"] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


matrix = _load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.mark.parametrize("clip", matrix.CLIPS)
def test_both_decoders_agree(clip: str, folder: Path) -> None:
    if matrix.real_is_missing(clip):
        pytest.skip(f"the real clip {matrix.CLIPS[clip].of} is not beside the checkout")
    path = matrix.make(clip, folder)
    for name, binary in matrix.binaries().items():
        apart = matrix.compare(path, Tools(binary, "test"), matrix.CLIPS[clip].segment)
        assert not apart.broken(), f"{name}: {apart}"


def test_the_comparison_sees_a_shift_of_one_sample_and_a_darker_picture() -> None:
    sound = matrix.np.sin(matrix.np.arange(16000) ** 1.5 / 50)
    assert matrix.shift(sound[1:], sound[:-1]) == -1
    assert matrix.Difference(0.6, 1, 1, 0, 0, 0).broken() == ["mean"]
    assert matrix.Difference(0.1, 5, 9, 0, 0, 0).broken() == ["p999"]
    assert matrix.Difference(0, 0, 0, 2e-3, -1, 0).broken() == ["sound_rms", "sound_shift"]


def test_the_sound_of_a_late_window_does_not_depend_on_what_was_decoded_before(folder: Path) -> None:
    path = matrix.make("minute.mkv", folder)
    fresh, _ = matrix.planned(path, matrix.CLIPS["minute.mkv"].segment)
    used, window = matrix.planned(path, matrix.CLIPS["minute.mkv"].segment)
    decode = matrix.decode_pyav.decode
    decode(used, window)
    try:
        matrix.np.testing.assert_array_equal(decode(fresh, window)[1], decode(used, window)[1])
    finally:
        fresh.close()
        used.close()
