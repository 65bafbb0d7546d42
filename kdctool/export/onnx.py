"""ONNX graphs: audio embedding, video embedding, and the classifier if there is one. Float32, any batch size.

An image model has image.onnx in place of the first two. Inputs are what the encoder sees: the normalised filter bank
and the normalised frame; preprocessor_config.json and the metadata of every graph say how. Embeddings are the ones
retrieval compares: mean over tokens, unit length.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdctool.errors import EnvironmentFault, KdctoolError, VerificationFault
from kdctool.export import Check, Package, Probes, exporters
from kdctool.export.parity import LIMIT, graph_difference
from kdctool.files import disk_faults
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.image_classifier import ImageClassifier, patch_tokens
from kdctool.registry import Section

OPSET = 18
_PROTOBUF_LIMIT = 1_900_000_000
"""Bytes of weights above which one file cannot hold a graph; they then lie beside it as FILE.data."""


class AudioGraph(nn.Module):
    """fbank (B, T, F) -> embedding (B, D), unit length."""

    def __init__(self, encoder: AVEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, fbank: Tensor) -> Tensor:
        return F.normalize(self.encoder.embed_audio(fbank).mean(1), dim=-1)


class VideoGraph(nn.Module):
    """frame (B, C, H, W) -> embedding (B, D), unit length."""

    def __init__(self, encoder: AVEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frame: Tensor) -> Tensor:
        return F.normalize(self.encoder.embed_video(frame).mean(1), dim=-1)


class ImageGraph(nn.Module):
    """frame (B, C, H, W) -> embedding (B, D): the mean of an image model's patch tokens, unit length."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frame: Tensor) -> Tensor:
        return F.normalize(patch_tokens(self.encoder, frame).mean(1), dim=-1)


class ClassifierGraph(nn.Module):
    """fbank and / or frame, as the classifier's modality needs -> logits (B, classes)."""

    def __init__(self, classifier: AVClassifier | ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.names = {"audio": ("fbank",), "video": ("frame",), "both": ("fbank", "frame")}[classifier.modality]

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(dict(zip(self.names, inputs, strict=True)))
        return logits


def graphs(package: Package) -> dict[str, tuple[nn.Module, tuple[str, ...], str]]:
    """File name -> (module, names of its inputs, name of its output)."""
    found: dict[str, tuple[nn.Module, tuple[str, ...], str]] = {}
    if package.is_image:
        found["image.onnx"] = (ImageGraph(package.encoder).eval(), ("frame",), "embedding")
    else:
        found["audio.onnx"] = (AudioGraph(package.encoder).eval(), ("fbank",), "embedding")
        found["video.onnx"] = (VideoGraph(package.encoder).eval(), ("frame",), "embedding")
    if package.classifier is not None:
        head = ClassifierGraph(package.classifier).eval()
        found["classifier.onnx"] = (head, head.names, "logits")
    return found


def metadata(package: Package, inputs: tuple[str, ...], output: str) -> dict[str, str]:
    """What a runtime must know of the inputs where the folder is not at hand; values are JSON."""
    data, model = package.recipe.data, package.recipe.model
    told: dict[str, Any] = {"weights_sha256": package.source_sha256, "output": output}
    if "frame" in inputs:
        told |= {"image_size": model.image_size, "image_rescale_factor": 1 / 255}
        told |= {"image_mean": list(data.image_mean), "image_std": list(data.image_std)}
    if "fbank" in inputs:
        told |= {"fbank_mean": data.fbank_mean, "fbank_std": data.fbank_std}
    if output == "logits":
        told |= {"labels": list(package.labels), "multi_label": package.multi_label}
    return {f"kdctool.{name}": json.dumps(value, ensure_ascii=False) for name, value in told.items()}


@exporters.register("onnx")
class Onnx:
    """Writes the graphs with torch's dynamo exporter and compares each with eager under onnxruntime."""

    def __init__(self, options: Section | None = None) -> None:
        self.options = options or Section()

    def write(self, package: Package, folder: Path) -> list[str]:
        model = package.recipe.model
        examples = {
            "fbank": torch.zeros(2, model.audio_frames, model.mel_bins),
            "frame": torch.zeros(2, 3, model.image_size, model.image_size),
        }
        names = []
        for name, (module, inputs, output) in graphs(package).items():
            given = {key: examples[key] for key in inputs}
            names += write_graph(folder / name, module, given, output, metadata(package, inputs, output))
        return names

    def check(self, package: Package, folder: Path, probes: Probes) -> list[Check]:
        inputs = {"fbank": probes.fbank, "frame": probes.frame}
        return [
            Check(name, graph_difference(folder / name, module, {key: inputs[key] for key in keys}), LIMIT)
            for name, (module, keys, _) in graphs(package).items()
        ]


def write_graph(
    path: Path, module: nn.Module, examples: dict[str, Tensor], output: str, told: dict[str, str] | None = None
) -> list[str]:
    """Write `module` as an ONNX graph with a free first dimension `batch`; the names of the files it took.

    `told` becomes the graph's metadata.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch needs it for the export)
    except ImportError as error:
        raise EnvironmentFault(f"ONNX graphs cannot be written: {error}", "pip install onnx onnxscript") from error
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    batch = torch.export.Dim("batch")
    free = tuple({0: batch} for _ in examples)
    with disk_faults(path, needed=size):
        with quiet() as printed:
            try:
                program = torch.onnx.export(
                    module,
                    tuple(examples.values()),
                    dynamo=True,
                    input_names=list(examples),
                    output_names=[output],
                    # One positional tuple for a module that takes *inputs.
                    dynamic_shapes=(free,) if isinstance(module, ClassifierGraph) else free,
                    opset_version=OPSET,
                    verbose=False,
                )
                assert program is not None
                graph = without_traces(program.model_proto)
                onnx.helper.set_model_props(graph, told or {})
            except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
                raise KdctoolError(
                    f"torch could not write {path.name}: {_last(str(error), printed.getvalue())}"
                ) from error
        beside = path.name + ".data" if size > _PROTOBUF_LIMIT else None
        onnx.save(graph, str(path), save_as_external_data=beside is not None, location=beside)
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise VerificationFault(f"{path.name} is not a valid ONNX graph: {_last(str(error), '')}") from error
    return [path.name, beside] if beside else [path.name]


def without_traces(graph: Any) -> Any:
    """Drop torch's metadata: it holds source lines and paths of this machine, and no runtime reads it."""
    main = graph.graph
    for owner in (graph, main, *main.node, *main.input, *main.output, *main.value_info, *main.initializer):
        del owner.metadata_props[:]
    for node in main.node:
        node.doc_string = ""
    return graph


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keep the exporter's prints, log lines and warnings off the screen; its errors still raise."""
    printed, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield printed
    finally:
        logging.disable(before)


def _last(message: str, printed: str) -> str:
    lines = [line.strip() for line in (message or printed).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
