"""A folder as on the Hugging Face hub: model.safetensors with the released names, config.json, kdctool.json.

`kdctool.json` is what kdctool opens the folder by; config.json says the same in the hub's words. An image model's
encoder has timm's names; the folder is for kdctool all the same, and what timm opens is the exporter `timm`.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from kdctool import __version__
from kdctool.export import Check, Package, Probes, exporters
from kdctool.export.about import ABOUT, WEIGHTS, write_about
from kdctool.export.parity import tensor_difference
from kdctool.files import write_bytes, write_json
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.image_classifier import ImageClassifier, image_model, patch_tokens
from kdctool.models.weights import split_state
from kdctool.registry import Section

CONFIG = "config.json"
MODEL_TYPE, IMAGE_MODEL_TYPE = "kdctool-cav-mae", "kdctool-vit"


def released_state(package: Package) -> dict[str, Tensor]:
    """Weights by the names of published CAV-MAE checkpoints; with a decoder only where the package keeps one."""
    state = dict(package.encoder.state_dict()) | package.decoder
    if package.classifier is not None:
        state |= {f"mlp_head.{name}": value for name, value in package.classifier.mlp_head.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def config(package: Package) -> dict[str, Any]:
    """config.json: every key of the recipe's sections that describe the model, and what the weights are."""
    model = package.recipe.model.model_dump(mode="json", exclude={"init"})
    kinds = "AVClassifier", "AVEncoder"
    if package.is_image:
        student = package.recipe.objective.distill.student
        model = {"arch": student.arch, "pos": student.pos, "image_size": package.recipe.model.image_size}
        kinds = "ImageClassifier", "ViT"
    found = {
        "model_type": IMAGE_MODEL_TYPE if package.is_image else MODEL_TYPE,
        "architectures": [kinds[0] if package.classifier else kinds[1]],
        **model,
        "kind": package.kind,
        "objective": package.recipe.objective.name,
        "torch_dtype": "float32",
        "kdctool_version": __version__,
    }
    if package.classifier is not None:
        found |= {
            "modality": package.classifier.modality,
            "labels": list(package.labels),
            "id2label": {str(place): name for place, name in enumerate(package.labels)},
            "label2id": {name: place for place, name in enumerate(package.labels)},
            "problem_type": "multi_label_classification" if package.multi_label else "single_label_classification",
        }
    return found


@exporters.register("hf")
class HuggingFace:
    """Writes the folder and reads it back bit for bit."""

    owns: ClassVar[tuple[str, ...]] = (WEIGHTS, CONFIG, ABOUT)

    def __init__(self, options: Section | None = None) -> None:
        self.options = options or Section()

    def write(self, package: Package, folder: Path) -> list[str]:
        write_bytes(folder / WEIGHTS, save(released_state(package), metadata={"format": "pt"}))
        write_json(folder / CONFIG, config(package))
        return [WEIGHTS, CONFIG, write_about(package, folder, "released")]

    def check(self, package: Package, folder: Path, probes: Probes) -> list[Check]:
        """Tensors and outputs of a model built from the written file alone; both must be equal bit for bit."""
        state = load_file(folder / WEIGHTS)
        checks = [Check(f"{WEIGHTS} (tensors)", tensor_difference(released_state(package), state), 0.0)]
        if checks[0].difference:
            return checks
        encoder, classifier = _again(package, state)
        outputs: list[tuple[Any, Any]] = [(package.encoder, encoder)]
        if package.classifier is not None:
            outputs.append((package.classifier, classifier))
        worst = max(tensor_difference(*(_outputs(model, probes) for model in pair)) for pair in outputs)
        return [*checks, Check(f"{WEIGHTS} (reloaded model)", worst, 0.0)]


def _again(package: Package, state: dict[str, Tensor]) -> tuple[Any, Any]:
    """Encoder and classifier (None without one) from the tensors alone."""
    encoder, _, head = split_state(state)
    if package.is_image:
        return image_model(package.recipe, len(package.labels), encoder, head)
    with torch.device("meta"):  # No memory and no random draws for weights that are replaced at once.
        again = AVEncoder(package.recipe.model)
    again.load_state_dict(encoder, assign=True)
    if not isinstance(package.classifier, AVClassifier):
        return again.eval(), None
    with torch.device("meta"):
        own = package.classifier
        classifier = AVClassifier(again, len(package.labels), own.modality, own.head)
    classifier.mlp_head.load_state_dict(head, assign=True)
    return again.eval(), classifier.eval()


@torch.inference_mode()
def _outputs(model: Any, probes: Probes) -> dict[str, Tensor]:
    fbank, frame = probes.fbank[:2], probes.frame[:2]
    if isinstance(model, AVClassifier | ImageClassifier):
        return {"logits": model({"fbank": fbank, "frame": frame})}
    if not isinstance(model, AVEncoder):
        return {"video": patch_tokens(model, frame)}
    return {"audio": model.embed_audio(fbank), "video": model.embed_video(frame)}
