"""The machine that minimises any objective: loop, step, checkpoints, logs. Knows nothing of audio or video."""
