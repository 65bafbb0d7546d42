"""Open the teachers that a recipe of distillation names: files, folders, the hub's cache, runs and exports."""

from pathlib import Path
from typing import Any

from kdctool.errors import EnvironmentFault, UsageFault
from kdctool.files import read_json, sha256_file
from kdctool.models.teachers import About, Seen, Teacher, from_timm
from kdctool.objectives.distill_cost import bill
from kdctool.objectives.hybrid_distill import HybridDistill
from kdctool.recipe import Recipe
from kdctool.recipe.distill import TeacherSource
from kdctool.stages.load import EXPORT_FILE, open_model
from kdctool.stages.read_weights import read_weights
from kdctool.stages.run_folder import RUN_FILE

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OF_A_RUN = "licence as of the data and weights that it was trained from"


def open_teachers(recipe: Recipe) -> dict[str, Teacher]:
    """The teachers that losses and mask ask for, by name, frozen and on the CPU."""
    distill = recipe.objective.distill
    return {name: _open(name, distill.teachers[name], recipe) for name in distill.used()}


def identity(objective: Any) -> dict[str, Any]:
    """What of the teachers guards a resume: the sha256 of their weights."""
    if not isinstance(objective, HybridDistill):
        return {}
    return {"teachers": {name: teacher.about.sha256 for name, teacher in objective.teachers.by_name().items()}}


def identity_of(recipe: Recipe) -> dict[str, Any]:
    """What `identity` says of the objective that the recipe builds."""
    found = open_teachers(recipe)
    return {"teachers": {name: teacher.about.sha256 for name, teacher in found.items()}} if found else {}


def described(objective: Any) -> dict[str, Any]:
    """What run.json says of the teachers."""
    if not isinstance(objective, HybridDistill):
        return {}
    return {"teachers": {name: teacher.described() for name, teacher in objective.teachers.by_name().items()}}


def rows(objective: Any) -> list[tuple[str, str]]:
    """For the screen: every teacher with its licence, what the student is shown, and what a step costs."""
    if not isinstance(objective, HybridDistill):
        return []
    cost, whole = bill(objective), bill(objective, masked=False)
    found = [(f"teacher {name}", teacher.about.said()) for name, teacher in objective.teachers.by_name().items()]
    found += [
        (f"{name} tokens", f"{kept} of {all_} shown to the student") for name, (kept, all_) in cost.tokens.items()
    ]
    parts = [f"student 3 x {cost.student:.2f}", *(f"{name} {macs:.2f}" for name, macs in cost.teachers.items())]
    against = f"; {whole.step / cost.step:.2f} x less than without the mask" if whole.step > cost.step else ""
    return [*found, ("multiply-adds", f"{cost.step:.2f} G per clip = {' + '.join(parts)}{against}")]


def _open(name: str, source: TeacherSource, recipe: Recipe) -> Teacher:
    path, kind = Path(source.path), _kind(source)
    if source.path and not path.exists():
        repository = _repository(source.id)
        where = f"hf download {repository} {WEIGHTS}" if repository else "fetch it where there is a network"
        raise UsageFault(
            f"teacher '{name}': there are no weights at {path}",
            f"{where}, then set objective.distill.teachers.{name}.path to the file",
        )
    return _SOURCES[kind](name, source, recipe)


def _kind(source: TeacherSource) -> str:
    if source.source != "auto":
        return source.source
    path = Path(source.path)
    if not source.path:
        return "timm"
    if (path / RUN_FILE).exists() or (path / EXPORT_FILE).exists():
        return "run"
    return "dir" if path.is_dir() else "file"


def _from_file(name: str, source: TeacherSource, recipe: Recipe) -> Teacher:
    path = Path(source.path)
    if not path.is_file():
        raise UsageFault(f"teacher '{name}': {path} is a folder", 'set source = "dir" or "run", or name the file in it')
    if not source.id:
        raise UsageFault(
            f"teacher '{name}': a file of weights does not say which model it is of",
            f"set objective.distill.teachers.{name}.id, for example vit_base_patch16_224.mae",
        )
    return _timm(name, source, recipe, source.id, path, None)


def _from_folder(name: str, source: TeacherSource, recipe: Recipe) -> Teacher:
    """A folder as timm's save_for_hf writes one."""
    folder = Path(source.path)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UsageFault(
            f"teacher '{name}': {folder} is no folder of timm's: it needs {CONFIG} and {WEIGHTS}",
            "name the file of the weights itself and set id, or give a run of kdctool",
        )
    config = read_json(folder / CONFIG)
    model = source.id or config.get("architecture", "")
    if not model:
        raise UsageFault(f"teacher '{name}': {folder / CONFIG} names no architecture",
                         f"set objective.distill.teachers.{name}.id")  # fmt: skip
    card = {key: value for key, value in config.get("pretrained_cfg", {}).items() if key in ("mean", "std", "license")}
    return _timm(name, source, recipe, model, folder / WEIGHTS, card)


def _from_hub(name: str, source: TeacherSource, recipe: Recipe) -> Teacher:
    """The hub's cache, or the network where there is one."""
    from huggingface_hub import hf_hub_download

    repository = _repository(source.id)
    fix = f"fetch {WEIGHTS} where there is a network and set objective.distill.teachers.{name}.path to it"
    if not repository:
        raise UsageFault(f"teacher '{name}': timm knows no weights of '{source.id}'", fix)
    try:
        path = Path(hf_hub_download(repository, WEIGHTS))
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise EnvironmentFault(f"teacher '{name}': {repository} cannot be fetched: {first}", fix) from error
    return _timm(name, source, recipe, source.id, path, None)


def _repository(model: str) -> str:
    """Where timm publishes the weights of a model; empty where it knows none."""
    import timm

    known = timm.get_pretrained_cfg(model, allow_unregistered=True) if model else None
    return str(getattr(known, "hf_hub_id", None) or "")


def _timm(
    name: str, source: TeacherSource, recipe: Recipe, model: str, path: Path, card: dict[str, Any] | None
) -> Teacher:
    return from_timm(
        name,
        model,
        read_weights(path),
        str(path),
        sha256_file(path),
        recipe.data,
        image_size=source.image_size or recipe.model.image_size,
        mean=source.mean,
        std=source.std,
        card=card,
    )


def _from_run(name: str, source: TeacherSource, recipe: Recipe) -> Teacher:
    """A run or an export of ours: an audio-visual encoder, or the image student of an earlier distillation."""
    path, given = Path(source.path), Seen.of(recipe.data)
    opened = open_model(path, images=True)
    own = Seen.of(opened.recipe.data)
    if opened.is_image:
        about = About(opened.recipe.objective.distill.student.arch, str(path), opened.weights_sha256, OF_A_RUN)
        return Teacher(opened.encoder, about, own, given)
    theirs, ours = opened.recipe.model, recipe.model
    if (theirs.audio_frames, theirs.mel_bins) != (ours.audio_frames, ours.mel_bins):
        raise UsageFault(
            f"teacher '{name}' hears {theirs.audio_frames} x {theirs.mel_bins} filter-bank frames x bins, the student "
            f"{ours.audio_frames} x {ours.mel_bins}",
            f"--set model.audio_frames={theirs.audio_frames} --set model.mel_bins={theirs.mel_bins}",
        )
    about = About(f"{opened.recipe.objective.name} ({opened.kind})", str(path), opened.weights_sha256, OF_A_RUN)
    return Teacher(opened.encoder, about, own, given, fbank=True)


_SOURCES = {"file": _from_file, "dir": _from_folder, "timm": _from_hub, "run": _from_run}
"""By the names of objective.distill.teachers.*.source."""
