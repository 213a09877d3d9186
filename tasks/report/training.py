"""Training: loss and accuracy by epoch, the epoch that was kept, and what went wrong."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from storage.datasets.training import CHOICES, NETWORK, TrainingConfig, without_effect
from storage.records import Epoch, OwnFunction, RunRecord, to_json
from tasks.report.diagnosis import course_of, findings
from tasks.report.evidence import Evidence
from tasks.report.heldout import held_out
from tasks.report.phrases import duration
from tasks.report.timing import total

_NO_GAP = 0.01
"""Gap between the accuracies on fitted and on held-out rows from which it counts as slight."""


def training(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return the epochs, the numbers of the model, and its configuration; None if nothing was trained."""
    model = run.model
    if not model:
        return None
    found = findings(run, evidence)
    word, gap, sentence = overfitting(evidence.history, model.chosen_epoch, [each.name for each in found])
    if found:
        sentence = found[0].sentence
    elif course_of(run, evidence):
        sentence = f"No rule found a fault in this training. {sentence}"
    before = [epoch.seconds for epoch in evidence.history[: model.resumed_after]]
    return {
        "sentence": f"{sentence} {_resumed(run, before)}".strip(),
        "overfitting": word,
        "gap": gap,
        "findings": to_json(found),
        "seconds_before": total(before) if before else None,
        "held_out": held_out(run, evidence),
        "architecture": of_own(model.own) if model.own else in_words(run.config),
        **to_json(model),
        "epochs": to_json(evidence.history),
        "configuration": _configuration(run),
    }


def _resumed(run: RunRecord, before: Sequence[float]) -> str:
    if not before or not run.model:
        return ""
    now = sum(step.seconds for step in run.steps if step.step == "train" and not step.reused)
    text = f"This training continues an interrupted one, whose {run.model.resumed_after:,} epochs took "
    return f"{text}{duration(total(before))}" + (f"; the rest took {duration(now)}." if now else ".")


def overfitting(history: Sequence[Epoch], chosen: int, found: Collection[str] = ()) -> tuple[str, float | None, str]:
    """Return the degree of overfitting at the chosen epoch, the gap behind it, and a sentence about both.

    The gap is between the accuracies on fitted and on held-out rows. `not learned` and `clear` if a rule has found so;
    otherwise `none` below 1 percentage point, and `slight` from there on.

    Args:
        found: the names of what the rules have found.
    """
    epoch = next((e for e in history if e.epoch == chosen), None)
    if epoch is None:
        return "unknown", None, "The history of this training cannot be read, so it cannot be judged."
    if "not learning" in found:
        return "not learned", None, ""
    if epoch.validation_accuracy is None or epoch.validation_loss is None:
        sentence = "No rows were held out, so only the gap between training and test accuracy can show overfitting."
        return "unknown", None, sentence
    gap = epoch.accuracy - epoch.validation_accuracy
    word = "clear" if "over-fitting" in found else "slight" if gap >= _NO_GAP else "none"
    sentence = (
        f"At epoch {chosen} the model gets {epoch.accuracy:.2%} of the fitted rows and {epoch.validation_accuracy:.2%} "
        f"of the held-out rows right, {abs(gap) * 100:.2f} points apart; {_held_out_trend(history)}."
    )
    return word, gap, sentence


def _held_out_trend(history: Sequence[Epoch]) -> str:
    lowest = min(history, key=lambda e: math.inf if e.validation_loss is None else e.validation_loss)
    if lowest.epoch == history[-1].epoch and len(history) > 1:
        return "the held-out loss was lowest at the last epoch"
    return f"the held-out loss was lowest at epoch {lowest.epoch}"


def in_words(config: Mapping[str, Any]) -> str:
    """Return the network that a configuration describes, such as `conv 32, conv 64, dense 128; relu; dropout 0.4`.

    Records of earlier versions do not have all of its values, and those made from a version's entry may have none.
    """
    if "hidden" not in config:
        return ""
    layers = [f"conv {filters}" for filters in config.get("conv", ())] + [
        f"dense {units}" for units in config["hidden"]
    ]
    if not layers:
        return "no hidden layers: a linear model"
    more = [str(config.get("activation", ""))]
    if config.get("batch_norm"):
        more.append("batch normalization")
    if config.get("dropout"):
        more.append(f"dropout {config['dropout']:g}")
    return "; ".join([", ".join(layers), *filter(None, more)])


def of_own(own: OwnFunction) -> str:
    """Return the network that a user's function has made, such as `my_models:build: Flatten, Dense 10`."""
    return f"{own.name}: {', '.join(own.layers)}; SHA-256 of its source {own.source[:16]}…"


def _configuration(run: RunRecord) -> list[dict[str, Any]]:
    fields = TrainingConfig.model_fields
    config = to_json(run.config)
    defaults = TrainingConfig(**{choice: config[choice] for choice in CHOICES if choice in config})
    usual = defaults.model_dump(mode="json") | {choice: fields[choice].default for choice in CHOICES}
    unused = NETWORK if config.get("model") else ("model",)
    known = (name for name in fields if name in config and name not in unused and not without_effect(name, config))
    names = [*known, *sorted(config.keys() - fields.keys())]
    return [
        {
            "name": name,
            "value": config[name],
            "default": usual.get(name),
            "meaning": (fields[name].description or "") if name in fields else "",
        }
        for name in names
    ]
