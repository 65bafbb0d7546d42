"""The end of every --help: commands to copy, and what the exit codes say."""

import inspect

import typer

EXAMPLES = {
    "demo": ("kdctool demo", "kdctool demo --out /tmp/demo --seed 1"),
    "extract": (
        "kdctool extract videos/ out/",
        "kdctool extract videos/ out/ --stride 10 --size 288 --workers 8",
        "kdctool extract videos/ shards/ --to-shards --labels folders",
    ),
    "shard": ("kdctool shard out/ shards/", "kdctool shard out/ shards/ --labels labels.csv"),
    "verify": ("kdctool verify shards/", "kdctool verify runs/NAME"),
    "data audit": ("kdctool data audit vggsound.csv --clips out/ --missing missing.txt",),
    "data convert": ("kdctool data convert shards/ lists/cavmae.json",),
    "recipe validate": ("kdctool recipe validate recipes/*.toml",),
    "recipe show": ("kdctool recipe show mine.toml --resolved --set optim.lr=1e-4",),
    "recipe schema": ("kdctool recipe schema > recipe.schema.json",),
    "recipe new": ("kdctool recipe new --from shards/ > mine.toml",),
    "import": (
        "kdctool import audio_model.25.pth base/ --as cav-mae",
        "kdctool import vit.safetensors base/ --as timm --model vit_base_patch16_224.mae",
    ),
    "pretrain": (
        "kdctool pretrain mine.toml --dry-run",
        "kdctool pretrain recipes/vggsound.toml --shards shards/ --set optim.lr=1e-4 --nproc 8",
    ),
    "replay": ("kdctool replay runs/NAME/nonfinite/step-120.json",),
    "finetune": (
        "kdctool finetune",
        "kdctool finetune runs/NAME --modality audio --set finetune.training.epochs=10",
    ),
    "launch": ("kdctool launch mine.toml --nodes 2 --gpus-per-node 8 --slurm > job.sh",),
    "sweep": (
        "kdctool sweep study.toml --dry-run",
        "kdctool sweep mine.toml --grid masking.audio_ratio=0.5,0.75 --seeds 3",
    ),
    "runs list": ("kdctool runs list",),
    "runs show": ("kdctool runs show NAME",),
    "runs watch": ("kdctool runs watch NAME --once",),
    "runs compare": ("kdctool runs compare NAME OTHER",),
    "eval": (
        "kdctool eval --task retrieval",
        "kdctool eval runs/NAME --task probe --option labels=k1,k10,all --split val",
    ),
    "report": ("kdctool report", "kdctool report runs/NAME -o page.html"),
    "compare": ("kdctool compare runs/A runs/B --task retrieval",),
    "embed": ("kdctool embed videos/ -o features.npy --stride 5",),
    "export": ("kdctool export runs/NAME --out export/ --shards shards/",),
    "doctor": ("kdctool doctor", "kdctool doctor --format json"),
}
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed while running, 2 wrong command or recipe, 3 unusable data, 4 machine or disk, "
    "5 verification, 75 stopped and goes on when typed again, 130 Ctrl-C."
)


def complete(app: typer.Typer, above: str = "") -> None:
    """Give every command of `app` its examples, and let the paragraphs of its text wrap at the terminal's width."""
    for command in app.registered_commands:
        name = above + (command.name or command.callback.__name__.replace("_", "-"))  # type: ignore[union-attr]
        paragraphs = inspect.cleandoc(command.help or command.callback.__doc__ or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        command.epilog = "\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[name])]) + f"\n\n{EXIT_CODES}"
    for group in app.registered_groups:
        complete(group.typer_instance, f"{group.name} ")  # type: ignore[arg-type]
