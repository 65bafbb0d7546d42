"""The file that holds embeddings: .npy (a matrix, its rows described beside it) or .parquet (one table)."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np

from kdctool.errors import EnvironmentFault, UsageFault
from kdctool.files import write_bytes, write_json

SUFFIXES = (".npy", ".parquet")
VECTORS = ("audio", "video", "joint")


def check(out: Path) -> None:
    """UsageFault for a name without a known suffix, EnvironmentFault for Parquet without pyarrow."""
    if out.suffix not in SUFFIXES:
        raise UsageFault(f"{out} is neither .npy nor .parquet", "name the file features.npy or features.parquet")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise EnvironmentFault(f"{out}: Parquet needs pyarrow", "pip install 'kdctool[parquet]', or name it .npy")


def vectors(table: dict[str, np.ndarray]) -> tuple[str, ...]:
    """The kinds of vectors that a table has, in the order of the file."""
    return tuple(name for name in VECTORS if name in table)


def write(out: Path, table: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Write a table of rows (uid, source, start_s, duration_s) with vectors (N, D): audio, video, joint or some.

    .npy holds float32 (N, kinds, D), audio, video and joint in this order, and OUT.json the rows; .parquet has a column
    each, vectors as lists of float32.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        held = io.BytesIO()
        np.save(held, np.stack([table[name] for name in vectors(table)], axis=1))
        rows = {name: table[name].tolist() for name in ("uid", "source", "start_s", "duration_s")}
        write_json(out.with_name(out.name + ".json"), {**about, "vectors": list(vectors(table)), "rows": rows})
        write_bytes(out, held.getvalue())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for name, values in table.items():
        if values.ndim == 2:
            flat = pa.array(values.astype(np.float32).ravel())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        else:
            columns[name] = pa.array(values.tolist())
    held = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({key: str(value) for key, value in about.items()}), held)
    write_bytes(out, held.getvalue())
