"""Train on images of your own: write them as four IDX files, describe them in a manifest, run.

    python examples/own_data.py shapes          # the folder to write to

The images are drawn here: rings, crosses and bars of 12 × 12 pixels. Put your own arrays in their place.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

CLASSES = ("ring", "cross", "bar")
SIDE = 12


def draw(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 of shape (rows, SIDE, SIDE), and labels, uint8 of shape (rows,), counted from 0."""
    random = np.random.default_rng(seed)
    labels = (np.arange(rows) % len(CLASSES)).astype(np.uint8)
    return np.stack([draw_one(CLASSES[label], random) for label in labels]), labels


def draw_one(name: str, random: np.random.Generator) -> np.ndarray:
    """Return one shape at a random place, of random width and brightness, on a noisy ground."""
    y, x = np.mgrid[:SIDE, :SIDE] - random.uniform(4.5, 6.5, (2, 1, 1))
    width = random.uniform(0.8, 1.3)
    distance = {"ring": abs(np.hypot(x, y) - 3.5), "cross": np.minimum(abs(x), abs(y)), "bar": abs(x)}[name]
    image = random.integers(0, 100, (SIDE, SIDE)) + (distance < width) * random.integers(60, 155)
    return image.astype(np.uint8)


def idx(values: np.ndarray) -> bytes:
    """Return unsigned bytes as an IDX file: two zeros, type 8, the number of dimensions, each dimension, the data."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def idxflow(*arguments: str, output: int | None = None) -> str:
    """Run the command of this environment; return its standard output if `output` is `PIPE`, otherwise show it."""
    command = [str(Path(sys.executable).with_name("idxflow")), *arguments]
    return subprocess.run(command, check=True, stdout=output, text=True).stdout


def main(folder: Path) -> None:
    """Write the four archives and the manifest into `folder`, and run."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows, seed in (("train", 900, 1), ("test", 300, 2)):
        images, labels = draw(rows, seed)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))

    # Sizes, classes and digests are read from the files. The names of the classes are for you to say.
    text = idxflow("manifest", str(folder), "--name", "shapes", output=subprocess.PIPE)
    manifest = folder / "shapes.toml"
    manifest.write_text(text.replace('["0", "1", "2"]', str(list(CLASSES)).replace("'", '"')), encoding="utf-8")

    print(f"wrote four archives and {manifest}")

    idxflow("run", "--dataset-file", str(manifest), "--set", "learning_rate=0.01", "--set", "epochs=20")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "shapes"))
