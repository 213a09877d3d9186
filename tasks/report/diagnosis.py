"""What the rules of `tasks.diagnosing` find in the training of a run, and the commands to try."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from storage.datasets.training import TrainingConfig
from storage.records import Finding, RunRecord
from tasks.diagnosing import rules
from tasks.diagnosing.rules import Course
from tasks.report.evidence import Evidence
from tasks.report.heldout import held_out
from tasks.report.lineage import command


def findings(run: RunRecord, evidence: Evidence) -> tuple[Finding, ...]:
    """Return what was found in the training of a run, the most important first.

    Nothing is found if the history, the class shares or the configuration is unknown.
    """
    course = course_of(run, evidence)
    found = rules.findings(course) if course else ()
    return tuple(
        Finding(each.name, each.sentence, each.source, each.settings, to_try(run, each.settings)) for each in found
    )


def to_try(run: RunRecord, settings: Mapping[str, Any]) -> str:
    """Return the command that trains as `run` did, but with other training parameters."""
    known = {name: value for name, value in run.config.items() if name in TrainingConfig.model_fields}
    return command(dataclasses.replace(run, config={**known, **settings}))


def course_of(run: RunRecord, evidence: Evidence) -> Course | None:
    """Return what the rules look at; None if too little is known."""
    config, shares, model = config_of(run), class_shares(run, evidence), run.model
    if not (config and shares and model):
        return None
    epochs = [epoch for epoch in evidence.history if epoch.epoch <= model.chosen_epoch]
    if not epochs:
        return None
    differs = held_out(run, evidence)
    differences = differs["differences"] if differs else ()
    return Course(epochs, config, shares, model.layers, model.validation_rows, differences)


def class_shares(run: RunRecord, evidence: Evidence) -> list[float]:
    """Return the share of each class in the training rows; empty if unknown."""
    labels, validation = evidence.labels.get("train"), run.validation
    counts = labels.counts.tolist() if labels else validation.class_counts.get("train", ()) if validation else ()
    rows = sum(counts)
    return [count / rows for count in counts] if rows else []


def config_of(run: RunRecord) -> TrainingConfig | None:
    """Return the training configuration of a run; None if it is that of another version."""
    known = {name: value for name, value in run.config.items() if name in TrainingConfig.model_fields}
    try:
        return TrainingConfig(**known)
    except ValidationError:
        return None
