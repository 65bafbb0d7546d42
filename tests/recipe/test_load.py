"""What a reader of an error message needs: the file, the line, the wrong value, what is allowed, all at once."""

import dataclasses

import pytest
from pydantic import ValidationError

from kdctool import recipe
from kdctool.errors import UsageFault
from kdctool.recipe.lines import key_lines, line_of

GOOD = """\
name = "mine"

[model]
width = 96
heads = 4

[optim]
lr = 1e-3
"""


def fault(text: str, overrides: list[str] | None = None) -> UsageFault:
    with pytest.raises(UsageFault) as caught:
        recipe.loads(text, overrides, origin="mine.toml")
    assert caught.value.exit_code == 2
    return caught.value


def test_a_good_recipe_keeps_what_it_says_and_takes_defaults_for_the_rest():
    loaded = recipe.loads(GOOD)
    assert (loaded.name, loaded.model.width, loaded.optim.lr) == ("mine", 96, 1e-3)
    assert loaded.masking.views == 2
    assert loaded.training.global_batch == 120


def test_an_unknown_key_is_told_with_line_and_did_you_mean():
    cause = fault(GOOD + "wieght_decay = 0.1\n").cause
    assert "mine.toml:9  unknown key optim.wieght_decay (did you mean optim.weight_decay?)" in cause
    assert "1 error; nothing was written" in cause


def test_an_unknown_section_is_told():
    assert "unknown key modell (did you mean model?)" in fault(GOOD + "[modell]\nwidth = 8\n").cause


def test_a_key_nobody_can_guess_lists_the_known_ones():
    cause = fault(GOOD + "zzzzzz = 1\n").cause
    assert "known here: name, lr, betas" in cause


def test_a_wrong_type_is_told_with_line_and_value():
    cause = fault(GOOD.replace("1e-3", '"1e-3"')).cause
    assert "mine.toml:8" in cause
    assert "optim.lr must be a valid number" in cause
    assert "'1e-3'" in cause


def test_a_wrong_choice_lists_the_allowed_ones_and_the_nearest():
    cause = fault(GOOD + 'schedule = "cosin"\n').cause
    assert "'step', 'cosine' or 'constant'" in cause
    assert "did you mean 'cosine'?" in cause


def test_all_errors_are_told_at_once_in_the_order_of_the_file():
    text = GOOD.replace("96", '"wide"').replace("1e-3", "-1").replace("heads", "haeds")
    lines = fault(text).cause.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["mine.toml:4", "mine.toml:5", "mine.toml:8"]
    assert lines[-1] == "3 errors; nothing was written"


def test_a_missing_name_is_told():
    assert "name is missing" in fault("[optim]\nlr = 1e-3\n").cause


def test_what_is_not_toml_is_told_with_its_line():
    cause = fault("name = mine\n").cause
    assert "mine.toml: not TOML" in cause
    assert "line 1" in cause


def test_errors_in_an_array_of_tables_name_the_right_line():
    text = (
        GOOD
        + '\n[[expected]]\ntask = "a"\nmetric = "b"\nvalue = 1\nsource = "c"\n\n[[expected]]\ntask = "a"\nvalue = "x"\n'
    )
    cause = fault(text).cause
    assert "mine.toml:18  expected.1.value must be a valid number" in cause
    assert "mine.toml:16  expected.1.metric is missing" in cause


def test_an_integer_is_accepted_where_a_float_is_meant():
    assert recipe.loads(GOOD.replace("1e-3", "1")).optim.lr == 1.0


@pytest.mark.parametrize("value", ["12.5", '"12"', "true", "0", "-3"])
def test_what_is_not_a_count_is_refused_where_a_count_is_meant(value):
    assert "model.heads" in fault(GOOD.replace("heads = 4", f"heads = {value}")).cause


def test_set_overrides_the_file_and_makes_sections():
    loaded = recipe.loads(GOOD, ["optim.lr=2e-4", "data.shards=my/shards", "masking.views = 3", 'name="other"'])
    assert loaded.optim.lr == 2e-4
    assert loaded.data.shards == "my/shards"
    assert loaded.masking.views == 3
    assert loaded.name == "other"


def test_set_takes_inline_tables_and_lists():
    loaded = recipe.loads(GOOD, ["objective.contrastive={weight=0.5}", "optim.betas=[0.9, 0.95]"])
    assert loaded.objective.contrastive.weight == 0.5
    assert loaded.optim.betas == (0.9, 0.95)


def test_the_last_set_of_a_key_wins():
    assert recipe.loads(GOOD, ["optim.lr=1", "optim.lr=2"]).optim.lr == 2


def test_an_error_in_set_names_the_set_and_not_a_line():
    cause = fault(GOOD, ["optim.lr=fast"]).cause
    assert "--set optim.lr  optim.lr must be a valid number, got 'fast'" in cause
    assert "mine.toml:" not in cause


@pytest.mark.parametrize("override", ["optim.lr", "=3", "optim.=3", ".lr=3"])
def test_a_set_without_key_or_value_is_refused(override):
    assert "expected section.key=value" in fault(GOOD, [override]).cause


def test_a_set_below_a_value_is_refused():
    assert "is a value, not a section" in fault(GOOD, ["optim.lr.x=3"]).cause


def test_a_missing_file_is_a_usage_fault(tmp_path):
    with pytest.raises(UsageFault, match="cannot read recipe"):
        recipe.load(tmp_path / "none.toml")


def test_a_file_that_is_not_text_is_a_usage_fault(tmp_path):
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageFault, match="cannot read recipe"):
        recipe.load(path)


def test_a_folder_is_a_usage_fault(tmp_path):
    with pytest.raises(UsageFault, match="cannot read recipe"):
        recipe.load(tmp_path)


def test_sizes_that_do_not_fit_name_a_size_that_does():
    cause = fault(GOOD.replace("heads = 4", "heads = 4\nimage_size = 100")).cause
    assert "image_size = 100 is not a multiple of its patch size 16" in cause
    assert "try image_size = 96" in cause


def test_a_mask_that_hides_everything_is_refused():
    assert "keeps none" in fault(GOOD, ["masking.audio_ratio=0.9999"]).cause


def test_views_that_cannot_be_disjoint_are_refused_with_the_way_out():
    cause = fault(GOOD, ["masking.views=3", "masking.video_ratio=0.5"]).cause
    assert "masking.complementary = false" in cause
    assert recipe.loads(GOOD, ["masking.views=3", "masking.video_ratio=0.5", "masking.complementary=false"])


def test_a_mask_that_removes_nothing_is_refused():
    assert "masking.video_ratio = 1e-17 removes none of 196 tokens" in fault(GOOD, ["masking.video_ratio=1e-17"]).cause


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("masking.views=4", "masking.views must be less than or equal to 3, got 4"),
        ("masking.views=0", "masking.views must be greater than or equal to 1, got 0"),
        ("masking.audio_ratio=1.0", "masking.audio_ratio must be less than 1, got 1.0"),
        ("model.audio_patch=24", "audio_frames = 1024 is not a multiple of its patch size 24; try audio_frames = 1032"),
        ("objective.decoder.share=0", "objective.decoder.share must be greater than 0"),
        ("objective.decoder.kind=lite", "objective.decoder.kind must be 'joint' or 'light', got 'lite' (did you mean"),
        ("objective.self_distillation.divergence=klr", "'js', 'kl', 'kl_reverse' or 'sym_kl', got 'klr'"),
        ("objective.self_distillation.momentum=1", "objective.self_distillation.momentum must be less than 1"),
        ("objective.contrastive.own_ratio=0.999", "own_ratio = 0.999 keeps none of 512 tokens; lower it to 0.998"),
        ("objective.contrastive.temperature_range=[0.1]", "objective.contrastive.temperature_range"),
    ],
)
def test_a_knob_out_of_its_range_is_told_with_the_value_and_what_is_allowed(override, said):
    assert said in fault(GOOD, [override]).cause


def test_keys_that_contradict_each_other_are_told_before_anything_is_built():
    cause = fault(GOOD, ["masking.views=1"]).cause
    assert "objective.self_distillation.weight = 10 compares views, but masking.views = 1" in cause
    assert "set masking.views = 2, or objective.self_distillation.weight = 0" in cause
    assert recipe.loads(GOOD, ["masking.views=1", "objective.name=labs_own"]).masking.views == 1


def test_a_collage_of_frames_needs_an_even_size_and_no_single_frame():
    assert "data.frame = 'cycle' chooses one frame" in fault(GOOD, ["data.tiling=true", "data.frame=cycle"]).cause
    cause = fault(GOOD, ["data.tiling=true", "model.image_size=45", "model.video_patch=5"]).cause
    assert "data.tiling = true needs an even model.image_size, not 45; try 40" in cause


def test_a_recipe_is_frozen():
    loaded = recipe.loads(GOOD)
    with pytest.raises(ValidationError):
        loaded.optim.lr = 1.0
    assert not dataclasses.is_dataclass(loaded)


def test_lines_of_dotted_and_quoted_keys_are_found():
    lines = key_lines('a.b = 1\n["c"]\n"d e" = 2\n[[f]]\nx = 1\n[[f]]\nx = 2\n')
    assert lines[("a", "b")] == 1
    assert lines[("c", "d e")] == 3
    assert lines[("f", 1, "x")] == 7


def test_a_key_that_is_not_written_has_the_line_of_its_table():
    assert line_of(key_lines(GOOD), ("optim", "eps")) == 7
    assert line_of(key_lines(GOOD), ("nowhere",)) == 1
