"""Reading the decoded training split back, and its statistics: `python -m benchmarks.reading idxflow`.

All read the same 60,000 images and labels into uint8 arrays, from a file in the system's cache. The variants of
`statistics` read our Parquet file and end with the mean of each pixel and one standard deviation over all, of pixels
scaled to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import decoding, subjects
from benchmarks.decoding import arrays
from benchmarks.subjects import Measured


def ours() -> Measured:
    """Our reader, with page checksums verified and the columns checked."""
    from storage.formats import parquet

    file = decoding.decoded("train").file
    return arrays("idxflow", lambda: parquet.read(file))


def our_blocks() -> Measured:
    """The same in blocks, as the steps read it: never more than one block in memory."""
    from storage.formats import parquet

    file = decoding.decoded("train").file

    def read() -> int:
        return sum(len(labels) for _, labels in parquet.blocks(file))

    return Measured({"idxflow, in blocks": subjects.timed(read)}, f"{read():,} rows")


def pyarrow_same_file() -> Measured:
    """The same file by pyarrow's shortest call, checksums not verified."""
    file = decoding.decoded("train").file

    def read() -> tuple[Any, Any]:
        table = pq.read_table(file, use_threads=subjects.threads() > 1)
        column = table.column("image").combine_chunks()
        return np.frombuffer(column.buffers()[1], np.uint8), table.column("label").to_numpy()

    return arrays("pyarrow", read)


def pandas_same_file() -> Measured:
    """The same file by pandas, the pixels joined afterwards."""
    import pandas as pd

    file = decoding.decoded("train").file

    def read() -> tuple[Any, Any]:
        frame = pd.read_parquet(file)
        return np.frombuffer(b"".join(frame["image"]), np.uint8), frame["label"].to_numpy()

    return arrays("pandas", read)


def pyarrow_lists() -> Measured:
    """Parquet with the pixels as a list of numbers, as most write it."""
    file = subjects.new_folder("lists") / "train.parquet"
    images, labels = subjects.load("train-images"), subjects.load("train-labels")
    column = pa.ListArray.from_arrays(np.arange(0, images.size + 1, 784, dtype=np.int32), pa.array(images.ravel()))
    pq.write_table(pa.table({"image": column, "label": labels}), file, compression="zstd")

    def read() -> tuple[Any, Any]:
        table = pq.read_table(file, use_threads=subjects.threads() > 1)
        return table.column("image").combine_chunks().flatten().to_numpy(), table.column("label").to_numpy()

    return arrays("Parquet with lists", read)


def numpy_file(name: str, save: Callable[..., None]) -> Measured:
    """NumPy's own archive of arrays."""
    file = subjects.new_folder("npz") / "train.npz"
    save(file, images=subjects.load("train-images"), labels=subjects.load("train-labels"))

    def read() -> tuple[Any, Any]:
        with np.load(file, allow_pickle=False) as found:
            return found["images"], found["labels"]

    return arrays(name, read)


Statistics = tuple[np.ndarray, float]


def statistics(name: str, compute: Callable[[], Statistics]) -> Measured:
    """Time `compute`, once it gave the right numbers."""
    mean, deviation = compute()
    scaled = subjects.load("train-images").reshape(-1, 784) / 127.5 - 1
    if not np.allclose(mean, scaled.mean(axis=0), atol=1e-4) or not np.isclose(deviation, scaled.std(), atol=1e-4):
        raise ValueError(f"{name} found other statistics than NumPy in float64")
    return Measured({name: subjects.timed(compute)}, f"standard deviation {deviation:.6f}")


def our_statistics() -> Statistics:
    """Exact sums, block by block."""
    from tasks.normalize import statistics as found

    split = decoding.decoded("train")
    result = found(split)
    return result.mean, result.std


def numpy_statistics(kind: Any) -> Statistics:
    """As the tutorial: scale all pixels, then `mean` and `std`."""
    pixels = (_pixels() / kind(255) - kind(0.5)) * kind(2)
    return pixels.mean(axis=0), float(pixels.std())


def sklearn_statistics() -> Statistics:
    """`StandardScaler`, its variances of each pixel combined to one over all."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(_pixels())
    mean, spread = scaler.mean_, scaler.var_.mean() + scaler.mean_.var()
    return mean / 127.5 - 1, float(np.sqrt(spread)) / 127.5


def keras_statistics() -> Statistics:
    """The layer `Normalization` of Keras, adapted to all rows."""
    from benchmarks.training import tensorflow_keras

    layer = tensorflow_keras().layers.Normalization()
    layer.adapt(_pixels().astype(np.float32))
    mean, variance = (np.asarray(values).ravel() for values in (layer.mean, layer.variance))
    return mean / 127.5 - 1, float(np.sqrt(variance.mean() + mean.var())) / 127.5


def _pixels() -> np.ndarray:
    table = pq.read_table(decoding.decoded("train").file, use_threads=subjects.threads() > 1)
    return np.frombuffer(table.column("image").combine_chunks().buffers()[1], np.uint8).reshape(-1, 784)


VARIANTS: subjects.Variants = {
    "idxflow": ours,
    "idxflow, in blocks": our_blocks,
    "pyarrow": pyarrow_same_file,
    "pandas": pandas_same_file,
    "Parquet with lists": pyarrow_lists,
    "npz": lambda: numpy_file("npz", np.savez_compressed),
    "npz, not compressed": lambda: numpy_file("npz, not compressed", np.savez),
    "statistics idxflow": lambda: statistics("statistics idxflow", our_statistics),
    "statistics numpy float32": lambda: statistics("statistics numpy float32", lambda: numpy_statistics(np.float32)),
    "statistics numpy float64": lambda: statistics("statistics numpy float64", lambda: numpy_statistics(np.float64)),
    "statistics StandardScaler": lambda: statistics("statistics StandardScaler", sklearn_statistics),
    "statistics keras Normalization": lambda: statistics("statistics keras Normalization", keras_statistics),
}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
