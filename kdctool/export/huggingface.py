"""A folder as on the Hugging Face hub: model.safetensors with the released names, config.json, kdctool.json.

`kdctool.json` is what kdctool opens the folder by; config.json says the same in the hub's words.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from kdctool import __version__
from kdctool.export import Check, Package, Probes, exporters
from kdctool.export.parity import tensor_difference
from kdctool.files import sha256_file, write_bytes, write_json
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.weights import split_state
from kdctool.registry import Section

WEIGHTS, CONFIG, ABOUT = "model.safetensors", "config.json", "kdctool.json"
MODEL_TYPE = "kdctool-cav-mae"


def released_state(package: Package) -> dict[str, Tensor]:
    """Weights by the names of published CAV-MAE checkpoints; with a decoder only where the package keeps one."""
    state = dict(package.encoder.state_dict()) | package.decoder
    if package.classifier is not None:
        state |= {f"mlp_head.{name}": value for name, value in package.classifier.mlp_head.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def config(package: Package) -> dict[str, Any]:
    """config.json: every key of the recipe's model section, and what the weights are."""
    model = package.recipe.model.model_dump(mode="json", exclude={"init"})
    found = {
        "model_type": MODEL_TYPE,
        "architectures": ["AVClassifier" if package.classifier else "AVEncoder"],
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

    takes: Literal["audio-visual"] = "audio-visual"

    def __init__(self, options: Section | None = None) -> None:
        self.options = options or Section()

    def write(self, package: Package, folder: Path) -> list[str]:
        write_bytes(folder / WEIGHTS, save(released_state(package), metadata={"format": "pt"}))
        write_json(folder / CONFIG, config(package))
        write_json(
            folder / ABOUT,
            {
                "kdctool": __version__,
                "kind": package.kind,
                "step": package.step,
                "labels": list(package.labels),
                "multi_label": package.multi_label,
                "recipe": package.recipe.model_dump(mode="json"),
                "recipe_digest": package.recipe_digest,
                "data_digest": package.data_digest,
                "clip": package.clip,
                "source": package.source,
                "source_sha256": package.source_sha256,
                "weights_sha256": sha256_file(folder / WEIGHTS),
            },
        )
        return [WEIGHTS, CONFIG, ABOUT]

    def check(self, package: Package, folder: Path, probes: Probes) -> list[Check]:
        """Tensors and outputs of a model built from the written file alone; both must be equal bit for bit."""
        state = load_file(folder / WEIGHTS)
        checks = [Check(f"{WEIGHTS} (tensors)", tensor_difference(released_state(package), state), 0.0)]
        if checks[0].difference:
            return checks
        head = {name.removeprefix("mlp_head."): value for name, value in state.items() if name.startswith("mlp_head.")}
        with torch.device("meta"):  # No memory and no random draws for weights that are replaced at once.
            again = AVEncoder(package.recipe.model)
        again.load_state_dict(split_state(state)[0], assign=True)
        outputs: list[tuple[Any, Any]] = [(package.encoder, again.eval())]
        if package.classifier is not None:
            with torch.device("meta"):
                own = package.classifier
                classifier = AVClassifier(again, len(package.labels), own.modality, own.head)
            classifier.mlp_head.load_state_dict(head, assign=True)
            outputs.append((package.classifier, classifier.eval()))
        worst = max(tensor_difference(*(_outputs(model, probes) for model in pair)) for pair in outputs)
        return [*checks, Check(f"{WEIGHTS} (reloaded model)", worst, 0.0)]


@torch.inference_mode()
def _outputs(model: AVEncoder | AVClassifier, probes: Probes) -> dict[str, Tensor]:
    fbank, frame = probes.fbank[:2], probes.frame[:2]
    if isinstance(model, AVClassifier):
        return {"logits": model({"fbank": fbank, "frame": frame})}
    return {"audio": model.embed_audio(fbank), "video": model.embed_video(frame)}
