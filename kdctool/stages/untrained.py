"""A run that was never trained: the model as the seed initialises it, to see what training adds."""

from pathlib import Path

from kdctool.errors import quoted
from kdctool.progress import say
from kdctool.recipe import Recipe
from kdctool.registry import load_plugins
from kdctool.shards import index as shard_index
from kdctool.stages import pretrain, run_folder
from kdctool.stages.fitting import lock_run
from kdctool.train import checkpoint
from kdctool.train.log import write_status


def run(recipe: Recipe, *, shards: Path | None = None, out: Path) -> Path:
    """Write the model that pre-training would start from as a run of no steps; done already, only its key is checked.

    `kdctool pretrain` refuses to go on from it: it says in its run.json that nothing is trained.
    """
    load_plugins(recipe.plugins)
    index = shard_index.load(Path(shards or recipe.data.shards))
    guard = {"untrained": True, **pretrain.guard(recipe)}
    about = {"clip": index.settings, "shards": str(index.folder.resolve())}
    with lock_run(out):
        prepared = run_folder.prepare(out, recipe, "pretrain", index.digest, guard, about)
        if checkpoint.latest(out / "checkpoints") is None:
            objective = pretrain.build_objective(recipe)
            identity = {"recipe_digest": prepared["recipe_digest"], "data_digest": index.digest}
            state = {"step": 0, "clips": 0, "skipped": [], "optimizer_groups": [], **checkpoint.machine(), **identity}
            model = {name: tensor.detach().contiguous() for name, tensor in objective.state_dict().items()}
            checkpoint.write(out / "checkpoints", checkpoint.Snapshot(model, {}, state))
            say(f"{out}: the model as seed {recipe.seed} initialises it, not trained")
        write_status(out, "done", 0, 0, next_step=f"kdctool eval {quoted(out)} --task retrieval")
    return out
