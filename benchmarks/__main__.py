"""Compare idxflow's speed with other libraries, and write benchmarks/results.md."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.measure import Bench, Results, Row, compare, say
from benchmarks.page import page, with_spending
from benchmarks.subjects import FILES, MNIST_VARIABLE
from benchmarks.suite import COMPARISONS, SPENDING

PAGE = Path(__file__).with_name("results.md")
DOCUMENT = PAGE.parents[1] / "docs" / "benchmarks.md"
ROUNDS, QUICK_ROUNDS = 5, 1
NEEDS_PREFECT = {"commands", "job", "memory", "rerun", "rows", "seeds", "serving", "spending", "training"}
MORE = """\
comparisons, in this order:
{list}

Every variant runs in a process of its own; rounds go through all variants in turn (A B C, A B C, …). Let nothing else
run meanwhile. Progress goes to standard error. Three rounds of all comparisons take half an hour on two cores.

examples:
  make bench MNIST=~/archives                  everything; writes results.md, and a table of docs/benchmarks.md
  make bench ARGS="--only training,decoding"   two comparisons, printed instead of written
  make bench ARGS=--quick                      shortened work, one round: does it run?
  make bench TORCH=torch==2.13.0               PyTorch too (see docs/benchmarks.md about its size)
"""


def main(words: Sequence[str] | None = None) -> int:
    """Measure what was asked for; returns 1 where something of ours failed."""
    asked = _parser().parse_args(words)
    mnist, names = _archives(asked.mnist), asked.only or list(COMPARISONS)
    whole = not (asked.only or asked.quick or asked.out)
    seen, started = machine.describe(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="idxflow-bench-", ignore_cleanup_errors=True) as work:
        bench = Bench(mnist, Path(work), asked.quick)
        rows = _measured(bench, names, asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS))
    results = Results(rows)
    text = page(results, COMPARISONS.values(), seen, _command(asked), asked.quick)
    _deliver(text, PAGE if whole else asked.out)
    if whole:
        _deliver(with_spending(DOCUMENT.read_text(encoding="utf-8"), SPENDING, results, seen), DOCUMENT)
    say(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    return int(any(row.failed for found in rows.values() for row in found))


def _measured(bench: Bench, names: Sequence[str], rounds: int) -> dict[str, tuple[Row, ...]]:
    if NEEDS_PREFECT & set(names):
        say("migrating Prefect's database; not measured")
        warm = bench.run("job", "warm-up", None)
        if warm.failed:
            sys.exit(f"idxflow does not run here: {warm.failed}")
    return {name: compare(COMPARISONS[name], rounds, bench.run) for name in COMPARISONS if name in names}


def _deliver(text: str, out: Path | None) -> None:
    if out is None:
        print(text)
    else:
        out.write_text(text, encoding="utf-8")
        say(f"wrote {out.name}")


def _archives(folder: Path | None) -> Path:
    if folder is None:
        sys.exit(f"expected the folder of the four MNIST archives; give --mnist FOLDER or set {MNIST_VARIABLE}")
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if missing:
        sys.exit(f"expected {missing[0]} in {folder}; give the folder of the four MNIST archives")
    return folder.resolve()


def _command(asked: argparse.Namespace) -> str:
    """Return what was typed, without any folder of this machine."""
    words = ["python -m benchmarks"]
    words += [f"--only {','.join(asked.only)}"] if asked.only else []
    words += [f"--rounds {asked.rounds}"] if asked.rounds else []
    words += ["--quick"] if asked.quick else []
    return " ".join(words)


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<12} {found.title}" for name, found in COMPARISONS.items())
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, epilog=MORE.format(list=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    given = os.environ.get(MNIST_VARIABLE)
    parser.add_argument(
        "--mnist", type=_folder, default=_folder(given) if given else None, metavar="FOLDER",
        help=f"folder of the four MNIST archives (default: {MNIST_VARIABLE})",
    )  # fmt: skip
    parser.add_argument("--only", type=_names, metavar="NAMES", help="some comparisons, with commas between them")
    parser.add_argument("--rounds", type=_positive, help=f"how often each is measured (default: {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="shortened work, and one round unless --rounds says more")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the page")
    return parser


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in COMPARISONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; there are {', '.join(COMPARISONS)}")
    return names


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0; found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
