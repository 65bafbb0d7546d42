"""A run is one TOML file: frozen sections, strict types, errors with file and line. Torch-free."""

from kdctool.recipe.load import load, loads, shipped, validate
from kdctool.recipe.sections import (
    Contrastive,
    Data,
    Decoder,
    Expected,
    Finetune,
    Log,
    Masking,
    Model,
    Objective,
    Optim,
    Recipe,
    Reconstruction,
    SelfDistillation,
    Training,
)
from kdctool.recipe.write import changed_keys, origins, result_keys, to_toml

__all__ = [
    "Contrastive",
    "Data",
    "Decoder",
    "Expected",
    "Finetune",
    "Log",
    "Masking",
    "Model",
    "Objective",
    "Optim",
    "Recipe",
    "Reconstruction",
    "SelfDistillation",
    "Training",
    "changed_keys",
    "load",
    "loads",
    "origins",
    "result_keys",
    "shipped",
    "to_toml",
    "validate",
]
