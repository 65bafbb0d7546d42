"""The finetuning case: logits of every mode, both losses, gradients, retrieval features."""

import torch
from golden_case import OUTPUT, Case
from golden_pretrain import model_options

from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.weights import load_encoder, load_strict, split_state
from kdctool.objectives.classification import ClassificationObjective
from kdctool.recipe import Finetune
from kdctool.tasks.retrieval import unit_embedding

MODES = {"audioonly": "audio", "videoonly": "video", "multimodal": "both"}


def finetune(case: Case) -> None:
    """`both` comes last: its gradients are compared."""
    state = case.weights()
    encoder = AVEncoder(model_options(case.config))
    load_encoder(encoder, state)
    classes = case.config["label_dim"]
    batch = {"fbank": case.input("audio"), "frame": case.input("imgs")}
    found = {}
    for mode, modality in MODES.items():
        classifier = AVClassifier(encoder, classes, modality)
        load_strict(classifier.mlp_head, split_state(state)[2], "head")
        with torch.no_grad():
            found[f"logits_{mode}"] = classifier(batch)
    with torch.no_grad():
        found["logits_missingaudioonly"] = classifier.with_missing(batch, present="audio")
        found["logits_missingvideoonly"] = classifier.with_missing(batch, present="video")
        found["feat_a"], found["feat_v"] = encoder.embed_audio(batch["fbank"]), encoder.embed_video(batch["frame"])
        found["retrieval_a"], found["retrieval_v"] = unit_embedding(found["feat_a"]), unit_embedding(found["feat_v"])
    case.all_close(found, OUTPUT)
    one_hot = torch.nn.functional.one_hot(case.input("labels_index"), classes).float()
    rng = torch.Generator()
    options = Finetune(label_smoothing=0.0)
    for name, label, several in (("ce", one_hot, False), ("bce", case.input("labels_multi_hot"), True)):
        objective = ClassificationObjective(options, classifier, classes, multi_label=several)
        loss = objective({**batch, "label": label}, rng, len(label))
        case.all_close({f"{name}_multimodal": loss.total}, OUTPUT)
        if case.about.get("grad_of") == f"{name}_multimodal":
            classifier.zero_grad()
            loss.total.backward()
            named = {key.removeprefix("encoder."): p.grad for key, p in classifier.named_parameters()}
            case.gradients(named)


CASES = {"cavmae_finetune": finetune}
