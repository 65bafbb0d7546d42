"""What the rows of gpu_all.py come to. Free of torch."""

from typing import Any

Row = dict[str, Any]


def ratios(rows: dict[str, list[Row]]) -> dict[str, float]:
    """What the issue asks for, from the rows that are there."""
    found: dict[str, float] = {}
    side = {item["name"]: item for item in rows.get("against_reference", []) if "batch" in item}
    best = max((side[name] for name in side if name.startswith("ours")), key=lambda item: item["value"], default=None)
    if best is not None and "reference_fp16" in side:
        base = side["reference_fp16"]
        found["step_speedup_over_reference_bf16"] = best["value"] / base["value"]
        if best["peak_memory_gb"]:
            found["step_memory_saving_over_reference_bf16"] = base["peak_memory_gb"] / best["peak_memory_gb"]
    rate = next((item["value"] for item in rows.get("machine", []) if item["name"].startswith("bf16_matmul")), None)
    every = [*side.values(), *(item for item in rows.get("batch_sizes", []) if "tflops" in item)]
    own = [item["tflops"] for item in every if item["name"] != "reference_fp16"]
    if rate and own:
        found["step_share_of_matmul_rate_bf16"] = max(own) / rate
    ends = {item["name"]: item["value"] for item in rows.get("end_to_end", []) if "value" in item}
    if "from_shards" in ends and "synthetic" in ends:
        found["end_to_end_share_of_synthetic"] = ends["from_shards"] / ends["synthetic"]
    return found
