"""The pieces of gpu_all.py in the order of their importance, and how many seconds each may take. Free of torch."""

MEASURES = "gpu_pieces"
"""The module that has a generator of rows for each."""
BUDGETS = {
    "machine": 20.0,
    "against_reference": 120.0,
    "batch_sizes": 110.0,
    "profile": 40.0,
    "end_to_end": 90.0,
    "agreement": 40.0,
    "filter_bank": 15.0,
    "attention": 20.0,
    "cav_mae": 45.0,
    "compile_ways": 60.0,
    "finetuning": 45.0,
    "checkpointed": 30.0,
    "optimizers": 10.0,
}
"""Together more than 9 minutes only if every piece uses all of its time."""
