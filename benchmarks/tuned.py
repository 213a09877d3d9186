"""By how much a study's winner is better than the configuration before the search, on held-out and on test rows.

python -m benchmarks.tuned digits --trials 60 --seeds 5
python -m benchmarks.tuned mnist --source ~/archives --trials 30 --at-once 2 --store s3://bucket/tuned

Both are trained with the same seeds, which the study has not used, so each has other initial weights, another order of
rows and other held-out rows. The study itself never reads the test split; this comparison does, after it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.measure import say
from flows.settings import configure_prefect, silence_prefect

FIRST_SEED = 101
"""Of the comparison; that of the study is 1."""


def main() -> None:
    """Carry out the study, unless the store has it, and print both configurations and their scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--source", help="folder or URL of the archives")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--by", default="loss", choices=("accuracy", "loss"))
    parser.add_argument("--study-seeds", type=int, default=1, help="trainings of each trial")
    parser.add_argument("--at-once", type=int, default=1, help="trials side by side")
    parser.add_argument("--timeout", type=float, help="begin no trial after so many seconds")
    parser.add_argument("--seeds", type=int, default=5, help="of the comparison")
    parser.add_argument("--store", help="where the results are kept; default: a folder that is removed again")
    asked = parser.parse_args()
    configure_prefect()
    silence_prefect()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="idxflow-tuned-"))
        asked.store = asked.store or folder
        _study(asked)
        found = {name: _scores(asked, name) for name in ("default", "tuned")}
    print(f"{'profile':8}  {'held out':>22}  {'test':>22}")
    for name, scores in found.items():
        print(f"{name:8}  {_band(scores['held_out']):>22}  {_band(scores['test']):>22}")
    for name, words in (("held_out", "held-out"), ("test", "test")):
        gains = [100 * (after - before) for before, after in zip(*(found[p][name] for p in found), strict=True)]
        by_seed = " ".join(f"{gain:+.2f}" for gain in gains)
        print(f"gain on {words} rows: {statistics.fmean(gains):+.2f} points, by seed {by_seed}")


def _study(asked: argparse.Namespace) -> None:
    from flows.pipeline import Directly
    from flows.run import Request
    from flows.tuning import leaderboard
    from flows.tuning.request import StudyRequest
    from flows.tuning.study import carry_out

    how: dict[str, Any] = {"seeds": asked.study_seeds, "by": asked.by, "at_once": asked.at_once}
    request = StudyRequest(
        Request(asked.dataset, source=asked.source, store=asked.store), asked.trials, asked.timeout, **how
    )
    course = carry_out(
        request, Directly(), "a benchmark", lambda course, trial, _: say(leaderboard.line(course, trial))
    )
    print(leaderboard.sentence(course))
    print(" ".join(f"{name}={value}" for name, value in (course.winner() or {"values": {}})["values"].items()))


def _scores(asked: argparse.Namespace, profile: Any) -> dict[str, list[float]]:
    """Return the accuracies of a profile with each seed of the comparison, by kind of rows."""
    from flows.pipeline import Directly, to_validation
    from flows.run import Request, prepare
    from storage.formats.history import read_history
    from tasks.evaluate import evaluate
    from tasks.normalize import normalize
    from tasks.train import train

    scores: dict[str, list[float]] = {"held_out": [], "test": []}
    for seed in range(FIRST_SEED, FIRST_SEED + asked.seeds):
        request = Request(
            asked.dataset, profile=profile, training={"seed": seed}, source=asked.source, store=asked.store
        )
        job = prepare(request, "a benchmark")
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
