"""Points of the objective space that have a name: defaults beneath what the recipe itself says."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "kdc_mae": {},
    "kdc_mae_3": {"masking": {"views": 3}},
    "cav_mae": {"masking": {"views": 1}, "objective": {"self_distillation": {"weight": 0.0}}},
    "mae": {
        "masking": {"views": 1},
        "objective": {"self_distillation": {"weight": 0.0}, "contrastive": {"weight": 0.0}},
    },
    "cav": {
        "masking": {"views": 1},
        "objective": {"self_distillation": {"weight": 0.0}, "reconstruction": {"weight": 0.0}},
    },
}
"""kdc_mae: two complementary views and all three terms (Bora et al., WACV 2025); kdc_mae_3: with
three views. cav_mae: one view, no self-distillation (Gong et al., ICLR 2023). mae: its reconstruction alone. cav: its
contrastive loss alone."""


def beneath(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`given` with the keys of `defaults` that it does not set itself."""
    merged = dict(given)
    for key, value in defaults.items():
        if isinstance(value, dict):
            below = merged.get(key, {})
            merged[key] = beneath(below, value) if isinstance(below, dict) else below
        else:
            merged.setdefault(key, value)
    return merged
