"""Masked-patch regression: the joint decoder, its targets and its loss. Thrown away after pre-training."""

import torch
from torch import Tensor, nn

from kdctool.models.layers import Block, init_weights, layer_norm, sincos_2d
from kdctool.recipe import Decoder as DecoderOptions
from kdctool.recipe import Model

_VARIANCE_FLOOR = 1e-6


class PatchDecoder(nn.Module):
    """What every decoder has, with released names: input projection, tokens, position tables, blocks and heads."""

    def __init__(self, model: Model, options: DecoderOptions) -> None:
        super().__init__()
        width = options.width
        self.decoder_embed = nn.Linear(model.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_modality_a = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_modality_v = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_pos_embed_a = nn.Parameter(sincos_2d(width, model.audio_grid), requires_grad=False)
        self.decoder_pos_embed_v = nn.Parameter(sincos_2d(width, model.video_grid), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(self.block(options, model.mlp_ratio) for _ in range(options.depth))
        self.decoder_norm = layer_norm(width)
        self.decoder_pred_a = nn.Linear(width, model.audio_patch**2)
        self.decoder_pred_v = nn.Linear(width, model.video_patch**2 * 3)
        init_weights(self)
        for token in (self.mask_token, self.decoder_modality_a, self.decoder_modality_v):
            nn.init.normal_(token, std=0.02)

    def block(self, options: DecoderOptions, mlp_ratio: float) -> nn.Module:
        """One of the `options.depth` blocks."""
        raise NotImplementedError


class Decoder(PatchDecoder):
    """Fills the removed places of both modalities with one mask token and predicts the pixels of every patch."""

    def block(self, options: DecoderOptions, mlp_ratio: float) -> nn.Module:
        """Self-attention over all places of both modalities."""
        block = Block(options.width, options.heads, mlp_ratio)
        block.freeze_modality_norms()
        return block

    def forward(
        self, joint: Tensor, num_audio: int, ids_restore_a: Tensor, ids_restore_v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict every patch in natural order: (B, La, P * P) and (B, Lv, P * P * 3).

        joint: (B, Ka + Kv, D) of the encoder, the first `num_audio` = Ka tokens are audio; ids_restore_*: (B, L),
        each view its own. Views lie on the batch axis.
        """
        x = self.decoder_embed(joint)
        a = self.unshuffle(x[:, :num_audio], ids_restore_a) + self.decoder_pos_embed_a + self.decoder_modality_a
        v = self.unshuffle(x[:, num_audio:], ids_restore_v) + self.decoder_pos_embed_v + self.decoder_modality_v
        x = torch.cat((a, v), dim=1)  # (B, La + Lv, D)
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_norm(x)
        tokens = ids_restore_a.shape[1]
        return self.decoder_pred_a(x[:, :tokens]), self.decoder_pred_v(x[:, tokens:])

    def unshuffle(self, kept: Tensor, ids_restore: Tensor) -> Tensor:
        """Visible tokens (B, K, D) at their own places, the mask token at all others, (B, L, D)."""
        batch, num_kept, width = kept.shape
        missing = ids_restore.shape[1] - num_kept
        full = torch.cat((kept, self.mask_token.to(kept.dtype).expand(batch, missing, width)), dim=1)
        return full.gather(1, ids_restore.unsqueeze(-1).expand(-1, -1, width))


def patchify(image: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, L, P * P * C); tokens row-major, elements of a patch by row, column, channel."""
    batch, channels, height, width = image.shape
    rows, columns = height // patch, width // patch
    cells = image.reshape(batch, channels, rows, patch, columns, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch * patch * channels)


def audio_patches(fbank: Tensor, patch: int) -> Tensor:
    """(B, T, F) -> (B, La, P * P); tokens frequency-major, elements of a patch by mel bin, then time."""
    return patchify(fbank.transpose(1, 2).unsqueeze(1), patch)


def normalise_patches(target: Tensor) -> Tensor:
    """Each patch (last axis) minus its mean, over its standard deviation (unbiased)."""
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    return (target - mean) / (variance + _VARIANCE_FLOOR).sqrt()


def patch_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error, mean over the elements of a patch: (J, B, L, E) and (B, L, E) or (J, B, L, E) -> (J, B, L)."""
    return (prediction - target).square().mean(dim=-1)


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of (J, B, L) over the patches where `mask` is 1, of all clips: (J,)."""
    return (error * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error, mean over the elements of a patch and over the removed patches of all clips: (J,).

    prediction: (J, B, L, E), target: (B, L, E), mask: (J, B, L), 1 = removed.
    """
    return masked_mean(patch_error(prediction, target), mask)
