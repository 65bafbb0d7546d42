"""The attentive head, and learning rates by layer: timm's numbers for a model of the same depth."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay

from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AttentivePool, AVClassifier
from kdctool.models.weights import merge_state, split_state
from kdctool.recipe import Model
from kdctool.recipe.training import Optim
from kdctool.train.optim import build

TINY = Model(
    audio_frames=32, mel_bins=16, image_size=16, audio_patch=8, video_patch=8, width=16, heads=2, depth=3, joint_depth=2
)


def make(modality: str = "both", head: str = "attentive") -> AVClassifier:
    torch.manual_seed(0)
    return AVClassifier(AVEncoder(TINY), 5, modality, head)


def batch(clips: int = 2) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {"fbank": torch.randn(clips, 32, 16, generator=rng), "frame": torch.randn(clips, 3, 16, 16, generator=rng)}


@pytest.mark.parametrize("modality", ["audio", "video", "both"])
def test_an_attentive_head_trains_itself_alone_and_all_of_itself(modality: str) -> None:
    classifier = make(modality)
    classifier.train_encoder(False)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    classifier(batch()).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in classifier.state_dict().items() if not torch.equal(value, before[name])}
    head = {name for name in before if name.startswith("mlp_head.")}
    assert len(head) == 19
    assert moved <= head
    # A bias of the keys moves all scores of the query alike, so softmax does not see it.
    assert head - moved == set()
    assert float(classifier.mlp_head.pool.kv.bias.grad[:16].abs().max()) < 1e-8


def test_the_query_is_spared_the_weight_decay_like_other_embeddings() -> None:
    classifier = make()
    classifier.train_encoder(False)
    groups = build(classifier, Optim(name="adamw", weight_decay=0.1)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(classifier.mlp_head.pool.query)] == 0.0
    assert decay[id(classifier.mlp_head.pool.q.weight)] == 0.1


def test_the_query_is_a_weighted_mean_of_values() -> None:
    """With one token there is one weight, 1: the pool must give what that token's value gives."""
    pool = AttentivePool(16, 2)
    token = torch.randn(3, 1, 16)
    value = pool.kv(pool.norm1(token))[..., 16:]
    x = pool.query + pool.proj(value)
    expected = (x + pool.mlp(pool.norm2(x))).squeeze(1)
    torch.testing.assert_close(pool(token), expected)
    many = torch.randn(3, 7, 16)
    torch.testing.assert_close(pool(many), pool(many[:, torch.randperm(7)]), atol=1e-5, rtol=0)
    assert not torch.allclose(pool(many), pool(many[:, :6]), atol=1e-4)


def test_heads_keep_the_released_names_of_norm_and_linear_layer() -> None:
    linear, attentive = make(head="linear"), make()
    names = set(linear.mlp_head.state_dict())
    assert names == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert names < set(attentive.mlp_head.state_dict())
    assert attentive.mlp_head.state_dict()["1.weight"].shape == (5, 16)
    merged = merge_state(attentive.encoder, head=attentive.mlp_head)
    again = make()
    again.mlp_head.load_state_dict(split_state(merged)[2])


def test_a_missing_modality_goes_through_the_attentive_head_too() -> None:
    classifier = make()
    assert classifier.with_missing({"fbank": batch()["fbank"]}, "audio").shape == (2, 5)


@pytest.mark.parametrize("decay", [0.65, 1.0])
def test_layers_decay_as_in_timm(decay: float) -> None:
    """Towers of 3 blocks and 2 joint ones are a ViT of 5: timm's groups of that say what each layer gets."""
    vit = VisionTransformer(img_size=16, patch_size=8, num_classes=5, embed_dim=16, depth=5, num_heads=2)
    names = {id(p): name for name, p in vit.named_parameters()}
    theirs = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(vit, 0.05, layer_decay=decay)
        for p in group["params"]
    }
    classifier = make(head="linear")
    optimizer = build(classifier, Optim(name="adamw", weight_decay=0.05), classifier.lr_scales(decay, 1.0))
    own = {id(p): name for name, p in classifier.named_parameters()}
    ours = {
        own[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    pairs = {f"encoder.norm.{kind}": f"norm.{kind}" for kind in ("weight", "bias")}
    pairs |= {f"mlp_head.1.{kind}": f"head.{kind}" for kind in ("weight", "bias")}
    parts = ("norm1.weight", "attn.qkv.weight", "attn.qkv.bias", "mlp.fc2.weight")
    for part in parts:
        pairs |= {f"encoder.blocks_{t}.{i}.{part}": f"blocks.{i}.{part}" for t in "av" for i in range(3)}
        pairs |= {f"encoder.blocks_u.{i}.{part}": f"blocks.{3 + i}.{part}" for i in range(2)}
    for tower in "av":
        pairs |= {f"encoder.patch_embed_{tower}.proj.{kind}": f"patch_embed.proj.{kind}" for kind in ("weight", "bias")}
        # timm decays a position table that is not 1-D; ours are spared with the other embeddings, as MAE does it.
        assert ours[f"encoder.pos_embed_{tower}"][0] == pytest.approx(theirs["pos_embed"][0])
        assert ours[f"encoder.modality_{tower}"][0] == pytest.approx(theirs["cls_token"][0])
    assert {mine: ours[mine] for mine in pairs} == {mine: pytest.approx(theirs[name]) for mine, name in pairs.items()}
    assert len({scale for scale, _ in ours.values()}) == (7 if decay < 1 else 1)
    assert timm.__version__


def test_every_trained_parameter_has_a_layer() -> None:
    classifier = make(head="linear")
    scales = classifier.lr_scales(0.5, 3.0)
    for name, parameter in classifier.named_parameters():
        matches = [prefix for prefix in scales if name.startswith(prefix)]
        assert len(matches) == 1 or not parameter.requires_grad, name
    assert scales["mlp_head."] == 3.0
    assert scales["encoder.blocks_u.1."] == 0.5
    assert scales["encoder.patch_embed_"] == 0.5**6
