"""The blocks have the names, the numbers and the initialisation of the released CAV-MAE."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdctool.models.layers import Attention, Block, PatchEmbed, init_weights, sincos_2d


def test_positions_encode_the_column_first_then_the_row() -> None:
    table = sincos_2d(8, (2, 3))[0].numpy()
    omega = [1.0, 0.01]
    for row in range(2):
        for column in range(3):
            halves = [[f(p * w) for f in (math.sin, math.cos) for w in omega] for p in (column, row)]
            np.testing.assert_allclose(table[row * 3 + column], halves[0] + halves[1], atol=1e-7)


def test_attention_equals_softmax_written_out() -> None:
    torch.manual_seed(0)
    attention, x = Attention(12, 3), torch.randn(2, 5, 12)
    q, k, v = attention.qkv(x).split(12, dim=-1)
    heads = [
        F.softmax(q[..., s] @ k[..., s].mT * 4**-0.5, dim=-1) @ v[..., s] for s in map(slice, (0, 4, 8), (4, 8, 12))
    ]
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=-1)))


@pytest.mark.parametrize(("modality", "suffix"), [(None, ""), ("a", "_a"), ("v", "_v")])
def test_a_block_runs_exactly_the_norms_of_its_modality(modality: str | None, suffix: str) -> None:
    block = Block(8, 2)
    block(torch.randn(2, 3, 8), modality).square().mean().backward()
    ran = {name.split(".")[0] for name, p in block.named_parameters() if p.grad is not None and "norm" in name}
    assert ran == {f"norm1{suffix}", f"norm2{suffix}"}


def test_initialisation_is_xavier_on_flattened_patches_with_zero_biases() -> None:
    torch.manual_seed(0)
    block, patches = Block(64, 4), PatchEmbed(3, 64, 8)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(7.0)
    init_weights(block)
    init_weights(patches)
    assert torch.equal(block.norm1_a.weight.detach(), torch.ones(64))
    assert not block.norm2.bias.any()
    assert not block.attn.qkv.bias.any()
    for weight, fan_in in ((block.attn.qkv.weight, 64), (patches.proj.weight, 3 * 64)):
        bound = math.sqrt(6 / (weight.shape[0] + fan_in))
        assert 0.95 * bound < float(weight.detach().abs().max()) <= bound
