"""kdctool recipe validate, show and schema, as a person types them."""

import json
import tomllib
from pathlib import Path

import pytest

from kdctool import recipe
from kdctool.cli import recipe as command
from kdctool.cli import run
from kdctool.errors import UsageFault

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SHIPPED = sorted(RECIPES.glob("*.toml"))


def test_validate_accepts_every_shipped_recipe(capsys):
    assert run(["recipe", "validate", *map(str, SHIPPED)]) == 0
    assert capsys.readouterr().out.count(": valid (") == len(SHIPPED)


def test_validate_tells_the_errors_of_all_files_and_ends_with_2(tmp_path, capsys):
    (tmp_path / "a.toml").write_text("name = 1\n")
    (tmp_path / "b.toml").write_text('name = "b"\n[optim]\nlrr = 1\n')
    assert (
        run(["recipe", "validate", str(tmp_path / "a.toml"), str(RECIPES / "demo.toml"), str(tmp_path / "b.toml")]) == 2
    )
    said = capsys.readouterr()
    assert "a.toml:1  name must be a valid string, got 1" in said.err
    assert "b.toml:3  unknown key optim.lrr (did you mean optim.lr?)" in said.err
    assert "demo.toml: valid" in said.out


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_show_prints_toml_that_resolves_to_the_same_recipe(path, capsys):
    for arguments in ([], ["--resolved"]):
        assert run(["recipe", "show", str(path), *arguments]) == 0
        assert recipe.loads(capsys.readouterr().out) == recipe.load(path)


def test_show_tells_where_each_value_came_from(capsys):
    run(["recipe", "show", str(RECIPES / "vggsound_cavmae.toml"), "--resolved", "--set", "optim.lr=3e-4"])
    lines = capsys.readouterr().out.splitlines()
    assert "lr = 0.0003  # --set" in lines
    assert "views = 1  # preset cav_mae" in lines
    assert "epochs = 25  # recipe" in lines
    assert "eps = 1e-08  # default" in lines


def test_show_without_resolved_leaves_the_defaults_out(capsys):
    run(["recipe", "show", str(RECIPES / "vggsound.toml")])
    assert "# default" not in capsys.readouterr().out


def test_show_keeps_options_and_odd_strings_readable(tmp_path, capsys):
    text = 'name = "a \\"b\\" # c"\n[masking]\naudio_options = { "k e" = [1, { x = "y" }] }\n'
    (tmp_path / "odd.toml").write_text(text)
    assert run(["recipe", "show", str(tmp_path / "odd.toml"), "--resolved"]) == 0
    assert recipe.loads(capsys.readouterr().out) == recipe.loads(text)


def test_schema_is_json_schema_that_knows_every_section(capsys):
    assert run(["recipe", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(recipe.Recipe.model_fields)
    described = [part for part in schema["$defs"].values() if "description" in part]
    assert len(described) == len(schema["$defs"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_says_what_to_expect_and_how_to_override(path):
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("Reproduces", "Expect", "Hours", "--set"):
        assert word in header
    loaded = recipe.load(path)
    assert loaded.description
    for row in loaded.expected:
        assert 0 < row.value < 1
        assert row.source


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_writes_down_how_finetuning_goes(path):
    """Keys left out of finetune.optim or finetune.training fall back to those of pre-training, not of finetuning."""
    tree = tomllib.loads(path.read_text(encoding="utf-8"))["finetune"]
    assert {"name", "lr", "schedule"} <= set(tree["optim"])
    assert {"epochs", "global_batch", "precision"} <= set(tree["training"])


def test_published_settings_are_those_of_cav_mae():
    for name in ("vggsound", "vggsound_cavmae", "kinetics_kdcmae", "audioset_kdcmae"):
        loaded = recipe.load(RECIPES / f"{name}.toml")
        assert (loaded.optim.name, loaded.optim.lr, loaded.optim.betas) == ("adam", 1e-4, (0.95, 0.999))
        assert (loaded.optim.step_start, loaded.optim.step_every, loaded.optim.step_gamma) == (10, 5, 0.5)
        assert (loaded.training.epochs, loaded.training.global_batch, loaded.optim.weight_decay) == (25, 120, 5e-7)
        assert (loaded.model.width, loaded.model.depth, loaded.model.joint_depth) == (768, 11, 1)
        assert loaded.objective.contrastive.weight == 0.01
    assert recipe.load(RECIPES / "vggsound.toml").masking.views == 2
    assert recipe.load(RECIPES / "vggsound_cavmae.toml").masking.views == 1


def test_a_file_that_is_not_there_ends_with_2_and_a_hint(capsys):
    assert run(["recipe", "show", "recipes/vgsound.toml"]) == 2
    assert "cannot read recipe" in capsys.readouterr().err


def test_new_prints_a_valid_recipe_on_stdout_and_the_estimate_on_stderr(tiny_shards, capsys):
    assert run(["recipe", "new", "--from", str(tiny_shards), "--name", "pets", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    loaded = recipe.loads(said.out)
    assert loaded.name == "pets"
    assert loaded.data.shards == str(tiny_shards)
    assert loaded.model.image_size == 32
    assert "pre-training takes" in said.err


def test_new_without_shards_names_the_commands_that_make_them(tmp_path, capsys):
    assert run(["recipe", "new", "--from", str(tmp_path / "none"), "--device", "cpu"]) == 3
    assert "kdctool shard" in capsys.readouterr().err


def test_validate_raises_when_called_from_python(tmp_path):
    with pytest.raises(UsageFault, match="cannot read recipe"):
        command.validate([tmp_path / "none.toml"])
