"""Training: loss and accuracy by epoch, which epoch was kept, and a word on over-fitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from storage.records import Epoch, RunRecord, to_json
from tasks.config import TrainingConfig
from tasks.reporting.evidence import Evidence
from tasks.reporting.heldout import held_out

# How far apart accuracy on fitted and on held-out rows may be to be called that.
_NO_GAP, _SLIGHT_GAP = 0.01, 0.03
_LOSS_RISE = 1.05


def training(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return the epochs, the numbers of the model, and its configuration; None if nothing was trained."""
    model = run.model
    if not model:
        return None
    word, gap, said = overfitting(evidence.history, model.chosen_epoch)
    return {
        "sentence": said,
        "overfitting": word,
        "gap": gap,
        "held_out": held_out(run, evidence),
        **to_json(model),
        "epochs": to_json(evidence.history),
        "configuration": _configuration(run),
    }


def overfitting(history: Sequence[Epoch], chosen: int) -> tuple[str, float | None, str]:
    """Return a word on the gap between fitted and held-out rows at the chosen epoch, that gap, and a sentence.

    `none` below 1 percentage point of accuracy, `slight` below 3, else `clear`; and `clear` too when the
    held-out loss has risen by more than 5% above its lowest value until then.
    """
    epoch = next((e for e in history if e.epoch == chosen), None)
    if epoch is None:
        return "unknown", None, "The history of this training cannot be read, so nothing is said about over-fitting."
    if epoch.validation_accuracy is None or epoch.validation_loss is None:
        said = "No rows were held out, so over-fitting shows only between training and test accuracy."
        return "unknown", None, said
    gap = epoch.accuracy - epoch.validation_accuracy
    losses = [e.validation_loss for e in history if e.validation_loss is not None and e.epoch <= chosen]
    risen = epoch.validation_loss > _LOSS_RISE * min(losses)
    word = "clear" if risen or gap >= _SLIGHT_GAP else "slight" if gap >= _NO_GAP else "none"
    said = {"clear": "Clear over-fitting", "slight": "Slight over-fitting", "none": "No over-fitting to speak of"}[word]
    said += (
        f": at epoch {chosen} the model has {epoch.accuracy:.2%} of the fitted rows right and "
        f"{epoch.validation_accuracy:.2%} of the held-out ones, {gap * 100:.2f} points apart"
    )
    return word, gap, f"{said}; {_held_out_trend(history, risen)}."


def _held_out_trend(history: Sequence[Epoch], risen: bool) -> str:
    lowest = min(history, key=lambda e: math.inf if e.validation_loss is None else e.validation_loss)
    if lowest.epoch == history[-1].epoch and len(history) > 1:
        return "the held-out loss was still falling, so more epochs may help"
    if risen:
        return f"the held-out loss was lowest at epoch {lowest.epoch} and rose since, so fewer epochs would do"
    return f"the held-out loss was lowest at epoch {lowest.epoch}"


def _configuration(run: RunRecord) -> list[dict[str, Any]]:
    fields = TrainingConfig.model_fields
    config = to_json(run.config)
    names = [*(name for name in fields if name in config), *sorted(config.keys() - fields.keys())]
    return [
        {
            "name": name,
            "value": config[name],
            "default": to_json(fields[name].default) if name in fields else None,
            "meaning": (fields[name].description or "") if name in fields else "",
        }
        for name in names
    ]
