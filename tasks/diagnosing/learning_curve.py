"""The learning curve of a data set: what a network learns from a share of the fitted rows, and whether more would help.

Each point is a training with as many steps as the training on all rows, whatever its share; it counts what the
held-out rows say at the epoch at which their loss is lowest. The test split is not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.datasets.training import TrainingConfig
from storage.records import Epoch
from storage.words import counted
from tasks.diagnosing.rules import Found, entropy, knows_more

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)
"""The shares of the fitted rows to train on."""
HELPS = 0.1
"""Least fall of the held-out loss that twice as many rows would bring."""
SHIFT, ROTATE, ZOOM = 1 / 16, 10.0, 0.1
"""How much to vary images: a share of the smaller side, degrees, and a share."""

_LEAST_SHARE = 0.2
_MOST_EPOCHS = 10_000


@dataclass(frozen=True)
class Point:
    """One training on a share of the fitted rows. Losses are in nats."""

    share: float
    rows: int
    seed: int
    epoch: int
    """At which the held-out loss is lowest."""
    held_out_loss: float
    held_out_accuracy: float
    loss: float
    """Of the fitted rows in the same epoch."""
    accuracy: float
    reused: bool


@dataclass(frozen=True)
class Summary:
    """All trainings on one share: means over the seeds."""

    share: float
    rows: int
    held_out_loss: float
    lowest: float
    """The lowest held-out loss of a seed."""
    highest: float
    held_out_accuracy: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Verdict:
    """Whether more rows would help."""

    helps: bool | None
    """None if the curve does not say."""
    fall: float | None
    """By how much twice as many rows would lower the held-out loss, as a share of it; below 0 if it would rise."""
    low: float | None
    """Lower end of an interval of two standard errors over the seeds; None for a single seed."""
    sentence: str


def config_for(config: TrainingConfig, share: float) -> TrainingConfig:
    """Return the configuration for a share of the rows: with more epochs, so that there are as many steps.

    Warm-up and patience are in epochs, too.
    """
    if share == 1:
        return config
    in_epochs = {name: getattr(config, name) for name in ("epochs", "warmup_epochs", "patience")}
    longer = {name: min(math.ceil(each / share), _MOST_EPOCHS) for name, each in in_epochs.items() if each}
    # The last of so many would have no step of the schedule.
    longer["warmup_epochs"] = min(longer.get("warmup_epochs", 0), longer["epochs"] - 1)
    return config.model_copy(update=longer)


def point(share: float, seed: int, fitted_rows: int, history: Sequence[Epoch], reused: bool) -> Point:
    """Return what a training says, whose epochs all have held-out losses."""
    best = min(history, key=lambda epoch: math.inf if epoch.validation_loss is None else epoch.validation_loss)
    held_out = best.validation_loss or 0.0, best.validation_accuracy or 0.0
    return Point(share, fitted_rows, seed, best.epoch, *held_out, best.loss, best.accuracy, reused)


def summaries(points: Sequence[Point]) -> list[Summary]:
    """Return the means over the seeds, by share."""
    found = []
    for share in sorted({each.share for each in points}):
        here = [each for each in points if each.share == share]
        losses = [each.held_out_loss for each in here]
        found.append(
            Summary(
                share,
                round(_mean([each.rows for each in here])),
                _mean(losses),
                min(losses),
                max(losses),
                _mean([each.held_out_accuracy for each in here]),
                _mean([each.loss for each in here]),
                _mean([each.accuracy for each in here]),
            )
        )
    return found


def verdict(points: Sequence[Point], class_shares: Sequence[float]) -> Verdict:
    """Return whether more rows would help: held-out losses follow a power of the number of rows.

    Hestness et al. 2017, Deep Learning Scaling Is Predictable, Empirically. The power is fitted by least squares of the
    logarithms, for each seed by itself, to the points from 20% of the rows on. More rows help if twice as many would
    lower the loss by at least `HELPS` of it, and if two standard errors over the seeds do not reach to 0.

    The power law begins where a network does better than the best guess. So the curve says nothing if the training on
    all rows, with any of the seeds, knows no more about the held-out rows than the class shares.

    Args:
        class_shares: the share of each class in the training rows, which add up to 1; empty if they are unknown.
    """
    if unlearned := _unlearned(points, class_shares):
        return Verdict(None, None, None, unlearned)
    slopes = np.array([_slope([p for p in points if p.seed == seed]) for seed in sorted({p.seed for p in points})])
    slope = float(slopes.mean())
    error = float(slopes.std(ddof=1) / math.sqrt(len(slopes))) if len(slopes) > 1 else None
    fall = 1 - 2**slope
    low = None if error is None else 1 - 2 ** (slope + 2 * error)
    helps = fall >= HELPS and (low is None or low > 0)
    last = summaries(points)[-1]
    expected = (
        f"twice as many rows ({2 * last.rows:,}) are expected to lower the held-out loss from {last.held_out_loss:.4f} "
        f"to {last.held_out_loss * 2**slope:.4f}, by {fall:.0%}"
        if fall > 0
        else f"the held-out loss does not fall with the number of rows; it is {last.held_out_loss:.4f}"
    )
    doubt = "" if low is None else f" ({low:.0%} or more, by {counted(len(slopes), 'seed')})"
    start = "More data would help" if helps else "More data would hardly help"
    if fall >= HELPS and not helps:
        start = "Whether more data would help is uncertain, and more seeds would tell"
    return Verdict(helps, fall, low, f"{start}: {expected}{doubt if fall > 0 else ''}.")


def _unlearned(points: Sequence[Point], class_shares: Sequence[float]) -> str:
    """Return the sentence for trainings on all rows that have not learned; empty if all of them have."""
    of_all = [each for each in points if each.share == max(point.share for point in points)]
    vain = [
        each
        for each in of_all
        if class_shares and not knows_more(class_shares, each.held_out_loss, each.held_out_accuracy)
    ]
    if not vain:
        return ""
    least = min(each.held_out_loss for each in vain)
    seeds = f", with {len(vain)} of {counted(len(of_all), 'seed')}" if len(of_all) > 1 else ""
    return (
        f"The curve does not say whether more data would help, because the training on all {vain[0].rows:,} rows did "
        f"not learn{seeds}: its held-out loss was never below {least:.4f}, and predicting only the class shares gives "
        f"{entropy(class_shares):.4f}. Find a training that learns first."
    )


def finding(found: Verdict, config: TrainingConfig, image_shape: tuple[int, int]) -> Found | None:
    """Return the finding that more data would help, if it would, with what to try where there is no more."""
    if not found.helps:
        return None
    source = "J. Hestness et al. 2017, Deep Learning Scaling Is Predictable, Empirically"
    settings: dict[str, Any] = {"validation_fraction": config.validation_fraction / 2}
    if not (config.shift or config.rotate or config.zoom):
        settings = {"shift": max(0.1, round(SHIFT * min(image_shape), 1)), "rotate": ROTATE, "zoom": ZOOM}
    return Found("more data would help", found.sentence, source, settings)


def instead(settings: Mapping[str, Any]) -> str:
    """Return what the settings of the finding come to, for a sentence that says: where more rows are not to be had."""
    return "vary the images that there are" if "shift" in settings else "hold out fewer of those that there are"


def _slope(points: Sequence[Point]) -> float:
    """Return the power with which the held-out loss of one seed falls with the number of rows."""
    used = [each for each in points if each.share >= _LEAST_SHARE and each.held_out_loss > 0]
    if len(used) < 2:
        return 0.0
    rows, losses = np.log([each.rows for each in used]), np.log([each.held_out_loss for each in used])
    return float(np.polyfit(rows, losses, 1)[0])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
