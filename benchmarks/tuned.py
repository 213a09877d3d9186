"""By how much a study's winner is better than the configuration before the search, on held-out and on test rows.

python -m benchmarks.tuned digits --trials 60 --seeds 5
python -m benchmarks.tuned mnist --source ~/archives --trials 30 --set epochs=20 --at-once 2 --store ~/tuned

The last lines are a table in Markdown. With `--store`, the same command goes on where it was interrupted: trials and
trainings that have ended are reused, and the one that was cut off resumes at its checkpoint.

Both are trained with the same seeds, which the study has not used, so each has other initial weights, another order of
rows and other held-out rows. The study itself never reads the test split; this comparison does, after it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.measure import say
from benchmarks.page import table
from flows.settings import configure_prefect, silence_prefect
from storage.words import counted

FIRST_SEED = 101
"""Of the comparison; that of the study is 1."""
KINDS = {"held_out": "held out", "test": "test"}
PROFILES = {"default": "before", "tuned": "tuned"}

Scores = Mapping[str, Sequence[float]]
"""Accuracies with each seed, by kind of rows."""


def main() -> None:
    """Carry out the study, unless the store has it, and print both configurations and their scores."""
    asked = _asked()
    configure_prefect()
    silence_prefect()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="idxflow-tuned-"))
        asked.store = asked.store or folder
        what = _study(asked)
        found = {profile: _scores(asked, profile) for profile in PROFILES}
    print("\n".join(summary(what, found)))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--source", help="folder or URL of the archives")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--by", default="loss", choices=("accuracy", "loss"))
    parser.add_argument("--space", help="file (TOML) with the parameters to search; default: a broad space")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="training parameter of all; can be repeated"
    )
    parser.add_argument("--study-seeds", type=int, default=1, help="trainings of each trial")
    parser.add_argument("--at-once", type=int, default=1, help="trials side by side")
    parser.add_argument("--timeout", type=float, help="begin no trial after so many seconds")
    parser.add_argument("--seeds", type=int, default=5, help="of the comparison, 2 or more")
    parser.add_argument("--store", help="where the results are kept; default: a folder that is removed again")
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error("--seeds: expected 2 or more, because the table shows their spread")
    return asked


def summary(what: str, found: Mapping[str, Scores]) -> Iterator[str]:
    """Yield the lines of a table in Markdown, and of the mean gains.

    Args:
        what: was searched, for the first column.
        found: by profile, `default` and `tuned`.
    """
    columns = [(kind, profile) for kind in KINDS for profile in PROFILES]
    gains = {
        kind: [100 * (after - before) for before, after in zip(*(found[p][kind] for p in PROFILES), strict=True)]
        for kind in KINDS
    }
    by_seed = " ".join(f"{gain:+.2f}" for gain in gains["test"]).replace("-", "−")
    head = (*(f"{KINDS[kind]}, {PROFILES[profile]}" for kind, profile in columns), "gain on test by seed, in points")
    yield table(("data", *head), [(what, *(_band(found[profile][kind]) for kind, profile in columns), by_seed)])
    yield ""
    for kind, words in KINDS.items():
        yield f"mean gain, {words}: {statistics.fmean(gains[kind]):+.2f} points"


def _study(asked: argparse.Namespace) -> str:
    """Carry out the study; return its data set, its trials and what they were compared by."""
    from flows.pipeline import Directly
    from flows.run import Request
    from flows.tuning import leaderboard
    from flows.tuning.request import StudyRequest
    from flows.tuning.study import carry_out

    how: dict[str, Any] = {
        "seeds": asked.study_seeds, "by": asked.by, "at_once": asked.at_once, "space": asked.space,
    }  # fmt: skip
    run = Request(asked.dataset, source=asked.source, store=asked.store, settings=tuple(asked.set))

    def tell(course: Any, trial: Any, is_new: bool) -> None:
        say(leaderboard.line(course, trial) + ("" if is_new else "  (reused)"))

    course = carry_out(StudyRequest(run, asked.trials, asked.timeout, **how), Directly(), "a benchmark", tell)
    print(leaderboard.sentence(course))
    winner = course.winner()
    if not winner:
        sys.exit("expected a complete trial; found none; give more --trials, or other values with --space")
    print(" ".join(f"{name}={value}" for name, value in winner["values"].items()))
    return f"{asked.dataset}, {counted(len(course.trials), 'trial')} by {asked.by}"


def _scores(asked: argparse.Namespace, profile: Any) -> Scores:
    """Return the accuracies of a profile with each seed of the comparison, by kind of rows."""
    from flows.pipeline import Directly, to_validation
    from flows.run import Request, prepare
    from storage.formats.history import read_history
    from tasks.evaluate import evaluate
    from tasks.normalize import normalize
    from tasks.train import train

    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(FIRST_SEED, FIRST_SEED + asked.seeds):
        # The winner has what was set.
        settings = tuple(asked.set) if profile == "default" else ()
        more = {"training": {"seed": seed}, "settings": settings, "source": asked.source, "store": asked.store}
        job = prepare(Request(asked.dataset, profile=profile, **more), "a benchmark")
        rows, test = to_validation(job, Directly())
        normalization = normalize.fn(job.store, job.dataset, rows, job.config).record
        model = train.fn(job.store, job.dataset, rows, normalization, job.config).record
        held_out = read_history(model.history)[model.chosen_epoch - 1].validation_accuracy
        scores["held_out"].append(held_out or 0.0)
        scores["test"].append(evaluate.fn(job.store, job.dataset, model, test).record.accuracy)
        say(f"{profile}, seed {seed}: held out {scores['held_out'][-1]:.2%}, test {scores['test'][-1]:.2%}")
    return scores


def _band(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2%} ± {100 * statistics.stdev(values):.2f}"


if __name__ == "__main__":
    main()
