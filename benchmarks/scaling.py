"""How time and memory grow with the number of images: synthetic archives of several sizes, step by step.

python -m benchmarks.scaling --rows 60000,600000,6000000 --flow 60000,600000

makes the archives of each size (training images as given, a sixth as many test images), and runs decode, validate and
statistics on them, each in a process of its own. The peak of memory is that of the resident set during the work, above
what it was once everything was imported. Then the whole flow, `idxflow run`, for each size of `--flow`. The exponent is
the slope of log time over log rows: 1 is linear. Writes the tables to `benchmarks/scaling.md`.

Linux only: it reads /proc. The archives and splits of 6,000,000 training images take 3 GB of disk.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, synthetic

PAGE = Path(__file__).with_name("scaling.md")
PACKAGES = ("numpy", "pyarrow", "pandas", "great-expectations", "keras", "tensorflow", "prefect")
MB = 1_000_000
TEST_SHARE = 6
"""Training images for each test image, as in MNIST."""
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Stage:
    """What one step on one size took."""

    seconds: float
    processor: float
    """Seconds of all threads."""
    imported: int
    """Resident bytes before the work."""
    peak: int
    """The most resident bytes during the work."""

    @property
    def above(self) -> int:
        """Bytes that the work itself took."""
        return self.peak - self.imported


@dataclass(frozen=True)
class Flow:
    """What a whole run took."""

    seconds: float
    accuracy: float
    steps: dict[str, float]
    """Seconds by step."""
    peaks: dict[str, int]
    """The most resident bytes of the process and of those it started, by what they are."""


def generate(folder: Path, rows: int) -> Callable[[], Any]:
    """Return the work of making the archives."""
    import sklearn.datasets
    import threadpoolctl

    sklearn.datasets.load_digits()
    threadpoolctl.threadpool_info()
    return lambda: synthetic.write(folder, {"train": rows, "test": images(rows) - rows})


def images(rows: int) -> int:
    """Return the images of both splits for so many training images."""
    return rows + max(1, rows // TEST_SHARE)


def decode(folder: Path, rows: int) -> Callable[[], Any]:
    """Return the work of decoding both splits."""
    from storage.datasets import catalog
    from storage.records import SPLITS, Archive, FolderEntry
    from tasks.decoding.writing import write_split

    dataset = catalog.read(folder / f"{synthetic.NAME}.toml")

    def archive(role: str) -> Archive:
        return Archive(FolderEntry(folder), role, dataset.archive(role).file, 0, "", "")

    return lambda: [write_split(dataset, n, archive(f"{n}-images"), archive(f"{n}-labels"), folder) for n in SPLITS]


def validate(folder: Path, rows: int) -> Callable[[], Any]:
    """Return the work of validating both splits; a check that fails is an error."""
    from expectations import run_suites, suites, summary
    from storage.datasets import catalog
    from tasks.validate import judge

    dataset = catalog.read(folder / f"{synthetic.NAME}.toml")
    # Great Expectations imports more when it is used for the first time.
    run_suites.run(suites.classes(dataset, "test"), [summary.class_table(_split(folder, "test")[1], 10)])

    def work() -> None:
        found = judge(dataset, _split(folder, "train")[0], _split(folder, "test")[0], folder)
        wrong = [one.name for one in found.checks if not one.passed]
        if wrong:
            raise ValueError(f"expected synthetic data to pass all checks; found {wrong}")

    return work


def statistics(folder: Path, rows: int) -> Callable[[], Any]:
    """Return the work of measuring the mean of each pixel, and the standard deviation."""
    from tasks import normalize

    train = _split(folder, "train")[0]
    return lambda: normalize.statistics(train)


def _split(folder: Path, name: Any) -> tuple[Any, Any]:
    """Return the record of a decoded split, and its labels."""
    from storage.formats import parquet
    from storage.records import FolderEntry, Split

    file = Split(FolderEntry(folder), name, 0, (0, 0), 0, "", {}).file
    found = parquet.metadata(file)
    shape = tuple(found["image_shape"])
    split = Split(FolderEntry(folder), name, found["rows"], shape, synthetic.CLASSES, found["digest"], found["sources"])
    return split, parquet.labels(file)


STAGES = {"generate": generate, "decode": decode, "validate": validate, "statistics": statistics}


def measured(work: Callable[[], Any]) -> Stage:
    """Do `work`, and return what it took."""
    gc.collect()
    # The kernel then starts the peak of this process anew (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, used, started = resident("self", "VmRSS"), time.process_time(), time.perf_counter()
    work()
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    return Stage(seconds, processor, before, resident("self", "VmHWM"))


def resident(process: int | str, what: str) -> int:
    """Return a size of a process in bytes, such as `VmRSS` now or `VmHWM` at most; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:")), 0)


def exponent(rows: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the slope of log seconds over log rows by least squares; NaN for fewer than two sizes."""
    if len(set(rows)) < 2:
        return math.nan
    x, y = [math.log(n) for n in rows], [math.log(s) for s in seconds]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - middle_x) ** 2 for a in x)


def stage(name: str, folder: Path, rows: int) -> Stage:
    """Run a stage in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--stage", name, "--folder", str(folder), "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} of {rows:,} rows ends with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return Stage(**json.loads(done.stdout.splitlines()[-1]))


def flow(folder: Path, epochs: int) -> Flow:
    """Run the whole job on the archives in `folder`, in a new store, and return what it took."""
    idxflow = str(Path(sys.executable).with_name("idxflow"))
    given = ["--dataset-file", str(folder / f"{synthetic.NAME}.toml"), "--set", f"epochs={epochs}", "--json"]
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=folder) as store, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([idxflow, "run", *given, "--store", store], stdout=output, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            for pid in family(process.pid):
                what = "the run itself" if pid == process.pid else _purpose(pid)
                peaks[what] = max(peaks.get(what, 0), resident(pid, "VmHWM"))
            time.sleep(POLL_SECONDS)
        output.seek(0)
        outcome = json.loads(output.read())
    if process.returncode:
        raise SystemExit(f"the run of {folder.name} ends with {process.returncode}: {outcome['error']['sentence']}")
    steps = {name: step["seconds"] for name, step in outcome["steps"].items()}
    return Flow(outcome["seconds"], outcome["test_accuracy"], steps, {k: v for k, v in peaks.items() if k})


def family(process: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    try:
        children = Path(f"/proc/{process}/task").glob("*/children")
        found = [int(pid) for path in children for pid in path.read_text(encoding="ascii").split()]
    except OSError:
        found = []
    return [process, *(pid for child in found for pid in family(child))]


def _purpose(process: int) -> str:
    """Say what a child of a run is for; empty where it has ended, or is still becoming what it will be."""
    try:
        line = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    if "prefect" in line and ("uvicorn" in line or "server" in line):
        return "its Prefect server"
    return "its other processes" if line else ""


def page(stages: dict[str, dict[int, Stage]], flows: dict[int, Flow], command: str, epochs: int) -> str:
    """Return the results as Markdown."""
    here = machine.describe()
    versions = dict(here.packages)
    lines = [
        "# Time and memory over the number of images",
        "",
        f"`{command}`, {here.date}: {here.processor}, {here.cores} cores, {here.memory_gib:.0f} GiB, {here.system}, "
        f"Python {here.python}, {', '.join(f'{name} {versions[name]}' for name in PACKAGES)}; "
        f"{here.load:.1f} is the load average at the end.",
        "",
        "Synthetic images of 28×28 pixels (`benchmarks/synthetic.py`); the columns give the number of training images, "
        "and there are a sixth as many test images. Each step runs in its own process. Memory is the peak of the "
        "resident set during the work, minus what it was after the imports. An exponent of 1 is linear. Bytes per row: "
        "the growth of memory between the two largest sizes, for each image of both splits.",
        "",
        *_step_lines(stages),
    ]
    if flows:
        lines += ["", f"The whole flow (`idxflow run`, {epochs} epochs), peak of the resident set of each process:", ""]
        lines += _flow_lines(flows)
    return "\n".join(lines) + "\n"


def _step_lines(stages: dict[str, dict[int, Stage]]) -> list[str]:
    sizes = sorted({rows for by_rows in stages.values() for rows in by_rows})
    sized = " | ".join(f"{rows:,}: seconds | of a processor | MB" for rows in sizes)
    lines = [
        f"| Step | {sized} | Exponent of seconds | of a processor | Bytes per row |",
        f"|---|{'--:|' * (3 * len(sizes) + 3)}",
    ]
    for name, by_rows in stages.items():
        found = [by_rows[rows] for rows in sizes]
        cells = [cell for one in found for cell in _cells(one)]
        slopes = [exponent(sizes, [getattr(one, what) for one in found]) for what in ("seconds", "processor")]
        grown = (found[-1].above - found[-2].above) / (images(sizes[-1]) - images(sizes[-2])) if found[1:] else math.nan
        lines.append(f"| {name} | {' | '.join(cells)} | {slopes[0]:.2f} | {slopes[1]:.2f} | {grown:.0f} |")
    return lines


def _cells(found: Stage) -> list[str]:
    return [f"{found.seconds:.2f}", f"{found.processor:.2f}", f"{found.above / MB:,.0f}"]


def _flow_lines(flows: dict[int, Flow]) -> list[str]:
    sizes = sorted(flows)
    steps = list(dict.fromkeys(name for rows in sizes for name in flows[rows].steps))
    processes = list(dict.fromkeys(name for rows in sizes for name in flows[rows].peaks))
    lines = [f"| | {' | '.join(f'{rows:,}' for rows in sizes)} |", f"|---|{'--:|' * len(sizes)}"]
    lines.append(_line("seconds", [f"{flows[rows].seconds:.1f}" for rows in sizes]))
    for name in steps:
        lines.append(_line(f"– {name}, seconds", [f"{flows[rows].steps.get(name, math.nan):.2f}" for rows in sizes]))
    lines.append(_line("accuracy on test", [f"{flows[rows].accuracy:.2%}" for rows in sizes]))
    for name in processes:
        lines.append(_line(f"{name}, MB", [f"{flows[rows].peaks.get(name, 0) / MB:,.0f}" for rows in sizes]))
    return lines


def _line(head: str, cells: list[str]) -> str:
    return f"| {head} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, print each result, and write the page."""
    asked = _arguments()
    if asked.stage:
        found = measured(STAGES[asked.stage](asked.folder, asked.rows[0]))
        print(json.dumps(asdict(found)))
        return
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="idxflow-scaling-"))
    try:
        _measure(asked, folder)
    finally:
        if not asked.folder:
            shutil.rmtree(folder)
    print(os.path.relpath(PAGE))


def _measure(asked: argparse.Namespace, folder: Path) -> None:
    """Measure, smallest first, and write the page after each size."""
    given = ((name, ",".join(map(str, value))) for name, value in (("rows", asked.rows), ("flow", asked.flow)))
    options = " ".join(f"--{name} {sizes}" for name, sizes in given if sizes)
    command = f"python -m benchmarks.scaling {options} --epochs {asked.epochs}"
    stages: dict[str, dict[int, Stage]] = {name: {} for name in STAGES}
    flows: dict[int, Flow] = {}
    for rows in sorted({*asked.rows, *asked.flow}):
        place = folder / f"{rows}"
        for name in STAGES if rows in asked.rows else ["generate"]:
            found = stage(name, place, rows)
            print(f"{rows:>9,}  {name:10}  {' '.join(f'{cell:>8}' for cell in _cells(found))}", flush=True)
            if rows in asked.rows:
                stages[name][rows] = found
        if rows in asked.flow:
            flows[rows] = flow(place, asked.epochs)
            print(f"{rows:>9,}  whole flow  {json.dumps(asdict(flows[rows]))}", flush=True)
        PAGE.write_text(page(stages, flows, command, asked.epochs), encoding="utf-8")
        if not asked.folder:
            shutil.rmtree(place)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_sizes, default=[60_000, 600_000, 6_000_000], help="training images")
    parser.add_argument("--flow", type=_sizes, default=[60_000, 600_000], help="sizes to run the whole flow with")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the whole flow")
    parser.add_argument("--folder", type=Path, help="keep archives and splits here")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    return parser.parse_args()


def _sizes(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


if __name__ == "__main__":
    main()
