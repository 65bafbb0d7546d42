"""The training step of the KDC-MAE release, re-created for comparison: what ours is measured against.

Written anew from what the release does, on the layers of kdctool. Kept as released, because it costs time or memory:
explicit softmax attention; the views one after the other through every block; masks that are built per view and
counted on the host; index tensors repeated over the width; the modality embedding added in place; fp16 autocast
with a GradScaler on a GPU, plain float32 on a CPU; Adam(1e-4, weight decay 5e-7, betas 0.95 and 0.999); no compile.
Kept as released, because it is the loss: a vector over clips that is summed, and the first view's restore order for
all views. Left out: 17 million parameters that the release allocates and never uses.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from harness import ROOT
from torch import Tensor, nn

from kdctool.models.av_encoder import AVEncoder
from kdctool.models.layers import Attention, Block
from kdctool.objectives.reconstruction import Decoder
from kdctool.recipe import Recipe

assert (ROOT / "kdctool").is_dir()

LR, WEIGHT_DECAY, BETAS = 1e-4, 5e-7, (0.95, 0.999)
TEMPERATURE, CONTRASTIVE_WEIGHT, DISTILLATION_WEIGHT = 0.05, 0.01, 10.0
TINY = 1e-12


class ExplicitAttention(nn.Module):
    """The attention of timm 0.4.5: the whole matrix of weights is written down, per head."""

    def __init__(self, fused: Attention) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = fused.heads, plain(fused.qkv), plain(fused.proj)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, D) -> (B, L, D)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]  # (B, heads, L, D / heads)
        weights = (q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5
        weights = weights.softmax(dim=-1)  # (B, heads, L, L)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


def plain(linear: nn.Linear) -> nn.Linear:
    """torch's own linear layer around the same parameters: kdctool's has a faster product on some CPUs."""
    same = nn.Linear(linear.in_features, linear.out_features, device="meta")
    same.weight, same.bias = linear.weight, linear.bias
    return same


@dataclass
class View:
    """One view of one modality."""

    tokens: Tensor
    mask: Tensor
    restore: Tensor


class ReferenceModel(nn.Module):
    """Encoder, decoder and loss. Takes over the given modules and replaces their attention."""

    def __init__(self, recipe: Recipe, encoder: AVEncoder, decoder: Decoder) -> None:
        super().__init__()
        self.model, self.masking = recipe.model, recipe.masking
        self.encoder, self.decoder = encoder, decoder
        for block in self.modules():
            if isinstance(block, Block):
                block.attn = ExplicitAttention(block.attn)  # type: ignore[assignment]
                block.mlp.fc1, block.mlp.fc2 = plain(block.mlp.fc1), plain(block.mlp.fc2)  # type: ignore[assignment]

    def forward(self, fbank: Tensor, frame: Tensor, noise_a: Tensor, noise_v: Tensor) -> Tensor:
        """fbank (B, T, F), frame (B, C, H, W), noise (B, L) of either modality -> loss of every clip (B,)."""
        encoder = self.encoder
        a = encoder.patch_embed_a(fbank.unsqueeze(1).transpose(2, 3)) + encoder.pos_embed_a + encoder.modality_a
        v = encoder.patch_embed_v(frame) + encoder.pos_embed_v + encoder.modality_v
        views_a = self.hide(a, noise_a, self.masking.audio_ratio)
        views_v = self.hide(v, noise_v, self.masking.video_ratio)
        towers_a, towers_v = [view.tokens for view in views_a], [view.tokens for view in views_v]
        for block in encoder.blocks_a:
            towers_a = [block(x) for x in towers_a]
        for block in encoder.blocks_v:
            towers_v = [block(x) for x in towers_v]
        joint = [torch.cat((x, y), dim=1) for x, y in zip(towers_a, towers_v, strict=True)]
        for block in encoder.blocks_u:
            joint = [block(x) for x in joint]
        joint = [encoder.norm(x) for x in joint]
        for block in encoder.blocks_u:
            audio = [block(x, "a") for x in towers_a]
        for block in encoder.blocks_u:
            video = [block(x, "v") for x in towers_v]
        audio, video = [encoder.norm_a(x) for x in audio], [encoder.norm_v(x) for x in video]

        decoded = [self.place(x, va, vv) for x, va, vv in zip(joint, views_a, views_v, strict=True)]
        for block in self.decoder.decoder_blocks:
            decoded = [block(x) for x in decoded]
        decoded = [self.decoder.decoder_norm(x) for x in decoded]

        count = self.model.audio_tokens
        loss = torch.zeros((), device=fbank.device)
        for x, view_a, view_v in zip(decoded, views_a, views_v, strict=True):
            loss = loss + masked_loss(self.targets_a(fbank), self.decoder.decoder_pred_a(x[:, :count]), view_a.mask)
            loss = loss + masked_loss(self.targets_v(frame), self.decoder.decoder_pred_v(x[:, count:]), view_v.mask)
        for x, y in zip(audio, video, strict=True):
            loss = loss + CONTRASTIVE_WEIGHT * contrast(x.mean(dim=1), y.mean(dim=1))
        if len(joint) < 2:
            return loss.expand(len(fbank))
        return loss + DISTILLATION_WEIGHT * divergence(joint[0].mean(dim=1), joint[1].mean(dim=1))

    def hide(self, tokens: Tensor, noise: Tensor, ratio: float) -> list[View]:
        """Complementary views of (B, L, D), all with the first view's way back."""
        batch, total, width = tokens.shape
        kept = int(total * (1 - ratio))
        shuffle = torch.argsort(noise, dim=1)
        restore = torch.argsort(shuffle, dim=1)
        views = []
        for j in range(self.masking.views):
            own = shuffle[:, j * kept : (j + 1) * kept]
            picked = torch.gather(tokens, dim=1, index=own.unsqueeze(-1).repeat(1, 1, width))
            mask = torch.ones([batch, total], device=tokens.device)
            mask.scatter_(1, own, 0)
            views.append(View(picked, mask, restore))
        return views

    def place(self, joint: Tensor, view_a: View, view_v: View) -> Tensor:
        """Decoder input (B, La + Lv, E) of one view. The numbers of hidden tokens are read back to the host."""
        decoder = self.decoder
        x = decoder.decoder_embed(joint)
        count = self.model.audio_tokens
        hidden_a, hidden_v = int(view_a.mask[0].sum()), int(view_v.mask[0].sum())
        a = torch.cat([x[:, : count - hidden_a], decoder.mask_token.repeat(len(x), hidden_a, 1)], dim=1)
        v = torch.cat([x[:, count - hidden_a :], decoder.mask_token.repeat(len(x), hidden_v, 1)], dim=1)
        a = torch.gather(a, dim=1, index=view_a.restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        v = torch.gather(v, dim=1, index=view_v.restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = torch.cat([a, v], dim=1)
        x = x + torch.cat([decoder.decoder_pos_embed_a, decoder.decoder_pos_embed_v], dim=1)
        x[:, :count] = x[:, :count] + decoder.decoder_modality_a
        x[:, count:] = x[:, count:] + decoder.decoder_modality_v
        return x

    def targets_a(self, fbank: Tensor) -> Tensor:
        """(B, T, F) -> (B, La, P * P), every patch normalised."""
        return patches(fbank.unsqueeze(1).transpose(2, 3), self.model.audio_patch)

    def targets_v(self, frame: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, Lv, P * P * C), every patch normalised."""
        return patches(frame, self.model.video_patch)


def patches(image: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, L, side * side * C), every patch minus its mean over its standard deviation."""
    batch, channels, height, width = image.shape
    x = image.reshape(batch, channels, height // side, side, width // side, side)
    x = torch.einsum("nchpwq->nhwpqc", x).reshape(batch, -1, side * side * channels)
    return (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, keepdim=True) + 1e-6) ** 0.5


def masked_loss(target: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """Mean over clips of each clip's mean squared error over hidden patches."""
    error = ((prediction - target) ** 2).mean(dim=-1)
    return ((error * mask).sum(dim=1) / mask.sum(dim=1)).mean()


def contrast(audio: Tensor, video: Tensor) -> Tensor:
    """InfoNCE in one direction, each video against the batch's audio."""
    sim = F.normalize(audio, dim=-1) @ F.normalize(video, dim=-1).T / TEMPERATURE
    return -torch.diag(F.log_softmax(sim, dim=0)).mean()


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence of shifted latents, per clip; the shift is the batch's minimum."""
    one, other = one + one.min().abs(), other + other.min().abs()
    p, q = one / one.sum(dim=1, keepdim=True), other / other.sum(dim=1, keepdim=True)
    middle = 0.5 * (p + q)
    return 0.5 * _kl(p, middle) + 0.5 * _kl(q, middle)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    p, q = p + TINY, q + TINY
    return (p * (p / q).log()).sum(dim=1)


class ReferenceStep:
    """The released trainer's step on one device."""

    def __init__(self, model: ReferenceModel, device: torch.device, autocast: torch.dtype | None) -> None:
        self.model, self.device, self.autocast = model.to(device).train(), device, autocast
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, LR, weight_decay=WEIGHT_DECAY, betas=BETAS)
        self.scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)

    def __call__(self, fbank: Tensor, frame: Tensor) -> float:
        """One optimiser step; the summed loss over the number of clips."""
        noise_a = torch.rand(len(fbank), self.model.model.audio_tokens, device=self.device)
        noise_v = torch.rand(len(fbank), self.model.model.video_tokens, device=self.device)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            loss = self.model(fbank, frame, noise_a, noise_v).sum()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item() / len(fbank)
