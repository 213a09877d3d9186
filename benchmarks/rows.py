"""The whole flow over the number of rows, with one worker and with two: `python -m benchmarks.rows "60,000 rows"`.

The archives are synthetic (`benchmarks/synthetic.py`). There are twelve for each split, or more of 50,000 training
rows or a sixth as many test rows, each of which is a part: from 600,000 rows on, parts are not larger, but more. Each
size is run with one worker and one processor, with one worker and all processors, and with two workers, each time
with a store of its own. A worker alone already uses more than one processor: it reads ahead, and inflates while it
writes. So the gain of a second worker that has a processor of its own is that over the first of these.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import scaling, subjects, synthetic
from benchmarks.job import BIN
from benchmarks.subjects import Measured
from storage.datasets.catalog import DEFAULT_FILES

SIZES = (60_000, 600_000, 6_000_000)
"""Training rows; there are a sixth as many test rows."""
ROWS_OF_ARCHIVE = 50_000
"""The most training rows of one."""
_FEWEST_ARCHIVES = 12
ALONE, ONE, TWO = "one worker, one processor", "one worker", "two workers"
SETTINGS = (ALONE, ONE, TWO)
TIMES = "times as fast"
STEPS = ("fetch", "decode", "validate", "normalize", "train", "evaluate")
PARALLEL = ("decode", "validate", "normalize", "evaluate")
"""What workers do part by part; the others are of the machine of the run."""
ALL = "the run"
MEMORY = {
    ("the run itself", "VmHWM"): "memory of the run, GB",
    ("the run itself", "RssAnon"): "memory of the run, without files, GB",
    ("a worker", "VmHWM"): "memory of the largest worker, GB",
    ("a worker", "RssAnon"): "memory of the largest worker, without files, GB",
}
"""The most of a figure of `/proc/PID/status` of each kind of process. `VmHWM` includes libraries that are mapped, whose
pages the kernel can drop and read again; `RssAnon` does not, and is looked at every tenth of a second."""
LINES = (*STEPS, ALL, *MEMORY.values())
_EPOCHS, _QUICK_EPOCHS = 1, 20
_MEMORY = "64MiB"


def variant(size: int) -> str:
    """Return the name of a size."""
    return f"{size:,} rows"


def column(size: int, what: str) -> str:
    """Return the name of the column of a size with so many workers, or of how they compare."""
    return f"{variant(size)}, {what}"


def columns() -> tuple[str, ...]:
    """Return the names of all columns."""
    return tuple(column(size, what) for size in SIZES for what in (*SETTINGS, TIMES))


def row(line: str, size: int, what: str) -> str:
    """Return the name of the row that has the figure of a line in a column."""
    return f"{line} | {column(size, what)}"


def rows(size: int) -> tuple[str, ...]:
    """Return the names of all rows of a size."""
    return tuple(row(line, size, what) for line in LINES for what in (*SETTINGS, TIMES))


def measured(size: int) -> Measured:
    """Run in each setting; all must find the same model."""
    folder = subjects.new_folder("rows")
    manifest = _write(folder, size // 20 if subjects.quick() else size)
    found: dict[str, float] = {}
    models = set()
    for name in SETTINGS:
        lines, model = _run(manifest, name)
        found |= {row(line, size, name): value for line, value in lines.items()}
        models.add(model)
    if len(models) > 1:
        sys.exit(f"expected the same weights in all settings; found {models}")
    for line in (*STEPS, ALL):
        before, after = (found[row(line, size, name)] for name in (ALONE, TWO))
        if after:
            found[row(line, size, TIMES)] = before / after
    shutil.rmtree(folder)
    return Measured(found, "the same weights")


def _write(folder: Path, rows: int) -> Path:
    """Write the archives, and a manifest that lists them."""
    count = max(_FEWEST_ARCHIVES, -(-rows // ROWS_OF_ARCHIVE))
    each, more = rows // count, scaling.TEST_SHARE
    lines = [
        f'name = "{synthetic.NAME}"',
        f"classes = {json.dumps([str(number) for number in range(synthetic.CLASSES)])}",
        "image_shape = [28, 28]",
        f'source = "{folder}"',
    ]
    for number in range(1, count + 1):
        made = folder / "made"
        synthetic.write(made, {"train": each, "test": each // more}, seed=number)
        for role, file in DEFAULT_FILES.items():
            name = f"{number:03d}-{file}"
            (made / file).rename(folder / name)
            lines += [f"[[archives.{role}]]", f'file = "{name}"']
    manifest = folder / f"{synthetic.NAME}.toml"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def _run(manifest: Path, setting: str) -> tuple[Mapping[str, float], str]:
    """Return the figure of each line, and the digest of the file of weights."""
    given = ["--dataset-file", str(manifest), "--workers", "2" if setting == TWO else "1", "--memory", _MEMORY]
    given += ["--set", f"epochs={_QUICK_EPOCHS if subjects.quick() else _EPOCHS}", "--json"]
    peaks = dict.fromkeys(MEMORY, 0)
    store = subjects.new_folder("store")
    with tempfile.TemporaryFile("w+") as output:
        command = [str(BIN / "idxflow"), "run", *given, "--store", str(store)]
        usual = os.sched_getaffinity(0)
        # Children inherit it.
        os.sched_setaffinity(0, {min(usual)} if setting == ALONE else usual)
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        os.sched_setaffinity(0, usual)
        while process.poll() is None:
            for pid in scaling.family(process.pid):
                if what := "the run itself" if pid == process.pid else _purpose(pid):
                    for figure in ("VmHWM", "RssAnon"):
                        peaks[what, figure] = max(peaks[what, figure], scaling.resident(pid, figure))
            time.sleep(scaling.POLL_SECONDS)
        seconds = time.perf_counter() - started
        output.seek(0)
        outcome = json.loads(output.read())
    if process.returncode:
        sys.exit(f"the run ended with {process.returncode}: {outcome['sentence']}")
    (weights,) = store.rglob("weights.npz")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    shutil.rmtree(store)
    lines = dict.fromkeys(STEPS, 0.0)
    for name, step in outcome["steps"].items():
        if name.split()[0] in lines:
            # Those of one kind, such as `decode train` and `decode test`, go side by side.
            lines[name.split()[0]] = max(lines[name.split()[0]], step["seconds"])
    lines |= {ALL: seconds, **{MEMORY[what]: peak / 1e9 for what, peak in peaks.items()}}
    return lines, digest


def _purpose(process: int) -> str:
    """Return `a worker` for a worker process of the run."""
    try:
        line = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    return "a worker" if "dask_worker" in line or "spawn_main" in line else ""


VARIANTS: subjects.Variants = {variant(size): lambda size=size: measured(size) for size in SIZES}  # type: ignore[misc]

if __name__ == "__main__":
    subjects.answer(VARIANTS)
