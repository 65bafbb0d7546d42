"""What a recipe resolves to, which keys guard a resume, and where each value came from."""

import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from kdctool import recipe
from kdctool.files import digest
from kdctool.recipe.presets import PRESETS

BASE = 'name = "mine"\n'


def keys(*overrides: str) -> dict[str, object]:
    return recipe.result_keys(recipe.loads(BASE, list(overrides)))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 64).map(lambda n: n * 12),
    ratio=st.floats(0.7, 0.9),
    lr=st.floats(1e-9, 10),
    name=st.text(min_size=1, max_size=20),
    shards=st.text(max_size=20),
    preset=st.sampled_from(sorted(PRESETS)),
    betas=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.999)),
)
def test_recipe_to_toml_to_recipe_is_the_identity(width, ratio, lr, name, shards, preset, betas):
    tree = {
        "name": name,
        "data": {"shards": shards},
        "model": {"width": width, "heads": 12},
        "masking": {"audio_ratio": ratio, "video_ratio": ratio},
        "objective": {"name": preset},
        "optim": {"lr": lr, "betas": list(betas)},
        "expected": [{"task": "retrieval", "metric": "a2v_r1", "value": 0.5, "source": name}],
    }
    loaded = recipe.validate(tree)
    assert recipe.loads(recipe.to_toml(loaded)) == loaded


def test_the_digest_ignores_what_moves_no_number():
    plain = digest(keys())
    for override in (
        "data.shards=elsewhere", "data.workers=7", "training.micro_batch=4", "log.every_steps=1", "log.keep=5",
        "log.tensorboard=false", "log.gradient_norms_every=1",
        "log.collapse_every=0", "log.checkpoint_every_steps=3", "log.checkpoint_every_minutes=1", "description=words",
        'expected=[{task="a", metric="b", value=1, source="c"}]',
    ):  # fmt: skip
        assert digest(keys(override)) == plain, override


def test_the_digest_follows_every_kind_of_key_that_moves_numbers():
    plain = digest(keys())
    for override in (
        "seed=1", "data.frame=cycle", "data.train_split=all", "model.depth=2", "masking.audio=time", "optim.lr=1",
        "objective.contrastive.weight=0.5", "objective.decoder.depth=1", "training.epochs=1", "training.global_batch=8",
        "objective.decoder.kind=light", "objective.legacy_view2_order=true", "model.released_joint_order=true",
        "training.precision=bf16", "objective.self_distillation.shift=local", "data.fbank_mean=0",
    ):  # fmt: skip
        assert digest(keys(override)) != plain, override


def test_a_written_default_and_a_left_out_one_have_the_same_digest():
    assert digest(keys("optim.lr=1e-4", "masking.views=2")) == digest(keys())


def test_result_keys_can_be_limited_to_sections():
    limited = recipe.result_keys(recipe.loads(BASE), ("model", "seed"))
    assert "model.width" in limited
    assert "seed" in limited
    assert not [key for key in limited if key.startswith(("optim", "name"))]


def test_changed_keys_name_the_key_and_both_values():
    assert recipe.changed_keys(keys(), keys("optim.lr=0.5", "masking.views=3")) == [
        "masking.views: 2 -> 3",
        "optim.lr: 0.0001 -> 0.5",
    ]
    assert recipe.changed_keys({}, {"a": 1}) == ["a: unset -> 1"]


def test_presets_set_defaults_and_give_way_to_the_recipe():
    cav = recipe.loads(BASE, ["objective.name=cav_mae"])
    assert (cav.masking.views, cav.objective.self_distillation.weight) == (1, 0.0)
    assert recipe.loads(BASE, ["objective.name=cav_mae", "masking.views=2"]).masking.views == 2
    assert recipe.loads(BASE, ["objective.name=kdc_mae_3"]).masking.views == 3
    assert recipe.loads(BASE, ["objective.name=mae"]).objective.contrastive.weight == 0
    assert recipe.loads(BASE, ["objective.name=cav"]).objective.reconstruction.weight == 0


def test_a_registered_objective_needs_no_preset():
    assert recipe.loads(BASE, ["objective.name=labs_own"]).objective.name == "labs_own"


def test_origins_tell_recipe_set_preset_and_default_apart():
    text = BASE + '[objective]\nname = "cav_mae"\n[optim]\nlr = 1e-3\n'
    overrides = ["training.epochs=3", "objective.decoder={ depth = 1 }"]
    where = recipe.origins(recipe.loads(text, overrides), text, overrides)
    assert where["optim.lr"] == "recipe"
    assert where["training.epochs"] == "--set"
    assert where["objective.decoder.depth"] == "--set"
    assert where["masking.views"] == "preset cav_mae"
    assert where["optim.eps"] == "default"


def test_the_resolved_toml_holds_every_key():
    tree = tomllib.loads(recipe.to_toml(recipe.loads(BASE)))
    assert set(type(recipe.loads(BASE)).model_fields) <= set(tree)
