"""The sizes of the audio-visual encoder."""

from pydantic import Field, model_validator

from kdctool.recipe.kinds import Positive, PositiveFloat
from kdctool.registry import NOT_A_RESULT, Section


class Model(Section):
    """The audio-visual encoder: two towers and a joint block. Defaults are CAV-MAE base."""

    audio_frames: Positive = 1024
    """Filter-bank frames (10 ms each) that the model sees; shorter clips are padded, longer ones cut."""
    mel_bins: Positive = 128
    """Mel bins of the filter bank."""
    image_size: Positive = 224
    """Side of the square frame in pixels."""
    audio_patch: Positive = 16
    """Side of a patch of the filter bank."""
    video_patch: Positive = 16
    """Side of a patch of the frame."""
    width: Positive = 768
    """Width of the towers and the joint block."""
    heads: Positive = 12
    """Attention heads; divides width."""
    depth: Positive = 11
    """Blocks of each tower."""
    joint_depth: Positive = 1
    """Blocks of the joint encoder, shared by the joint, the audio and the video pass."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of the MLP over `width`."""
    released_joint_order: bool = False
    """Feed every joint block the tower's output in the passes of one modality, as the released pre-training code does:
    only the last block counts there. For replication only; no difference with joint_depth = 1."""
    init: str = Field("", json_schema_extra=NOT_A_RESULT)
    """Weights to start from: a run, an export, a .safetensors or a published CAV-MAE checkpoint; empty = random."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Model":
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} is not a multiple of heads = {self.heads}")
        if self.width % 4:
            raise ValueError(f"width = {self.width} is not a multiple of 4, which the sine-cosine positions need")
        for name, size, patch in (
            ("audio_frames", self.audio_frames, self.audio_patch),
            ("mel_bins", self.mel_bins, self.audio_patch),
            ("image_size", self.image_size, self.video_patch),
        ):
            if size % patch:
                raise ValueError(
                    f"{name} = {size} is not a multiple of its patch size {patch}; "
                    f"try {name} = {max(1, round(size / patch)) * patch}"
                )
        return self

    @property
    def audio_grid(self) -> tuple[int, int]:
        """(frequency, time) tokens of the filter bank; tokens are frequency-major."""
        return self.mel_bins // self.audio_patch, self.audio_frames // self.audio_patch

    @property
    def video_grid(self) -> tuple[int, int]:
        """(rows, columns) tokens of a frame."""
        return self.image_size // self.video_patch, self.image_size // self.video_patch

    @property
    def audio_tokens(self) -> int:
        return self.audio_grid[0] * self.audio_grid[1]

    @property
    def video_tokens(self) -> int:
        return self.video_grid[0] * self.video_grid[1]
