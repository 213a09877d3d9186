"""Data larger than what a run may take of memory: more than 2³¹ bytes of pixels, and many rows, in little of it."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import subprocess
import sys
import tracemalloc
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expectations import run_suites, suites, summary
from storage.datasets import catalog
from storage.datasets.catalog import DEFAULT_FILES
from storage.formats.idx import Header

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
SIDE = 8
VALUES = 251
"""The images repeat after so many; a prime, so that blocks end at any place of it."""
BLOCK_ROWS = VALUES * VALUES
REPEATS = 533
ROWS = BLOCK_ROWS * REPEATS
"""The least that give more than 2³¹ bytes of pixels; so small, a pixel has a sum above 2³² too."""


def block() -> np.ndarray:
    """Return the images that repeat: even pixels have each value from 4 to 254 as often; the odd ones are 0."""
    pixels = np.arange(SIDE * SIDE)
    images: np.ndarray = ((np.arange(BLOCK_ROWS)[:, None] + pixels) % VALUES + 4) * (pixels % 2 == 0)
    return images.astype(np.uint8)


def write_repeated(path: Path, shape: tuple[int, ...], block: bytes, times: int) -> None:
    """Write a gzip IDX archive of `block` so many times over, compressing it only once (RFC 1952, RFC 1951 3.2.3)."""
    deflate = zlib.compressobj(9, wbits=-15)
    header = Header(np.dtype(">u1"), shape).encode()
    first = deflate.compress(header) + deflate.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers to what was before it, so that the same bytes can follow themselves.
    again = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)
    crc = zlib.crc32(header)
    with path.open("wb") as stream:
        stream.write(b"\x1f\x8b\x08" + bytes(7) + first)
        for _ in range(times):
            stream.write(again)
            crc = zlib.crc32(block, crc)
        stream.write(deflate.flush(zlib.Z_FINISH))
        stream.write(crc.to_bytes(4, "little") + ((len(header) + len(block) * times) % 2**32).to_bytes(4, "little"))


def run(script: str, folder: Path) -> dict[str, Any]:
    """Run a script in a new process, and return the object that it prints."""
    command = [sys.executable, "-c", script, str(folder)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads(process.stdout)
    return result


STATISTICS = """
import json, math, sys
from pathlib import Path
from benchmarks.scaling import measured
from storage.datasets import catalog
from storage.formats import parquet
from storage.records import FolderEntry, Archive
from tasks.decoding.writing import write_split
from tasks.normalize import statistics
folder = Path(sys.argv[1])
dataset = catalog.read(folder / "large.toml")
roles = "train-images", "train-labels"
images, labels = (Archive(FolderEntry(folder), role, dataset.archive(role).file, 0, "", "") for role in roles)
found = {}
def work():
    split = write_split(dataset, "train", images, labels, folder)
    statistic = statistics(split)
    found.update(rows=split.rows, mean=statistic.mean.tolist(), std=statistic.std)
above = measured(work).above
print(json.dumps(found | {"above": above, "metadata": parquet.metadata(folder / "train.parquet")["rows"]}))
"""


def test_more_than_two_gibibytes_of_pixels_are_counted_exactly_in_little_memory(tmp_path: Path):
    images = block()
    assert 2**31 < ROWS * SIDE**2 < 2**31 + images.size
    write_repeated(tmp_path / DEFAULT_FILES["train-images"], (ROWS, SIDE, SIDE), images.tobytes(), REPEATS)
    labels = (np.arange(BLOCK_ROWS) % 10).astype(np.uint8).tobytes()
    write_repeated(tmp_path / DEFAULT_FILES["train-labels"], (ROWS,), labels, REPEATS)
    manifest = f'name = "large"\nclasses = {[str(n) for n in range(10)]}\nimage_shape = [{SIDE}, {SIDE}]\n'
    (tmp_path / "large.toml").write_text(manifest, encoding="utf-8")
    result = run(STATISTICS, tmp_path)
    assert (result["rows"], result["metadata"]) == (ROWS, ROWS)
    # The mean of 4 to 254 is 129.
    assert result["mean"] == [(2 * 129 / 255 - 1 if pixel % 2 == 0 else -1) for pixel in range(SIDE * SIDE)]
    squares = sum(value**2 for value in range(4, 255)) / VALUES / 2
    assert result["std"] == pytest.approx(2 / 255 * math.sqrt(squares - 64.5**2), rel=1e-15)
    assert result["above"] < 400_000_000


def blocks(rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images without meaning as `storage.formats.parquet.blocks` does."""
    random = np.random.default_rng(1)
    for _ in range(rows // 5000):
        yield random.integers(0, 256, (5000, 4, 4), np.uint8), random.integers(0, 10, 5000, np.uint8)


def test_the_table_of_a_split_takes_few_bytes_of_each_row():
    def peak(rows: int) -> int:
        tracemalloc.start()
        try:
            survey = summary.survey(blocks(rows), 10)
            for _ in summary.images(blocks(rows), survey, survey, 5000):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = 25_000, 100_000
    # The table itself has 96 bytes per row.
    assert peak(many) - peak(few) < 60 * (many - few)


def test_a_part_of_a_table_is_let_go_before_the_next_but_one_is_made():
    suite = suites.images(dataclasses.replace(catalog.find("mnist"), rows={}), "test")
    references: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def parts() -> Iterator[summary.Table]:
        for table in summary.images(blocks(30_000), summary.survey(blocks(30_000), 10), None, 5000):
            references.append(weakref.ref(table["mean"]))
            yield table
            gc.collect()
            alive.append(sum(array() is not None for array in references))

    run_suites.run(suite, parts())
    assert len(references) == 6
    assert max(alive) <= 2
